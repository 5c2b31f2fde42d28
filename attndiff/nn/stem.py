"""Images to tokens of patches, by convolutions.

Shapes: B batch, H rows, W columns, C channels, h and w rows and columns of patches, D channels of a token.
"""

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.nn.blocks import space_to_depth
from attndiff.nn.rope import WAVES, place_waves

NARROWEST = 16


class ImageStem(nn.Module):
    """Convolutions that halve an image until a pixel is a patch (arXiv 2106.14881, section 4), and where that is.

    A linear layer over the pixels of a patch has to learn every shift of a shape anew: with a few hundred different
    drawings it learns them by heart.

    Args:
        channels: C.
        patch_size: Side of a patch in pixels; what of it is no power of two is folded into channels at the end.
        dim: D.
    """

    def __init__(self, channels: int, patch_size: int, dim: int):
        super().__init__()
        halvings = (patch_size & -patch_size).bit_length() - 1
        self.rest = patch_size >> halvings
        widths = [channels, *(max(NARROWEST, dim >> (halvings - 1 - i)) for i in range(halvings))]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.proj = nn.Linear(widths[-1] * self.rest**2 + WAVES, dim)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Tokens ``(B, h * w, D)`` of images ``(B, C, H, W)``, row by row, and ``(h, w)``."""
        x = pixels.permute(0, 2, 3, 1).to(self.proj.weight.dtype)  # (B, H, W, C)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        x = space_to_depth(x, self.rest)
        grid, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        places = place_waves(*grid, x.device).to(x.dtype).expand(len(x), -1, -1)
        return self.proj(torch.cat([x, places], dim=-1)), grid
