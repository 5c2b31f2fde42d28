"""Ways to die, and ways to get it wrong: what is changed in the process of a run."""

import os
import random
import shutil
import signal
from pathlib import Path

import torch

from attndiff.data import image_set
from attndiff.training import batches
from attndiff.training.run import loop
from attndiff.training.run.loop import Trainer
from attndiff.training.run.pace import Pace
from attndiff.training.state import checkpoint, learned
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.checkpoint import save_checkpoint

OPERATIONS = [  # of a commit on the disk: who does it, under which name
    (checkpoint.Path, "mkdir"),
    (checkpoint, "save_file"),
    (checkpoint.Path, "write_text"),
    (os, "fsync"),
    (checkpoint.Path, "rename"),
    (checkpoint.shutil, "rmtree"),
]
LEARNING = [  # of writing what was learned from the data
    (learned.Path, "mkdir"),
    (learned.Path, "write_text"),
    (learned.PreTrainedTokenizerFast, "save_pretrained"),
    (os, "fsync"),
    (learned.Path, "rename"),
]


def decode_late() -> None:
    """Have images decoded at their first visit, by loader workers that are killed with the run."""
    image_set.CACHE_BYTES = 0


def die_in(writer: str, operations: list, operation: int, call: int = 1) -> None:
    """Make this process kill itself right before an operation of a call of a function that the loop writes with."""
    state = {"calls": 0, "done": 0}

    def watched(owner, name: str) -> None:
        inner = getattr(owner, name)

        def with_death(*arguments, **keywords):
            if state["calls"] == call:
                if state["done"] == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                state["done"] += 1
            return inner(*arguments, **keywords)

        setattr(owner, name, with_death)

    write = getattr(loop, writer)

    def counted(*arguments):
        state["calls"] += 1
        try:
            return write(*arguments)
        finally:
            state["calls"] += state["calls"] == call  # what others write later is not of this call

    setattr(loop, writer, counted)
    for owner, name in operations:
        watched(owner, name)


def erratic_clock() -> None:
    """Have a run's clock go on by itself at every look, at a speed that changes now and then and in each process."""
    make, rng, state = Trainer.__init__, random.Random(os.getpid()), {"now": 0.0, "speed": 1.0}

    def clock() -> float:
        if rng.random() < 0.1:
            state["speed"] = rng.choice([0.3, 1.0, 3.0])
        state["now"] += state["speed"] * rng.uniform(0.5, 1)
        return state["now"]

    Trainer.__init__ = lambda self, config: make(self, config, clock=clock)


def no_corrections() -> None:
    Pace.corrected = lambda self, step, length: None


def no_rename() -> None:
    def save(root: Path, state, keep: int, main: bool) -> Path:
        target = root / f"step_{state.step:08d}"
        for old in checkpoint.checkpoints(root):
            os.replace(old, target)  # only the name: what it holds is overwritten below
        target.mkdir(parents=True, exist_ok=True)
        (target / checkpoint.MANIFEST).unlink(missing_ok=True)
        checkpoint._write(target, state, state.tensors())
        return target

    loop.save_checkpoint = save


def prune_first() -> None:
    def save(root: Path, state, keep: int, main: bool) -> Path:
        for old in checkpoint.checkpoints(root):
            shutil.rmtree(old)
        return save_checkpoint(root, state, keep)

    loop.save_checkpoint = save


def ema_not_restored() -> None:
    PowerEMA.load_state_dict = lambda self, sigma_rel, state: None


def global_random_state() -> None:
    inner = batches.DrawnDataset.sample

    def sample(self, *arguments):
        drawn = inner(self, *arguments)
        return {**drawn, "noise": torch.randn(drawn["noise"].shape)}

    batches.DrawnDataset.sample = sample


CONTROLS = {
    "no rename": no_rename,
    "prune first": prune_first,
    "EMA not restored": ema_not_restored,
    "global random state": global_random_state,
}
