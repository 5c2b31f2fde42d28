"""Where a step went wrong: which samples, at which noise, and the first layer whose output is no number any more."""

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from attndiff.training.batches import Batch
from attndiff.training.heads import Head
from attndiff.training.parallel.sharding import reshard

SHOWN = 8  # samples that a report names


@dataclass(frozen=True)
class MicroBatchResult:
    """A micro-batch that was passed.

    Args:
        batch: As it was drawn.
        errors: Loss of each sample, ``(B,)``.
    """

    batch: Batch
    errors: torch.Tensor

    @property
    def finite(self) -> bool:
        """Whether all of its errors are."""
        return bool(self.errors.isfinite().all())


def worst_samples(accelerator: Accelerator, head: Head, seen: list[MicroBatchResult]) -> str:
    """The samples of a step whose errors are not finite, or else the largest; all processes ask together."""
    device = accelerator.device
    ids = torch.cat([s.batch["ids"] for s in seen]).to(device)
    noise = head.noise_levels(torch.cat([s.batch["normal"] for s in seen]).to(device))
    columns = [accelerator.gather(x).tolist() for x in (ids, noise, torch.cat([s.errors for s in seen]))]
    rows = list(zip(*columns, strict=True))
    bad = [row for row in rows if not math.isfinite(row[2])]
    shown = bad or sorted(rows, key=lambda row: -row[2])
    named = ", ".join(
        f"{sample} (noise level {level:.3g}, error {error:.3g})" for sample, level, error in shown[:SHOWN]
    )
    return f"{len(bad)} of {len(rows)} samples not finite; the worst: {named}"


def first_not_finite(module: nn.Module, batch: Batch) -> str | None:
    """The first layer of a forward pass whose output holds a NaN or an infinity; None if none does.

    A layer is a module of ``module``, and one inside another comes first. Hooks are not compiled, so that compiled code
    is left aside. Of a sharded module, all processes pass together, whatever each of them finds.
    """
    found = [f"the batch's {name}" for name, value in batch.items() if not value.isfinite().all()]

    def looking(name: str):
        def hook(_module, _inputs, output) -> None:
            if not found and torch.is_tensor(output) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [part.register_forward_hook(looking(name)) for name, part in module.named_modules() if name]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            errors = module(batch)
    finally:
        for handle in handles:
            handle.remove()
        reshard(module)
    return found[0] if found else None if errors.isfinite().all() else "the loss"
