"""The batch-size finder: how many images a process should handle at once.

`optim.batch_size`, on which the result of a run depends, stays; the sizes tried are those that divide it, each at
least twice the one before. A larger micro-batch is faster until the device is busy and only costs memory from there.
Timed are forward and backward passes; loading costs the same for every size.
"""

import math
from dataclasses import dataclass

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from rich.table import Table
from torch.utils.benchmark import Timer

from attndiff.errors import UserError
from attndiff.training.config import TrainConfig
from attndiff.training.optim import make_optimizers
from attndiff.training.run.loop import Trainer
from attndiff.training.run.plan import first_samples, passes, saved_bytes
from attndiff.training.run.progress import progress_bar
from attndiff.training.state.averages import PowerEMA

TOLERANCE = 0.05  # of the best throughput
SECONDS = 0.5  # of measuring a size, at least
# Of the free memory; the gradients of the activations and temporary tensors come on top of what is estimated.
MEMORY_SHARE = 0.5


@dataclass
class Trial:
    """A size that was tried.

    Args:
        size: Images a process handles at once.
        images_per_second: Of all processes together in forward and backward passes; 0 if the size does not fit.
        activations: Bytes that the forward pass keeps for the backward pass; of a size that was not run, estimated.
    """

    size: int
    images_per_second: float
    activations: float


@dataclass
class BatchSizes:
    """The sizes in the order in which they were tried.

    Args:
        trials: All that fit, and the first that does not, if any.
        share: Images of a step that each process handles.
    """

    trials: list[Trial]
    share: int

    def suggestion(self) -> int:
        """The smallest size within `TOLERANCE` of the best throughput."""
        best = max(trial.images_per_second for trial in self.trials)
        return next(trial.size for trial in self.trials if trial.images_per_second >= (1 - TOLERANCE) * best)

    def table(self) -> Table:
        """The sizes with their throughput."""
        table = Table("optim.micro_batch", "passes a step", "images/s", "activations")
        for column in table.columns:
            column.justify = "right"
        for trial in self.trials:
            rate = f"{trial.images_per_second:.1f}" if trial.images_per_second else "does not fit"
            memory = f"{trial.activations / 2**20:.0f} MiB"
            table.add_row(str(trial.size), f"{self.share // trial.size}", rate, memory)
        return table

    def lines(self) -> list[str]:
        """The suggestion as text."""
        size = self.suggestion()
        return [
            f"suggestion:  optim.micro_batch {size}, the smallest within {TOLERANCE:.0%} of the best throughput",
            f"to use it:   optim.micro_batch={size}",
        ]


def finder_config(config: TrainConfig) -> TrainConfig:
    """The settings of the finder for a run: its own, without the size that is looked for."""
    return config.model_copy(update={"optim": config.optim.model_copy(update={"micro_batch": None})})


def try_batch_sizes(trainer: Trainer) -> BatchSizes:
    """Measure growing micro-batches until one does not fit or is the whole batch; nothing is compiled.

    On CPU, where running out of memory would end other programs, a size that is estimated not to fit is not run.

    Args:
        trainer: Made from `finder_config`; its weights are of no use afterwards.

    Raises:
        UserError: If not even one image fits.
    """
    model, optim = trainer.parts.model.train(), trainer.config.optim
    share = optim.batch_size // trainer.accelerator.num_processes
    sizes = candidate_sizes(share)
    trials: list[Trial] = []
    # What a run keeps beside weights and gradients.
    optimizers, _averages = make_optimizers(model, optim), PowerEMA(model, tuple(optim.ema))
    with progress_bar(len(sizes), trainer.accelerator.is_main_process) as bar:
        for size in sizes:
            trials.append(_try(trainer, optimizers, size, trials[-1] if trials else None))
            if not trials[-1].images_per_second:
                break
            bar.set_postfix_str(f"micro_batch {size}: {trials[-1].images_per_second:.1f} images/s", False)
            bar.update()
    if not trials[0].images_per_second:
        raise UserError(
            "not even one image fits into memory; set optim.gradient_checkpointing=true, or choose a smaller "
            "model.preset or data.size."
        )
    return BatchSizes(trials, share)


def candidate_sizes(share: int) -> list[int]:
    """Divisors of ``share``, from 1 to itself, each the smallest that is at least twice the one before."""
    sizes = [1]
    for size in range(2, share + 1):
        if share % size == 0 and size >= 2 * sizes[-1]:
            sizes.append(size)
    return sizes


def _try(trainer: Trainer, optimizers: list[torch.optim.Optimizer], size: int, before: Trial | None) -> Trial:
    """Measure one size; every process comes to the same result.

    The optimizers' moments, which their first step makes, and the temporary tensors of a step have to fit, too.
    """
    accelerator = trainer.accelerator
    activations = before.activations * size / before.size if before else 0
    seconds = math.inf
    if accelerator.device.type != "cpu" or activations <= MEMORY_SHARE * free_memory() / accelerator.num_processes:
        try:
            batch = first_samples(trainer.train_set, size, accelerator)
            activations = activation_bytes(trainer, batch)
            measured = time_passes(trainer, batch)
            for optimizer in optimizers:
                optimizer.step()
            seconds = measured
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
    clear_device_cache(garbage_collection=True)
    slowest = accelerator.gather(torch.tensor([seconds], device=accelerator.device)).max().item()
    return Trial(size, size * accelerator.num_processes / slowest, activations)


def time_passes(trainer: Trainer, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of a batch's forward and backward pass, the median of as many as fill `SECONDS`."""
    timed = {"passes": passes, "model": trainer.parts.model, "batch": batch, "accelerator": trainer.accelerator}
    timer = Timer("passes(model, batch, accelerator)", globals=timed, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS).median


def activation_bytes(trainer: Trainer, batch: dict[str, torch.Tensor]) -> int:
    """Memory that a forward pass keeps for the backward pass."""
    with trainer.accelerator.autocast():
        return saved_bytes(trainer.parts.model, batch)


def free_memory() -> int:
    """Bytes of main memory that programs can still take without swapping."""
    return psutil.virtual_memory().available
