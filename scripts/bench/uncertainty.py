"""A loss whose weight at every noise level is learned (Karras et al. 2024, arXiv 2312.02696, Eq. 21)."""

import torch
from torch import nn

from attndiff.training.batches import Batch
from attndiff.training.heads.denoising import DenoisingModel
from bench.edm2_unet import MPFourier, MPLayer

FEATURES = 128


class UncertaintyWeighted(DenoisingModel):
    """Beside the network a linear layer on Fourier features of the noise level, which learns ``u``.

    ``loss / exp(u) + u`` is least where ``exp(u)`` is the loss at this level, so that all levels come to weigh
    alike. The weight of the objective is in that loss; nothing but training looks at ``u``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.uncertainty = nn.Sequential(MPFourier(FEATURES), MPLayer(FEATURES, 1))

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of every sample, ``(B,)`` float32."""
        level = self.objective.draw_levels(batch["normal"])
        u = self.uncertainty(self.objective.coordinate(level)).squeeze(1).float()
        return super().forward(batch) / u.exp() + u
