"""Encoder, network and loss head as the one module that is prepared, averaged and stored; packaging splits it."""

import copy
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig
from torch import nn

import attndiff
from attndiff.condition import Condition
from attndiff.diffusion.compatibility import default_scheduler
from attndiff.diffusion.objectives import Objective
from attndiff.diffusion.paths import LOG_RATIO_LIMIT
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.batches import Batch
from attndiff.training.heads import draws_dropout

LEVELS = 8  # at which it is measured
ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]  # layers that an adapter is added to
CONDITION_KEYS = ("input_ids", "attention_mask", "class_labels", "pixel_values", "context", "context_mask")


class DenoisingModel(nn.Module):
    """The `Head` that learns to remove noise.

    Args:
        unet: The network.
        condition_encoder: The condition's encoder, or None for unconditional models.
        objective: What the network predicts.
    """

    preview_steps: int | None = 16
    denoises = True
    keeps_best = False
    description = "A diffusion model with an attention U-Net"
    unit = "Loss (the training objective's own weighting)"
    student: dict | None = None  # what a pipeline stores of a few-step student

    def __init__(self, unet: AttentionUNet2DModel, condition_encoder: ConditionEncoder | None, objective: Objective):
        super().__init__()
        self.unet, self.condition_encoder, self.objective = unet, condition_encoder, objective

    def make_scheduler(self) -> SchedulerMixin:
        """What samples it."""
        return default_scheduler(self.objective)

    def set_progress(self, share: float) -> None:
        """Be told before a step what share of the run is done; nothing depends on it here."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Weighted squared error of every sample, ``(B,)`` float32."""
        x0, noise = batch["images"], batch["noise"]
        level = self.objective.draw_levels(batch["normal"])
        if "at_once" in batch:
            noise, level = self._without_noise(batch["at_once"], noise, level)
        x = self.objective.add_noise(x0, noise, level)
        prediction = self.predict(x, level, batch)
        error = (prediction.float() - self.objective.target(x0, noise, level)).square()
        if "pixel_weight" in batch:
            error = error * batch["pixel_weight"]
        return mean_of_samples(error) * self.objective.weight(level)

    def _without_noise(self, rows: torch.Tensor, noise: torch.Tensor, level: torch.Tensor):
        """Noise ``(B, C, H, W)`` and levels ``(B,)`` with none at the highest level in some rows ``(B,)``."""
        highest = self.objective.level_from_log_ratio(torch.full_like(level, LOG_RATIO_LIMIT))
        return noise.masked_fill(rows[:, None, None, None], 0), torch.where(rows, highest, level)

    def predict(self, x: torch.Tensor, level: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The network's prediction at noisy images ``x (B, C, H, W)`` of native levels ``(B,)``."""
        condition = replace(condition_of(self.condition_encoder, batch), aligned=batch.get("aligned"))
        scaled, coordinate = self.objective.scale_input(x, level), self.objective.coordinate(level)
        return self.unet(condition.beside(scaled), coordinate, **condition.arguments()).sample

    @property
    def has_dropout(self) -> bool:
        """Whether network or encoder drop activations."""
        return draws_dropout(self)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Compute the network's activations again in the backward pass, or keep them."""
        self.unet.gradient_checkpointing = False
        if on:
            self.unet.enable_gradient_checkpointing()

    def blocks(self) -> list[nn.Module]:
        """Those of network and encoder."""
        runs = [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]
        if self.condition_encoder is not None:
            runs.append(self.condition_encoder.blocks)
        return [block for run in runs for block in run]

    # Measuring

    def measured_at(self) -> list[float]:
        """Standard normal numbers of eight levels, at quantiles of those trained on."""
        return [NormalDist().inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS)]

    def measures(self, batch: Batch, normal: float) -> dict[str, torch.Tensor]:
        """``loss (B,)`` and ``denoised (B, C, H, W)`` of every sample at one noise level, float32."""
        objective, x0, noise = self.objective, batch["images"], batch["noise"]
        level = objective.draw_levels(torch.full((x0.shape[0],), normal, device=x0.device))
        x = objective.add_noise(x0, noise, level)
        prediction = self.predict(x, level, {**batch, "drop": torch.zeros_like(batch["drop"])}).float()
        loss = mean_of_samples((prediction - objective.target(x0, noise, level)).square()) * objective.weight(level)
        return {"loss": loss, "denoised": objective.denoised(x, prediction, level)}

    def noise_levels(self, normal: torch.Tensor) -> torch.Tensor:
        """Native levels ``(B,)`` of the objective."""
        return self.objective.draw_levels(normal)

    def noise_over_signal(self, normal: torch.Tensor) -> torch.Tensor:
        """Ratios ``(B,)`` of noise to signal."""
        return self.objective.log_ratio(self.noise_levels(normal)).exp()

    # What becomes of it

    def components(self, plain: bool = False) -> dict[str, nn.Module]:
        """``unet``, and ``condition_encoder`` where there is one."""
        found = {"unet": without_adapter(self.unet) if plain else self.unet}
        return found if self.condition_encoder is None else {**found, "condition_encoder": self.condition_encoder}

    def to_pipeline(self, name: str, **others) -> DiffusionPipeline:
        """A pipeline around the networks, which are shared with it."""
        own = {"objective": self.objective.to_config(), "student": self.student}
        return getattr(attndiff, name)(**self.components(), scheduler=self.make_scheduler(), **own, **others)

    def add_adapter(self, rank: int) -> None:
        """Freeze all weights and train low-rank adapters beside those of the network's attention."""
        self.requires_grad_(False)
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED))

    def save_adapter(self, folder: Path) -> None:
        """Write the network's adapter, if it has one."""
        if has_adapter(self.unet):
            self.unet.save_lora_adapter(folder)

    @property
    def size_multiple(self) -> int:
        """Of the network's heights and widths."""
        return self.unet.size_multiple

    @property
    def looks_at_words(self) -> bool:
        """Whether a level of the network attends to the condition's tokens."""
        return any(level.get("cross_attention") for level in self.unet.config.levels)


def condition_of(encoder: ConditionEncoder | None, batch: Batch) -> Condition:
    """What an encoder makes of a batch, dropped where the batch says so; nothing without an encoder."""
    if encoder is None:
        return Condition()
    streams = {key: batch[key] for key in CONDITION_KEYS if key in batch}
    return Condition.encoded(encoder, **streams, drop=batch.get("drop"))


def mean_of_samples(x: torch.Tensor) -> torch.Tensor:
    """``(B, ...)`` as a mean over everything in a sample, ``(B,)``."""
    return x.mean(dim=tuple(range(1, x.ndim)))


def has_adapter(network: nn.Module) -> bool:
    """Whether a network has low-rank adapters."""
    return bool(getattr(network, "peft_config", None))


def without_adapter(network: nn.Module) -> nn.Module:
    """A copy of the network with its adapter added to its weights; without one, itself."""
    if not has_adapter(network):
        return network
    plain = copy.deepcopy(network)
    plain.fuse_lora()
    plain = recurse_remove_peft_layers(plain)
    del plain.peft_config
    return plain
