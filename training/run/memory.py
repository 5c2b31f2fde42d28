"""Micro-batches that fit into memory: the largest is found before step 1, and lowered if memory runs out later."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from filelock import FileLock

from attndiff.clock import Clock
from attndiff.errors import UserError
from attndiff.training.batches import DrawnDataset
from attndiff.training.config import TrainConfig
from attndiff.training.heads import Head
from attndiff.training.parallel.layout import ParallelLayout, smaller
from attndiff.training.parallel.processes import anyone
from attndiff.training.run.plan import RunPlan, make_plan
from attndiff.training.state.checkpoint import RunState, newest_checkpoint, read_layout, save_checkpoint

LOCK = "memory.lock"


def plan_within_memory(
    head: Head,
    images: DrawnDataset,
    config: TrainConfig,
    accelerator: Accelerator,
    layout: ParallelLayout,
    clock: Clock = time.perf_counter,
) -> tuple[RunPlan, ParallelLayout]:
    """The plan of the largest micro-batch, no larger than the layout's, that every process has the memory for."""
    while True:
        plan = None
        try:
            plan = make_plan(head, images, config, accelerator, layout, clock)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        if not anyone(accelerator, plan is None):
            return plan, layout
        layout = lowered(layout, config.optim.batch_size, accelerator.print)


def lowered(layout: ParallelLayout, batch_size: int, say: Callable[[str], None]) -> ParallelLayout:
    """The layout with the next smaller micro-batch.

    Raises:
        UserError: If there is none.
    """
    micro_batch = smaller(batch_size // layout.processes, layout.micro_batch)
    lower = replace(layout, micro_batch=micro_batch, lowered=True)
    clear_device_cache(garbage_collection=True)
    say(
        f"memory ran out with micro-batches of {layout.micro_batch}; going on with {micro_batch}, "
        f"{lower.accumulation(batch_size)} to a step."
    )
    return lower


def save_lowered(out: Path, state: RunState, keep: int) -> None:
    """Save a checkpoint that says which micro-batch fits; any process may be the one to do so.

    Raises:
        UserError: If there are several processes: the others wait for the gradients of the one that failed, so that the
            run has to be started again.
    """
    micro_batch = state.layout.micro_batch
    if state.layout.shared_out:
        raise UserError(
            f"memory ran out in step {state.step + 1}; set optim.micro_batch={micro_batch} and add "
            "--elastic to go on from the last checkpoint."
        )
    with FileLock(out / LOCK):
        newest, _ = newest_checkpoint(out / "checkpoints")
        if newest is None or read_layout(newest) != state.layout:
            save_checkpoint(out / "checkpoints", state, keep)
    if state.layout.processes > 1:
        raise UserError(
            f"memory ran out in step {state.step + 1}; everything is saved. Run the same command again, which has "
            f"micro-batches of {micro_batch}; torchrun --max-restarts 3 does so by itself, if "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set (pytorch issue 135712)."
        )
