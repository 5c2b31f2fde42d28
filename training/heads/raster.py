"""A Transformer that says how likely every value of an image is after those before it.

Shapes: B images, C channels, H rows, W columns, V levels.
"""

import torch
from diffusers import DiffusionPipeline
from torch import nn

import attndiff
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.raster.model import PixelTransformerModel
from attndiff.training.batches import Batch
from attndiff.training.heads import draws_dropout
from attndiff.training.heads.denoising import condition_of
from attndiff.training.heads.without_noise import HeadWithoutNoise


class RasterModel(HeadWithoutNoise):
    """The `Head` that learns the likelihood of images; its loss is bits per value.

    Args:
        transformer: The network.
        condition_encoder: The condition's encoder, or None for unconditional models.
    """

    description = "A Transformer that draws an image value after value and"
    unit = 'Bits per value ("bits per dimension")'

    def __init__(self, transformer: PixelTransformerModel, condition_encoder: ConditionEncoder | None):
        super().__init__()
        self.transformer, self.condition_encoder = transformer, condition_encoder

    def forward(self, batch: Batch) -> torch.Tensor:
        """Bits per value of every image, ``(B,)`` float32."""
        values = self.values_of(batch["images"])
        condition = condition_of(self.condition_encoder, batch)
        return self.transformer.bits_per_value(self.transformer(values, condition.tokens, condition.mask), values)

    def values_of(self, images: torch.Tensor) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in [-1, 1] as values ``(B, C, H, W)`` int64 in [0, V)."""
        most = self.transformer.config.num_values - 1
        return images.float().add(1).mul(most / 2).round().clamp(0, most).long()

    @property
    def has_dropout(self) -> bool:
        """Whether network or encoder drop activations."""
        return draws_dropout(self)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Compute the network's activations again in the backward pass, or keep them."""
        self.transformer.disable_gradient_checkpointing()
        if on:
            self.transformer.enable_gradient_checkpointing()

    def blocks(self) -> list[nn.Module]:
        """Those of network and encoder."""
        runs = [self.transformer.patch_decoder.blocks, self.transformer.value_decoder.blocks]
        if self.condition_encoder is not None:
            runs.append(self.condition_encoder.blocks)
        return [block for run in runs for block in run]

    # What becomes of it

    def components(self, plain: bool = False) -> dict[str, nn.Module]:
        """``transformer``, and ``condition_encoder`` where there is one."""
        found = {"transformer": self.transformer}
        return found if self.condition_encoder is None else {**found, "condition_encoder": self.condition_encoder}

    def to_pipeline(self, name: str, vae=None, **others) -> DiffusionPipeline:
        """A pipeline around the networks, which are shared with it."""
        return getattr(attndiff, name)(**self.components(), **others)

    @property
    def size_multiple(self) -> int:
        """The side of its images, which it knows no others of."""
        return self.transformer.size_multiple
