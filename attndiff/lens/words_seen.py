"""Where a decoder of texts looks in an image for every word that it writes.

Shapes: B images, L tokens of a text, S condition tokens, h and w rows and columns of what is seen.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.nn.attention import attention_weights
from attndiff.nn.decoder import TextDecoderModel


@torch.no_grad()
def words_seen(
    decoder: TextDecoderModel, ids: torch.Tensor, seen: torch.Tensor, grids: list[tuple[int, int]]
) -> list[torch.Tensor]:
    """Attention to places for every token, ``(L, h, w)`` float32 of each text, averaged over heads and blocks.

    That of a token is what the one before it attended to, when it was chosen; the first is chosen by nobody and has
    zeros.

    Args:
        decoder: The network.
        ids: Texts, ``(B, L)`` int64, padded at the end.
        seen: What it attends to, ``(B, S, C)``.
        grids: Rows and columns of each kind of its tokens, one after another; h and w are those of the first.
    """
    found: list[torch.Tensor] = []
    layers = [block.cross_attn for block in decoder.decoder.blocks]
    handles = [layer.register_forward_hook(partial(_record, found), with_kwargs=True) for layer in layers]
    try:
        decoder(ids, encoder_hidden_states=seen)
    finally:
        for handle in handles:
            handle.remove()
    weights = torch.stack(found).mean(0)  # (B, L, S)
    parts = weights.split([rows * columns for rows, columns in grids], dim=2)
    maps = sum(_on_grid(part.unflatten(2, grid), grids[0]) for part, grid in zip(parts, grids, strict=True))
    maps = torch.cat([torch.zeros_like(maps[:, :1]), maps[:, :-1]], dim=1)
    return list(maps.cpu())


def _on_grid(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Maps ``(B, L, rows, columns)`` on another grid, their sums as they were."""
    sums = maps.sum((2, 3), keepdim=True)
    maps = F.interpolate(maps, size=grid, mode="nearest-exact")
    return maps / maps.sum((2, 3), keepdim=True).clamp_min(1e-12) * sums


def _record(found: list[torch.Tensor], attn: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
    """After a layer of cross-attention: its probabilities ``(B, L, S)``."""
    found.append(attention_weights(attn.query(args[0]), kwargs["key_value"][0]).mean(1))
