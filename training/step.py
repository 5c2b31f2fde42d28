"""One step of training: the passes over its micro-batches, and the optimizers' step if all numbers are finite."""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from attndiff.errors import UserError
from attndiff.training.build import Parts
from attndiff.training.checkpoint import RunState
from attndiff.training.config import TrainConfig
from attndiff.training.sharding import whole

Batch = dict[str, torch.Tensor]


class NonFiniteError(UserError):
    """A loss or gradient that is no number any more; the step was not taken."""


class Stepper:
    """Takes the steps of a run, in order.

    Args:
        accelerator: For the device, precision and the other processes.
        parts: What is trained.
        config: The settings.
        model: What is called: ``state.module`` itself, or what the accelerator wrapped it in.
        batches: This process's micro-batches, from the first step on.
        accumulation: Micro-batches of a step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        parts: Parts,
        config: TrainConfig,
        model: nn.Module,
        batches: Iterator[Batch],
        accumulation: int,
    ):
        self.accelerator, self.parts, self.config, self.model = accelerator, parts, config, model
        self.batches, self.accumulation = batches, accumulation

    def close(self) -> None:
        """Let go of the batches: loader workers end with their iterator, and Python waits for them at its end."""
        self.batches = iter(())

    def take(self, state: RunState, step: int) -> float:
        """One step, counted from 0; the mean loss of its global batch.

        Raises:
            NonFiniteError: If the loss or a gradient is not finite; then no process takes the step.
            RuntimeError: If memory runs out in the passes; there are no gradients then, and it may be tried again.
        """
        state.module.set_progress(step / self.config.optim.steps)
        total, seen = self._pass_all(step)
        norm = whole(self.accelerator.clip_grad_norm_(state.module.parameters(), self.config.optim.clip))
        loss = self.accelerator.reduce(total, "mean").item()
        # The norm covers synchronised gradients and the loss is reduced: every process decides alike.
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteError(where(state.module, step, loss, float(norm), seen))
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss

    def _pass_all(self, step: int) -> tuple[torch.Tensor, list[Batch]]:
        """Forward and backward over all micro-batches: the loss of this process's share, and what was seen."""
        total = torch.zeros((), device=self.accelerator.device)
        seen: list[Batch] = []
        try:
            for micro in range(self.accumulation):
                batch = {key: value.to(self.accelerator.device) for key, value in next(self.batches).items()}
                batch = self.parts.conditioning.embed(batch)
                self._seed_dropout(step, micro)
                total += self._pass(batch, last=micro == self.accumulation - 1)
                seen.append({"ids": batch["ids"], "level": batch["level"]})
        except RuntimeError:
            for parameter in self.model.parameters():
                parameter.grad = None
            raise
        return total, seen

    def _pass(self, batch: Batch, last: bool) -> torch.Tensor:
        """Forward and backward of a micro-batch; only the last one waits for the other processes."""
        with self.accelerator.no_sync(self.model) if not last else nullcontext():
            with self.accelerator.autocast():
                errors = self.model(batch)
            loss = errors.mean() / self.accumulation
            self.accelerator.backward(loss)
        return loss.detach()

    def _seed_dropout(self, step: int, micro: int) -> None:
        """Make dropout inside the network follow from the step, so that a resumed run drops what it would have."""
        if self.parts.model.unet.config.dropout:
            key = [self.config.seed, step, micro, self.accelerator.process_index]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def where(module: nn.Module, step: int, loss: float, norm: float, seen: list[Batch]) -> str:
    """Where numbers ended, in one sentence."""
    ids = torch.cat([s["ids"] for s in seen]).tolist()
    worst = torch.cat([s["level"] for s in seen]).abs().max().item()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not whole(gradient).isfinite().all()]
    return (
        f"step {step + 1}: loss {loss}, gradient norm {norm}, first non-finite gradient in "
        f"{bad[0] if bad else 'none'}, largest noise draw {worst:.2f}, samples {ids[:16]}"
    )
