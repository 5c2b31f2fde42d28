"""A discriminator on the features of a frozen U-Net, where GAN and diffusion meet (LADD, arXiv 2403.12015, section 3).

Shapes: B batch, H rows, W columns, C channels, N verdicts.
"""

import torch
from torch import nn
from torch.func import functional_call

from attndiff.nn.unet import AttentionUNet2DModel


def stages(unet: AttentionUNet2DModel) -> list[tuple[nn.Module, int]]:
    """The last block of every run of blocks, with its channels, in the order of execution."""
    widths = [spec.width for spec in unet.level_specs]
    down, up = list(zip(unet.down_blocks, widths)), list(zip(unet.up_blocks, widths))
    runs = [*down, (unet.mid_block, widths[-1]), *reversed(up)]
    return [(blocks[-1], width) for blocks, width in runs if len(blocks)]


def tap(unet: AttentionUNet2DModel) -> list[torch.Tensor]:
    """A list to which every later call adds what its stages give, ``(B, H, W, C)`` each."""
    found: list[torch.Tensor] = []
    for block, _ in stages(unet):
        block.register_forward_hook(lambda _, __, output: found.append(output))
    return found


class Adversary(nn.Module):
    """A small head on every stage's features that judges each of its pixels.

    Args:
        unet: The network that the features come from.
    """

    def __init__(self, unet: AttentionUNet2DModel):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
            for _, width in stages(unet)
        )

    def forward(self, features: list[torch.Tensor], frozen: bool = False) -> torch.Tensor:
        """Verdicts ``(B, N)`` float32, high for real.

        Args:
            features: ``(B, H, W, C)`` of every stage.
            frozen: Send gradients to the features only.
        """
        verdicts = []
        for head, x in zip(self.heads, features, strict=True):
            own = dict(head.named_parameters())
            used = {name: p.detach() for name, p in own.items()} if frozen else own
            verdicts.append(functional_call(head, used, x).float().flatten(1))
        return torch.cat(verdicts, dim=1)
