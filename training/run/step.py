"""One step of training: the passes over its micro-batches, and the optimizers' step if the gradients are fit for it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from attndiff.errors import UserError
from attndiff.training.batches import Batch
from attndiff.training.build import Parts
from attndiff.training.config import TrainConfig
from attndiff.training.parallel.gradients import Gradients
from attndiff.training.run.diagnosis import MicroBatchResult, first_not_finite, worst_samples
from attndiff.training.state.checkpoint import RunState


class SkippedStep(UserError):
    """A step that was not taken, since its loss or gradient is no number any more or its gradient is too large.

    Args:
        what: Where, with the figures and samples.
        advice: What to do if it goes on like this.
    """

    def __init__(self, what: str, advice: str):
        super().__init__(what)
        self.advice = advice


@dataclass(frozen=True)
class StepResult:
    """A step that was taken.

    Args:
        loss: Mean of its global batch.
        gradient_norm: Of all gradients together, before clipping.
    """

    loss: float
    gradient_norm: float


class Stepper:
    """Takes the steps of a run, in order.

    Args:
        accelerator: For the device, precision and the other processes.
        parts: What is trained.
        config: The settings.
        gradients: Those of the model that is called.
        batches: This process's micro-batches, from the first step on.
        accumulation: Micro-batches of a step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        parts: Parts,
        config: TrainConfig,
        gradients: Gradients,
        batches: Iterator[Batch],
        accumulation: int,
    ):
        self.accelerator, self.parts, self.config, self.gradients = accelerator, parts, config, gradients
        self.batches, self.accumulation = batches, accumulation

    def close(self) -> None:
        """Let go of the batches: loader workers end with their iterator, and Python waits for them at its end."""
        self.batches = iter(())

    def take(self, state: RunState, step: int) -> StepResult:
        """One step, counted from 0.

        Raises:
            SkippedStep: If the loss or a gradient is not finite, or the gradient's norm is above ``optim.skip_above``;
                then no process takes the step.
            RuntimeError: If memory runs out in the passes; there are no gradients then, and it may be tried again.
        """
        state.module.set_progress(state.length.share(step))
        total, seen = self._pass_all(step)
        norm = self.gradients.clipped_norm()
        taken = StepResult(*together(self.accelerator.reduce(total, "mean"), norm))
        # The norm covers synchronised gradients and the loss is reduced: every process decides alike.
        if not math.isfinite(taken.loss) or not math.isfinite(taken.gradient_norm):
            what = self._report(step, taken, seen) + self._where(state, step, seen)
            self._skip(what, "lower optim.lr or set optim.precision=fp32")
        limit = self.config.optim.skip_above
        if limit is not None and taken.gradient_norm > limit:
            self._skip(f"{self._report(step, taken, seen)}; above {limit:g}", "raise optim.skip_above")
        self.gradients.apply()
        return taken

    def _pass_all(self, step: int) -> tuple[torch.Tensor, list[MicroBatchResult]]:
        """Forward and backward over all micro-batches: the loss of this process's share, and what was seen."""
        total = torch.zeros((), device=self.accelerator.device)
        seen: list[MicroBatchResult] = []
        try:
            for micro in range(self.accumulation):
                drawn = next(self.batches)
                errors = self._pass(self._ready(drawn, step, micro), last=micro == self.accumulation - 1)
                total += errors.mean() / self.accumulation
                seen.append(MicroBatchResult(drawn, errors))
        except RuntimeError:
            self.gradients.drop()
            raise
        return total, seen

    def _ready(self, drawn: Batch, step: int, micro: int) -> Batch:
        """A micro-batch on the device, embedded, with dropout seeded for it."""
        device = self.accelerator.device
        pinned = device.type == "cuda"  # by the loader: the copy goes on beside what the device computes
        batch = {key: value.to(device, non_blocking=pinned) for key, value in drawn.items()}
        batch = self.parts.conditioning.embed(batch)
        self._seed_dropout(step, micro)
        return batch

    def _pass(self, batch: Batch, last: bool) -> torch.Tensor:
        """Forward and backward of a micro-batch: the errors of its samples, ``(B,)``."""
        with self.gradients.passing(last):
            with self.accelerator.autocast():
                errors = self.gradients.model(batch)
            self.gradients.backward(errors.mean() / self.accumulation)
        return errors.detach()

    def _seed_dropout(self, step: int, micro: int) -> None:
        """Make dropout inside the network follow from the step, so that a resumed run drops what it would have."""
        if self.parts.model.has_dropout:
            key = [self.config.seed, step, micro, self.accelerator.process_index]
            torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    # A step that is not taken; all processes come here together

    def _skip(self, what: str, advice: str) -> NoReturn:
        self.gradients.drop()
        raise SkippedStep(what, advice)

    def _report(self, step: int, taken: StepResult, seen: list[MicroBatchResult]) -> str:
        samples = worst_samples(self.accelerator, self.parts.model, seen)
        return f"step {step + 1}: loss {taken.loss:.4g}, gradient norm {taken.gradient_norm:.4g}; {samples}"

    def _where(self, state: RunState, step: int, seen: list[MicroBatchResult]) -> str:
        """The first layer that is not finite, on whichever process, found by passing one micro-batch again."""
        micro = next((i for i, s in enumerate(seen) if not s.finite), 0)
        with self.accelerator.autocast():
            layer = first_not_finite(state.module, self._ready(seen[micro].batch, step, micro))
        layer = next((found for found in gather_object([layer]) if found), None)
        if layer:
            return f"; first non-finite output in {layer}"
        return f"; finite but for gradients, first in {self.gradients.not_finite(state.module)}"


def together(loss: torch.Tensor, norm: torch.Tensor) -> list[float]:
    """Two numbers of a device in one transfer: each of them would wait for it anew."""
    return torch.stack([loss, norm.to(loss.device)]).tolist()
