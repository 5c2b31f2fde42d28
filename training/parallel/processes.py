"""The processes of a run: how they come together on which devices, and how they come to an end."""

import os
import time

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, patch_environment

from attndiff.device import cpu_is_faster_in_bfloat16, describe_slow_bfloat16
from attndiff.errors import UserError
from attndiff.training.batches import WORKER_TIMEOUT_S
from attndiff.training.config import TrainConfig
from attndiff.training.settings.trackers import check_installed


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the devices and processes, made anew for every run of this Python process.

    Raises:
        UserError: If fewer processes came together than the launcher started, or the tracker is not installed.
    """
    check_installed(config.log.tracker)
    AcceleratorState._reset_state()
    # Who shares what out is our own affair (`sharding`, `zero`): Accelerate does so on GPUs only.
    with patch_environment(ACCELERATE_USE_FSDP="false", ACCELERATE_USE_DEEPSPEED="false"):
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=resolve_precision(config),
            log_with=config.log.tracker,
            project_dir=config.out,
        )
    # On CPU, Accelerate can come up as several lone processes, each of which would write the same folder.
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != asked:
        raise UserError(f"the launcher started {asked} processes, but {accelerator.num_processes} came together.")
    return accelerator


def resolve_precision(config: TrainConfig) -> str:
    """Accelerate's name of the precision; ``auto`` takes bfloat16 where the hardware is faster in it."""
    if config.optim.precision != "auto":
        return {"fp32": "no", "bf16": "bf16"}[config.optim.precision]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if cpu_is_faster_in_bfloat16() else "no"


def precision_notes(config: TrainConfig, device: torch.device) -> list[str]:
    """What is to be said of the precision that was asked for, a sentence each."""
    slow = describe_slow_bfloat16(device.type) if config.optim.precision == "bf16" else None
    return [f"optim.precision=bf16: {slow}"] if slow else []


def anyone(accelerator: Accelerator, what: bool) -> bool:
    """Whether something is so on any process, the same answer on all; a process that is alone waits for nothing."""
    if accelerator.num_processes == 1:
        return what
    return bool(accelerator.reduce(torch.tensor(int(what), device=accelerator.device), "sum").item())


def agreed(accelerator: Accelerator, number: int) -> int:
    """The main process's number, on all; a process that is alone waits for nothing."""
    if accelerator.num_processes == 1:
        return number
    return int(broadcast(torch.tensor(number, device=accelerator.device)).item())


def ended_early(error: RuntimeError) -> str | None:
    """Which helper of a run an error says has come to an end, as a sentence; None if it is about something else."""
    text = " ".join(str(error).split())
    if "DataLoader" in text:
        return f"a loader worker died or gave nothing for {WORKER_TIMEOUT_S} s ({text})"
    if isinstance(error, torch.distributed.DistBackendError) or "gloo" in text.lower():
        return "another process of the run came to an end"
    return None


def leave(accelerator: Accelerator) -> None:
    """Wait for all processes, then close the trackers and the process group."""
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # gloo's thread needs the GIL to let go of the barrier just passed, and the end of the group waits for that
        # thread without giving the GIL up (torch 2.13): a deadlock, unless the thread has had time.
        time.sleep(0.5)
    accelerator.end_training()
