"""Encoder, network and loss head as the one module that is prepared, averaged and stored; packaging splits it."""

import torch
from diffusers import SchedulerMixin
from torch import nn

from attndiff.condition import Condition
from attndiff.diffusion.compatibility import default_scheduler
from attndiff.diffusion.objectives import Objective
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel

CONDITION_KEYS = ("input_ids", "attention_mask", "class_labels", "pixel_values", "context", "context_mask")


class DenoisingModel(nn.Module):
    """From a batch to its loss.

    Args:
        unet: The network.
        condition_encoder: The condition's encoder, or None for unconditional models.
        objective: What the network predicts.
    """

    preview_steps: int | None = 16  # of the samples drawn while training; None: as many as its pipeline takes
    student: dict | None = None  # what a pipeline stores of a few-step student

    def __init__(self, unet: AttentionUNet2DModel, condition_encoder: ConditionEncoder | None, objective: Objective):
        super().__init__()
        self.unet, self.condition_encoder, self.objective = unet, condition_encoder, objective

    def make_scheduler(self) -> SchedulerMixin:
        """What samples it."""
        return default_scheduler(self.objective)

    def set_progress(self, share: float) -> None:
        """Be told before a step what share of the run is done; nothing depends on it here."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Weighted squared error of every sample, ``(B,)`` float32.

        Args:
            batch: ``images`` and ``noise`` ``(B, C, H, W)``, ``level`` standard normal ``(B,)``, ``drop`` ``(B,)``
                bool, and the condition's tensors.
        """
        x0, noise = batch["images"], batch["noise"]
        level = self.objective.draw_levels(batch["level"])
        x = self.objective.add_noise(x0, noise, level)
        prediction = self.predict(x, level, batch)
        error = (prediction.float() - self.objective.target(x0, noise, level)).square().mean(dim=(1, 2, 3))
        return error * self.objective.weight(level)

    def predict(self, x: torch.Tensor, level: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The network's prediction at noisy images ``x (B, C, H, W)`` of native levels ``(B,)``."""
        condition = Condition()
        if self.condition_encoder is not None:
            streams = {key: batch[key] for key in CONDITION_KEYS if key in batch}
            condition = Condition.encoded(self.condition_encoder, **streams, drop=batch.get("drop"))
        scaled, coordinate = self.objective.scale_input(x, level), self.objective.coordinate(level)
        return self.unet(condition.beside(scaled), coordinate, **condition.arguments()).sample
