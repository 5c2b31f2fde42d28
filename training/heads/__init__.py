"""What is trained: modules from a batch to its loss.

`Head` is all that the loop, and what it calls, know of them. Which networks a head has, what it predicts and which
pipeline it becomes is said in its own file and nowhere else.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from attndiff.training.batches import Batch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def draws_dropout(module: nn.Module) -> bool:
    """Whether a training pass of a module drops anything at random."""
    return any(isinstance(part, _DropoutNd) and part.p > 0 for part in module.modules())


class Head(Protocol):
    """An `nn.Module` that is prepared, averaged and stored as one, and split into the folders of a pipeline at the end.

    Shapes: B samples of a batch.

    Attributes:
        preview_steps: Of the samples that are drawn while training; None for as many as the pipeline takes.
        denoises: Whether it makes images of noisy ones.
        keeps_best: Whether a run keeps the weights of its least held-out loss, see `attndiff.training.state.best`.
        description: What it is, in words.
        unit: Of its loss.
    """

    preview_steps: int | None
    denoises: bool
    keeps_best: bool
    description: str
    unit: str

    # Training

    def forward(self, batch: Batch) -> torch.Tensor:
        """Loss of every sample, ``(B,)`` float32, whose mean is trained on."""

    def set_progress(self, share: float) -> None:
        """Be told before a step what share of the run, in [0, 1], is done."""

    @property
    def has_dropout(self) -> bool:
        """Whether a training pass draws random numbers of its own."""

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Compute activations again in the backward pass, or keep them."""

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, which hold nearly all of the weights: they are sharded and compiled one by one."""

    # Measuring

    def measured_at(self) -> list[float]:
        """The noise levels that it is measured at, as numbers that are standard normal in training."""

    def measures(self, batch: Batch, normal: float) -> dict[str, torch.Tensor]:
        """What is measured on held-out samples at one noise level, without dropout of the condition.

        Args:
            batch: As `forward` takes it; its own levels are left aside.
            normal: The level, as a number that is standard normal in training.

        Returns:
            ``loss (B,)``, weighted as in training, and of what makes images of noisy ones, ``denoised (B, C, H, W)``.
        """

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """The noise levels ``(B,)`` that standard normal numbers ``(B,)`` stand for, in the head's own unit."""

    def noise_over_signal(self, normal: torch.Tensor) -> torch.Tensor:
        """And as ratios of noise to signal ``(B,)``, which compare heads."""

    # What becomes of it

    def components(self, plain: bool = False) -> dict[str, nn.Module]:
        """The modules of a pipeline by the names of their folders.

        Args:
            plain: With adapters added to the weights, so that they open like any other; copies, where there are some.
        """

    def to_pipeline(self, name: str, **others) -> "DiffusionPipeline":
        """A pipeline around the components, which are shared with it.

        Args:
            name: Of its class in `attndiff`.
            others: What a pipeline takes and a head has not: tokenizer, text encoder, VAE, description of the data.
        """

    def add_adapter(self, rank: int) -> None:
        """Freeze all weights and train low-rank adapters beside them."""

    def save_adapter(self, folder: Path) -> None:
        """Write the adapters, if there are any."""

    @property
    def size_multiple(self) -> int:
        """Heights and widths of its inputs are multiples of this."""

    @property
    def looks_at_words(self) -> bool:
        """Whether there is attention from pixels to the tokens of a condition, which can be drawn."""
