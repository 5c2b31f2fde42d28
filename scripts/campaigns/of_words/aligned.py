"""A head that also learns, in the network's middle, what a picture encoder sees in the clean image.

The middle's features of the noisy image, averaged over its pixels, are drawn towards the encoder's vector of the clean
image (REPA, arXiv 2410.06940, Eq. 3, on the average instead of on patches).

Shapes: B images, C channels, H rows, W columns, D dimensions of the encoder's vectors.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from attndiff.training.batches import Batch
from attndiff.training.heads.denoising import DenoisingModel


class AlignedModel(DenoisingModel):
    """A `DenoisingModel` with a further loss.

    Args:
        model: Whose networks are trained.
        see: Unit vectors ``(B, D)`` of images ``(B, C, H, W)`` in [-1, 1].
        dim: D.
        weight: Of the further loss.
    """

    def __init__(self, model: DenoisingModel, see: Callable[[torch.Tensor], torch.Tensor], dim: int, weight: float):
        super().__init__(model.unet, model.condition_encoder, model.objective)
        width = model.unet.level_specs[-1].width
        self.aligning = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim))
        self.see, self.weight = see, weight
        self._middle: torch.Tensor | None = None
        self.unet.mid_block[-1].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self._middle = output  # (B, H, W, C)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The denoising loss and the further one of every sample, ``(B,)`` float32."""
        error = super().forward(batch)
        with torch.no_grad():
            seen = self.see(batch["images"])
        told = self.aligning(self._middle.mean((1, 2))).float()
        return error + self.weight * (1 - F.cosine_similarity(told, seen))
