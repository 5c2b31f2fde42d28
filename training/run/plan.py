"""What a run will cost, counted and measured before it starts."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from attndiff.clock import Clock
from attndiff.training.batches import DrawnDataset, commonest_shape
from attndiff.training.config import OptimConfig, TrainConfig
from attndiff.training.heads import Head
from attndiff.training.optim import make_optimizers, set_lr
from attndiff.training.parallel.layout import ParallelLayout
from attndiff.training.parts.learning import EXAMPLES

UNTIMED = 1.15  # a step in a run over the least that it took alone: averages, loading, other programs
CALLS = 34  # forward passes of a sample, by a pipeline's own solver with guidance
MEASURED = 256  # samples of a measured distance
WRITTEN = 50 * 2**20  # bytes a second that are hashed, written and on the disk


@dataclass
class RunPlan:
    """A run in numbers.

    Args:
        parameters: Trainable parameters.
        shape: Height and width that most images have.
        forward_flops: FLOPs of the forward pass of one such image (2 per multiply-add).
        pass_seconds: Measured seconds of one step's forward and backward passes.
        optimizer_seconds: And of its optimizers; 0 where moments are shared out, which may not fit here as a whole.
        memory_bytes: Weights, gradients, optimizer moments and averages in float32; activations come on top.
        steps: Of the run, as far as is known before step 1.
    """

    parameters: int
    shape: tuple[int, int]
    forward_flops: float
    pass_seconds: float
    optimizer_seconds: float
    memory_bytes: int
    steps: int = 0

    @property
    def step_seconds(self) -> float:
        """Of a whole step."""
        return self.pass_seconds + self.optimizer_seconds

    def lines(self, config: TrainConfig, images: int) -> list[str]:
        """The plan as text."""
        seen = self.steps * config.optim.batch_size
        data = (
            f"a stream, {seen} images of it"
            if config.data.stream
            else f"{images} images, {seen / images:.1f} visits each"
        )
        height, width = self.shape
        return [
            f"parameters      {self.parameters / 1e6:.2f} M",
            f"forward         {self.forward_flops / 1e9:.3f} GFLOP an input of {width}x{height}",
            f"state           {self.memory_bytes / 2**20:.0f} MiB for weights, gradients, moments and averages",
            f"data            {data}",
            f"steps           {self.steps} of {config.optim.batch_size} images, {self.step_seconds:.3f} s each",
            self._time(config.optim),
        ]

    def _time(self, optim: OptimConfig) -> str:
        if optim.minutes is None:
            return f"time            about {self.steps * self.step_seconds / 60:.1f} min"
        return f"time            {optim.minutes:.3g} min, to which the number of steps is corrected as the run goes"

    def chores(self, config: TrainConfig, held_out: int, levels: int) -> dict[str, float]:
        """Estimated seconds of what a run does beside its steps, by name, from those of a forward pass.

        Args:
            config: The settings.
            held_out: Images of a validation.
            levels: At which each is measured.
        """
        forward = self.pass_seconds / (3 * config.optim.batch_size)  # a third of forward and backward, of one image
        prompts = len(config.log.prompts) or EXAMPLES
        validated = levels * held_out  # by each of the raw and averaged weights
        return {
            "validate": forward * validated * (1 + len(config.optim.ema)),
            "sample": forward * CALLS * 2 * prompts,
            "evaluate": forward * CALLS * MEASURED,
            "checkpoint": self.memory_bytes / WRITTEN,
            "package": forward * (validated + CALLS * (prompts + 1)) + self.memory_bytes / WRITTEN,
        }


def count_flops(model: Head, sample: dict[str, torch.Tensor]) -> float:
    """FLOPs of the forward pass of one sample (a batch of one)."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(sample)
    return float(counter.get_total_flops())


def make_plan(
    model: Head,
    dataset: DrawnDataset,
    config: TrainConfig,
    accelerator: Accelerator,
    layout: ParallelLayout,
    clock: Clock = time.perf_counter,
) -> RunPlan:
    """Count and time; weights stay as they are, gradients are cleared again."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    one = first_samples(dataset, 1, accelerator)
    passes = time_passes(model, dataset, accelerator, layout.micro_batch, clock)
    passes *= layout.accumulation(config.optim.batch_size)
    optimizers = 0.0 if layout.shared_out else time_optimizers(model, config.optim, clock)
    copies = 4 + len(config.optim.ema)
    shape = tuple(one["images"].shape[-2:])
    forward = count_flops(model, one)
    return RunPlan(trainable, shape, forward, passes, optimizers, 4 * copies * trainable, config.optim.steps or 0)


def now(clock: Clock) -> float:
    """The time at which the device has done all that it was asked to."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return clock()


def time_passes(
    model: Head, dataset: DrawnDataset, accelerator: Accelerator, micro_batch: int, clock: Clock, repeats: int = 3
) -> float:
    """Seconds of one micro-batch's forward and backward passes on this process, after a warm-up."""
    times = []
    try:
        for _ in range(1 + repeats):
            start = now(clock)
            passes(model, first_samples(dataset, micro_batch, accelerator), accelerator)
            times.append(now(clock) - start)
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    return min(times[1:])  # the least: whatever else the machine did meanwhile only adds


def time_optimizers(model: Head, config: OptimConfig, clock: Clock) -> float:
    """Seconds of an optimizer step that changes nothing: gradients and rates are zero."""
    optimizers = make_optimizers(model, config)
    set_lr(optimizers, 0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    times = []
    try:
        for _ in range(3):
            start = now(clock)
            for optimizer in optimizers:
                optimizer.step()
            times.append(now(clock) - start)
    finally:
        model.zero_grad(set_to_none=True)
    return min(times[1:])


def first_samples(dataset: DrawnDataset, count: int, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """A batch of the first samples of the commonest shape, from the beginning again where there are fewer."""
    alike = np.resize(commonest_shape(dataset), count).tolist()
    batch = default_collate([dataset[(i, 0)] for i in alike])
    return dataset.conditioning.embed({key: value.to(accelerator.device) for key, value in batch.items()})


def passes(model: Head, batch: dict[str, torch.Tensor], accelerator: Accelerator) -> None:
    """Forward and backward pass of a batch; gradients are added to those that are there."""
    with accelerator.autocast():
        loss = model(batch).mean()
    loss.backward()


def saved_bytes(model: Head, batch: dict[str, torch.Tensor]) -> int:
    """Memory that a forward pass keeps for the backward pass: every storage once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(batch)
    total = sum(kept.values())
    del loss  # held until here, so that no two storages share an address
    return total
