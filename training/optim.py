"""Muon for the matrices, AdamW for the rest, and one learning-rate curve for both."""

import torch
from torch import nn

from attndiff.training.config import OptimConfig
from attndiff.training.muon import Muon
from attndiff.training.state.length import Length

ADVERSARY = {"lr": 2e-3, "betas": (0.0, 0.9), "weight_decay": 0.0}  # of a discriminator (arXiv 1704.00028, Alg. 1)


def make_optimizers(module: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Optimizers over the trainable parameters.

    Muon (Jordan et al. 2024, arXiv 2502.16982 for its scale) takes the weight matrices of the blocks; embeddings,
    modulation, convolutions and vectors stay with AdamW. A student's discriminator has a constant rate of its own: at
    that of the student, which falls to zero, it hardly learned to tell images apart.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    named = [(name, p) for name, p in trained if not name.startswith("adversary.")]
    by_muon = {name for name, p in named if config.optimizer == "muon" and is_matrix(name, p)}
    optimizers = []
    if by_muon:
        groups = groups_of([pair for pair in named if pair[0] in by_muon], config.lr, config.encoder_rate)
        optimizers.append(Muon(groups, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    if len(by_muon) < len(named):
        lr = config.adamw_lr if config.optimizer == "muon" else config.lr
        groups = groups_of([pair for pair in named if pair[0] not in by_muon], lr, config.encoder_rate)
        optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=config.weight_decay))
    if len(named) < len(trained):
        judging = {"params": [p for name, p in trained if name.startswith("adversary.")], "constant": True}
        optimizers.append(torch.optim.AdamW([judging], **ADVERSARY))
    return optimizers


def groups_of(named: list[tuple[str, nn.Parameter]], lr: float, encoder_rate: float | None) -> list[dict]:
    """Parameters as one group, or those of the condition's encoder as another where they have a rate of their own."""
    if encoder_rate in (None, 1):
        return [{"params": [p for _, p in named]}]
    of_encoder = [p for name, p in named if name.startswith("condition_encoder.")]
    rest = [p for name, p in named if not name.startswith("condition_encoder.")]
    groups = [{"params": rest, "lr": lr}, {"params": of_encoder, "lr": lr * encoder_rate}]
    return [group for group in groups if group["params"]]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a block's weight matrix."""
    return parameter.ndim == 2 and not any(part in name for part in ("embedding", "modulation"))


def lr_factor(step: int, length: Length, config: OptimConfig) -> float:
    """Share of the full learning rate at a step counted from 0: linear warm-up, constant, linear decay to zero."""
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    return warm * length.fall(step, config.decay)


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's rate to ``factor`` of its full one, but for those that are constant."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if group.get("constant"):
                continue
            group.setdefault("full_lr", group["lr"])
            group["lr"] = group["full_lr"] * factor
