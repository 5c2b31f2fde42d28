"""What heads share that take no noise away."""

from pathlib import Path

import torch
from torch import nn

from attndiff.errors import UserError
from attndiff.training.batches import Batch


class HeadWithoutNoise(nn.Module):
    """The part of a `Head` that is the same for all whose loss depends on no noise level."""

    preview_steps: int | None = None
    denoises = False
    keeps_best = True

    def set_progress(self, share: float) -> None:
        """Be told before a step what share of the run is done; nothing depends on it here."""

    def measured_at(self) -> list[float]:
        """One number that stands for no level."""
        return [0.0]

    def measures(self, batch: Batch, normal: float) -> dict[str, torch.Tensor]:
        """``loss (B,)``, which no ``normal`` changes."""
        return {"loss": self({**batch, "drop": torch.zeros_like(batch["drop"])})}

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """None but zero, ``(B,)``."""
        return torch.zeros_like(normal)

    def noise_over_signal(self, normal: torch.Tensor) -> torch.Tensor:
        """Likewise."""
        return torch.zeros_like(normal)

    def add_adapter(self, rank: int) -> None:
        """Refuse: adapters are added to denoising networks only."""
        raise UserError("model.lora_rank trains an adapter on a denoising network, which this task has none of.")

    def save_adapter(self, folder: Path) -> None:
        """Write none."""

    @property
    def looks_at_words(self) -> bool:
        """No pixels of its own attend to words."""
        return False
