"""The network's prediction under guidance, with the condition's keys and values computed once.

Shapes: B images, S condition tokens, C channels, h and w of the latents.
"""

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin

from attndiff.nn.encoder import pool_tokens

Embeds = tuple[torch.Tensor, torch.Tensor | None]  # tokens (B, S, C); mask (B, S), true for tokens that count


class GuidedNetwork:
    """Predicts with classifier-free guidance (arXiv 2207.12598, Eq. 6) or autoguidance (arXiv 2406.02507, Eq. 3).

    Args:
        unet: The network.
        guide: A worse version of it, to lead away from instead of from another condition; or None.
    """

    def __init__(self, unet: ModelMixin, guide: ModelMixin | None):
        self.networks = {"unet": unet} if guide is None else {"unet": unet, "guide": guide}
        self._embeds: list[torch.Tensor | None] = []
        self._mask: torch.Tensor | None = None  # of the condition, then of what to lead away from, as all below
        self._pooled: torch.Tensor | None = None
        self._caches: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def prepare(self, condition: Embeds | None, negative: Embeds | None) -> None:
        """Take a condition and the one to lead away from, of B rows each; the same tensors again cost nothing.

        Raises:
            ValueError: If the two have different numbers of rows.
        """
        given = [*(condition or ()), *(negative or ())]
        if len(given) == len(self._embeds) and all(a is b for a, b in zip(given, self._embeds)):
            return
        self._embeds = given
        if negative is not None and len(negative[0]) != len(condition[0]):
            raise ValueError(
                f"prompt_embeds has {len(condition[0])} rows, but negative_prompt_embeds has {len(negative[0])}."
            )
        tokens, self._mask = join_embeds(condition, negative)
        self._pooled = pool_tokens(tokens, self._mask)
        self._caches = {
            name: network(None, encoder_hidden_states=tokens, return_condition_cache=True)
            for name, network in self.networks.items()
        }

    def predict(self, x: torch.Tensor, coordinate: torch.Tensor, scale: float) -> torch.Tensor:
        """Prediction for scaled noisy images at one noise coordinate.

        Args:
            x: ``(B, C, h, w)``.
            coordinate: Scalar noise coordinate.
            scale: Guidance scale; 1 is none.

        Returns:
            ``(B, C, h, w)`` float32.
        """
        can_lead = "guide" in self.networks or (self._mask is not None and len(self._mask) == 2 * len(x))
        if scale == 1 or not can_lead:
            return self._call("unet", x, coordinate)
        if "guide" in self.networks:
            good, plain = self._call("unet", x, coordinate), self._call("guide", x, coordinate)
        else:
            good, plain = self._call("unet", torch.cat([x, x]), coordinate).chunk(2)
        return plain + scale * (good - plain)

    def _call(self, name: str, x: torch.Tensor, coordinate: torch.Tensor) -> torch.Tensor:
        """A network's prediction for the first rows of the condition."""
        network, rows = self.networks[name], len(x)
        condition = {}
        if self._mask is not None:
            if len(self._mask) < rows:
                raise ValueError(f"prompt_embeds has {len(self._mask)} rows for {rows} images.")
            condition = {
                "condition_cache": [(key[:rows], value[:rows]) for key, value in self._caches[name]],
                "encoder_attention_mask": self._mask[:rows],
                "pooled_projections": self._pooled[:rows],
            }
        return network(x.to(network.dtype), coordinate.expand(rows), **condition).sample.float()


def join_embeds(condition: Embeds, negative: Embeds | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of a condition and then its negative, in one batch; masked tokens fill up the shorter ones."""
    parts = [condition] if negative is None else [condition, negative]
    length = max(tokens.shape[1] for tokens, _ in parts)
    masks = [t.new_ones(t.shape[:2], dtype=torch.bool) if mask is None else mask.bool() for t, mask in parts]
    tokens = torch.cat([F.pad(t, (0, 0, 0, length - t.shape[1])) for t, _ in parts])
    return tokens, torch.cat([F.pad(mask, (0, length - mask.shape[1])) for mask in masks])


def repeat_embeds(tokens: torch.Tensor | None, mask: torch.Tensor | None, times: int) -> tuple:
    """Every prompt's tokens and mask ``times`` times in a row."""
    if times == 1:
        return tokens, mask
    return tuple(None if part is None else part.repeat_interleave(times, dim=0) for part in (tokens, mask))
