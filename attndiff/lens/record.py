"""Looking inside: which condition token each pixel attended to.

Queries are computed again from the input of the recorded layers only, beside the network's own computation, so that
the fast attention kernels stay on and the pixels do not change.

Shapes: B images, S condition tokens, H and W of the image, h and w of the level that a layer works at.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.nn.attention import attention_weights


@dataclass
class AttentionMaps:
    """Cross-attention probabilities, averaged over heads and over the recorded steps.

    Over the tokens that count, the weights of a pixel sum to one; a masked token has zero everywhere.

    Args:
        per_layer: ``(B, S, h, w)`` float32 in [0, 1] by layer, such as ``"mid_block.0"``, in the order of execution.
        levels: The level of each of those layers; 0 has the highest resolution.
        mask: ``(B, S)`` bool, true for tokens that count.
        size: ``(H, W)`` of the image in the network's pixels.
        steps: The same of every single step, where these were kept.
    """

    per_layer: dict[str, torch.Tensor]
    levels: dict[str, int]
    mask: torch.Tensor
    size: tuple[int, int]
    steps: list["AttentionMaps"] = field(default_factory=list)

    @property
    def per_scale(self) -> dict[int, torch.Tensor]:
        """``(B, S, h, w)`` by level, averaged over the layers of that level, highest resolution first."""
        scales = {}
        for level in sorted(set(self.levels.values())):
            layers = [maps for name, maps in self.per_layer.items() if self.levels[name] == level]
            scales[level] = torch.stack(layers).mean(0)
        return scales

    def averaged(self, size: tuple[int, int] | None = None) -> torch.Tensor:
        """``(B, S, H, W)``: every scale enlarged bilinearly to ``size`` (the image's by default), then their mean."""
        scales = [
            F.interpolate(maps, size=size or self.size, mode="bilinear", align_corners=False)
            for maps in self.per_scale.values()
        ]
        return torch.stack(scales).mean(0)

    def of_token(self, index: int, size: tuple[int, int] | None = None) -> torch.Tensor:
        """``(B, H, W)`` averaged weights of token ``index``."""
        return self.averaged(size)[:, index]


class AttentionRecorder:
    """Records the cross-attention maps of a network while it is called inside the ``with`` block.

    Classifier-free guidance calls the network for the unconditional prediction too. Where one batch holds both, set
    ``rows`` to the conditional ones, a slice; where they are calls of their own, set ``enabled`` to False around the
    unconditional ones. Both may be changed between calls.

        with AttentionRecorder(unet, rows=slice(0, 4)) as recorder:
            ...  # sample
        heat = recorder.maps().averaged()

    Args:
        unet: An `AttentionUNet2DModel` with cross-attention.
        layers: Names of the layers to record, out of the network's `cross_attending`; None records all.
        levels: Levels to record, 0 being the one of the highest resolution; None records all.
        steps: Numbers of the calls to record, counted from 0 while ``enabled``; None records all.
        rows: Rows of the batch to record; None records all.
        keep_steps: Keep the maps of every step besides their mean.

    Raises:
        ValueError: If the network has no such layer, or no cross-attention at all.
    """

    def __init__(
        self,
        unet: nn.Module,
        layers: Collection[str] | None = None,
        levels: Collection[int] | None = None,
        steps: Collection[int] | None = None,
        rows: slice | None = None,
        keep_steps: bool = False,
    ):
        self.unet, self.steps, self.rows, self.keep_steps = unet, steps, rows, keep_steps
        self.enabled = True
        self.step = -1
        names = unet.cross_attending()
        if not names:
            raise ValueError("attention maps need a network with cross-attention; this one has none to record.")
        unknown = [str(x) for x in layers or [] if x not in names] + [
            str(x) for x in levels or [] if x not in names.values()
        ]
        if unknown:
            have = ", ".join(f"{name} (level {level})" for name, level in names.items())
            raise ValueError(f"no cross-attention at {', '.join(unknown)}; this network has it at {have}.")
        self.levels = {
            name: level
            for name, level in names.items()
            if (layers is None or name in layers) and (levels is None or level in levels)
        }
        self._size: tuple[int, int] | None = None  # of the image
        self._mask: torch.Tensor | None = None
        self._call: dict[str, torch.Tensor] | None = None  # maps of the call under way, if it is recorded
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._kept: list[dict[str, torch.Tensor]] = []
        self._handles = []

    def __enter__(self) -> "AttentionRecorder":
        self._handles = [
            self.unet.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.unet.register_forward_hook(self._end),
        ]
        for name in self.levels:
            attn = self.unet.get_submodule(f"{name}.cross_attn")
            self._handles.append(attn.register_forward_hook(partial(self._record, name), with_kwargs=True))
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()

    def maps(self) -> AttentionMaps:
        """What was recorded so far.

        Raises:
            ValueError: If nothing was.
        """
        if not self._sums:
            raise ValueError(
                "no attention was recorded: call the network with a condition inside the `with` block, and a compiled "
                'one under torch.compiler.set_stance("force_eager"), because compiled code leaves the recorder out.'
            )
        mean = {name: self._sums[name] / self._count for name in self.levels}
        return self._result(mean, [self._result(kept, []) for kept in self._kept])

    def _result(self, per_layer: dict[str, torch.Tensor], steps: list[AttentionMaps]) -> AttentionMaps:
        return AttentionMaps(per_layer, dict(self.levels), self._mask, self._size, steps)

    def _begin(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a call of the network: learn the image's size, and whether this call is recorded."""
        sample = args[0] if args else kwargs.get("sample")
        self._call = None
        if not self.enabled or sample is None:  # without a sample, only keys and values are computed
            return
        self.step += 1
        if self.steps is None or self.step in self.steps:
            self._call, self._size = {}, tuple(sample.shape[-2:])

    @torch.no_grad()
    def _record(self, name: str, attn: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        """After a cross-attention layer: compute its probabilities."""
        if self._call is None:
            return
        rows = slice(None) if self.rows is None else self.rows
        hidden, key = args[0][rows], kwargs["key_value"][0][rows]  # (B, h * w, C), (B, S, heads, head_dim)
        mask = kwargs.get("attention_mask")  # (B, 1, 1, S) additive
        mask = torch.ones(key.shape[:2], dtype=torch.bool, device=key.device) if mask is None else mask[rows, 0, 0] == 0
        weights = attention_weights(attn.query(hidden), key, mask).mean(1).transpose(1, 2)  # (B, S, h * w)
        grid = self.unet.grid_size(self.levels[name], *self._size)
        self._call[name] = weights.unflatten(-1, grid).contiguous()
        self._mask = mask

    def _end(self, unet: nn.Module, args: tuple, output) -> None:
        """After a call: add it up. What gradient checkpointing computes again on the way back is not recorded."""
        call, self._call = self._call, None
        if not call:
            return
        for name, maps in call.items():
            total = self._sums.get(name)
            if total is not None and total.shape != maps.shape:
                raise ValueError(
                    f"recorded calls must agree in shape, but {tuple(total.shape)} was followed by "
                    f"{tuple(maps.shape)}: set `rows` to the conditional rows of every call."
                )
            self._sums[name] = maps if total is None else total + maps
        self._count += 1
        if self.keep_steps:
            self._kept.append(call)
