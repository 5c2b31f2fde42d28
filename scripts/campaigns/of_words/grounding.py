"""The condition encoder learns what words look like before the network learns to draw them.

A small image tower and the condition encoder are trained to agree on which image and which condition belong together
(arXiv 2103.00020, section 2.3), on the images of the run itself; the encoder then begins the run with these weights.
An image costs the two towers a tenth of what it costs the network, and a contrast needs no noise.

Shapes: B images, C channels, H rows, W columns, D dimensions of the common space.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from attndiff.data.columns import IMAGE
from attndiff.data.rows import Row, Rows
from attndiff.metrics.extractors.classifier import ConvTrunk, jitter
from attndiff.metrics.retrieval import contrastive_loss
from attndiff.nn.encoder import ConditionEncoder
from attndiff.progress import progress
from attndiff.training.conditioning import Conditioning
from attndiff.training.config import OptimConfig
from attndiff.training.optim import make_optimizers, set_lr

BATCH = 256
WIDTH = 48  # of the image tower
DIM = 128
WARMUP = 20  # steps


class Grounding(nn.Module):
    """Two towers whose unit vectors agree where image and condition do.

    Args:
        encoder: The condition's tower.
        channels: Channels of the images.
    """

    def __init__(self, encoder: ConditionEncoder, channels: int):
        super().__init__()
        self.encoder, self.trunk = encoder, ConvTrunk(channels, WIDTH)
        self.of_image = nn.Linear(self.trunk.out_features, DIM)
        self.of_condition = nn.Linear(encoder.config.hidden_size, DIM)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def image(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors ``(B, D)`` of images ``(B, C, H, W)`` in [-1, 1]."""
        return F.normalize(self.of_image(self.trunk(images)).float(), dim=1)

    def condition(self, streams: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors ``(B, D)`` of what a `ConditionEncoder` takes."""
        return F.normalize(self.of_condition(self.encoder(**streams).pooled).float(), dim=1)

    def forward(self, images: torch.Tensor, streams: dict[str, torch.Tensor], same: torch.Tensor) -> torch.Tensor:
        """The contrastive loss of a batch whose rows ``same (B, B)`` have one condition."""
        scale = self.log_scale.exp().clamp(max=100)
        return contrastive_loss(scale * self.image(images) @ self.condition(streams).T, same)


class GroundingLoop:
    """The training of a `Grounding`, a step at a time.

    Args:
        encoder: Trained in place.
        images: With their conditions.
        conditioning: Makes what the encoder takes.
        optim: Rates and optimizer.
        seed: Of weights, order and augmentation.
    """

    def __init__(
        self, encoder: ConditionEncoder, images: Rows, conditioning: Conditioning, optim: OptimConfig, seed: int
    ):
        self.images, self.conditioning = images, conditioning
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.grounding = Grounding(encoder, images[0][IMAGE.name].shape[0]).train()
        self.optimizers = make_optimizers(self.grounding, optim)
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def run(self, steps: int) -> Grounding:
        """All steps, the rates falling to zero; the trained towers."""
        for step in progress(range(steps), "Learning what words look like", steps, "step"):
            set_lr(self.optimizers, min(1, (step + 1) / WARMUP) * (1 - step / steps))
            self.step()
        return self.grounding.eval()

    def step(self) -> float:
        """One step; its loss."""
        chosen = self.rng.choice(len(self.images), min(BATCH, len(self.images)), replace=False)
        rows = [self.images[int(i)] for i in chosen]
        images = torch.stack([torch.from_numpy(row[IMAGE.name]) for row in rows])
        streams, same = self._conditions(rows)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.grounding(jitter(images, self.generator), streams, same)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _conditions(self, rows: list[Row]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the encoder takes of rows, and which of them ``(B, B)`` it cannot tell apart."""
        each = [self.conditioning.sample(row, choice) for row, choice in zip(rows, self.rng.random(len(rows)))]
        streams = {key: torch.stack([one[key] for one in each]) for key in each[0]}
        flat = next(iter(streams.values())).flatten(1) if streams["input_ids"].ndim > 1 else streams["input_ids"]
        return self.conditioning.embed(streams), (flat[:, None] == flat[None]).all(2)
