"""What a network is told beside the noisy image: tokens to attend to, their mean, and channels that lie on the image.

Shapes: B rows, S tokens, C channels of a token, A aligned channels, H and W of the noisy image.
"""

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of a batch, in the terms of one network; any part may be absent, all of them without a condition.

    Args:
        tokens: ``(B, S, C)``.
        mask: ``(B, S)``, true for tokens that count; all do by default.
        pooled: ``(B, C)``, the mean of the tokens that count.
        aligned: ``(B, A, H, W)`` in about [-1, 1], put beside the noisy image's channels.
    """

    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None
    aligned: torch.Tensor | None = None

    @classmethod
    def encoded(cls, encoder: nn.Module, **inputs) -> "Condition":
        """What a `ConditionEncoder` makes of its inputs; of ``batch_size`` rows alone, its learned null."""
        output = encoder(**inputs)
        return cls(output.tokens, output.mask, output.pooled)

    @property
    def parts(self) -> dict[str, torch.Tensor]:
        """What is there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in named.items() if part is not None}

    @property
    def rows(self) -> int | None:
        """B; None where there is no part at all."""
        return next((len(part) for part in self.parts.values()), None)

    @property
    def token_mask(self) -> torch.Tensor:
        """``(B, S)`` bool, true for tokens that count."""
        if self.mask is None:
            return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)
        return self.mask.bool()

    def __getitem__(self, rows: slice) -> "Condition":
        """These rows of it."""
        return Condition(**{name: part[rows] for name, part in self.parts.items()})

    def repeat(self, times: int) -> "Condition":
        """Every row ``times`` times, side by side."""
        if times == 1:
            return self
        return Condition(**{name: part.repeat_interleave(times, dim=0) for name, part in self.parts.items()})

    def join(self, other: "Condition") -> "Condition":
        """These rows and then those of another; masked tokens fill up the shorter texts.

        Raises:
            ValueError: If one has a part that the other lacks.
        """
        if self.parts.keys() - {"mask"} != other.parts.keys() - {"mask"}:
            raise ValueError(f"a condition of {', '.join(self.parts)} cannot be joined to {', '.join(other.parts)}.")
        pairs = {name: [self.parts[name], other.parts[name]] for name in self.parts.keys() - {"mask"}}
        if self.tokens is not None:
            length = max(self.tokens.shape[1], other.tokens.shape[1])
            both = self.padded(length), other.padded(length)
            pairs |= {name: [each.parts[name] for each in both] for name in ("tokens", "mask")}
        return Condition(**{name: torch.cat(pair) for name, pair in pairs.items()})

    def padded(self, length: int) -> "Condition":
        """The same with ``length`` tokens, the new ones masked."""
        more = length - self.tokens.shape[1]
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(self.token_mask, (0, more)))

    def beside(self, x: torch.Tensor) -> torch.Tensor:
        """The network's input ``(B, C + A, H, W)``: noisy images ``x (B, C, H, W)`` and the aligned channels."""
        return x if self.aligned is None else torch.cat([x, self.aligned.to(x.dtype)], dim=1)

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """What `AttentionUNet2DModel` is called with besides its input; nothing without tokens."""
        if self.tokens is None:
            return {}
        return {
            "encoder_hidden_states": self.tokens,
            "encoder_attention_mask": self.mask,
            "pooled_projections": self.pooled,
        }
