"""The progress line: images per second, loss, learning rate, time left and achieved FLOP/s; the log beside it."""

import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from attndiff.clock import Clock
from attndiff.training.run.step import StepResult
from attndiff.training.state.checkpoint import sync

PLANNED = "planned_steps"
# What entries of the log have that are neither steps nor validations.
OTHER = {"distances", "skipped", "checkpoint_seconds", PLANNED}


def progress_bar(total: int, main: bool, start: int = 0) -> tqdm:
    """A bar over steps from ``start`` to ``total``, shown by the first process only."""
    # Without a terminal a line every ten seconds is enough.
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(total=total, initial=start, unit="step", mininterval=interval, disable=not main, dynamic_ncols=True)


class Progress:
    """Shows and stores how a run goes; silent on all processes but the first.

    Args:
        total: Steps of the whole run.
        start: Step at which this process begins.
        batch_size: Images a step.
        flops_per_image: Forward and backward FLOPs of an image.
        log: JSON-lines file, appended to; a line that a crash cut short is taken out, and after a resume the steps
            since the checkpoint are logged again.
        main: Whether this process shows anything.
        clock: For the rates.
    """

    def __init__(
        self,
        total: int,
        start: int,
        batch_size: int,
        flops_per_image: float,
        log: Path,
        main: bool,
        clock: Clock = time.perf_counter,
    ):
        self.batch_size, self.flops_per_image, self.log, self.main = batch_size, flops_per_image, log, main
        self.clock = clock
        self.bar = progress_bar(total, main, start)
        self.last_time, self.last_step = clock(), start
        if main and log.is_file():
            drop_torn_line(log)

    def step(self, step: int, taken: StepResult, lr: float, store: bool) -> dict | None:
        """Note that ``step`` (from 1) is done; returns the log entry when it is stored."""
        self.bar.update(step - self.bar.n)
        if not store:
            return None
        now = self.clock()
        rate = (step - self.last_step) * self.batch_size / max(now - self.last_time, 1e-9)
        self.last_time, self.last_step = now, step
        flops = rate * self.flops_per_image
        entry = {"step": step, "images": step * self.batch_size, "loss": taken.loss, "lr": lr}
        entry |= {"gradient_norm": taken.gradient_norm, "images_per_second": rate, "tflops": flops / 1e12}
        shown = f"{flops / 1e12:.1f} TFLOP/s" if flops > 1e12 else f"{flops / 1e9:.0f} GFLOP/s"
        self.bar.set_postfix_str(f"loss {taken.loss:.4f}, lr {lr:.1e}, {rate:.0f} images/s, {shown}", refresh=False)
        self.write(entry)
        return entry

    def pause(self) -> None:
        """Leave time spent on validation, grids or checkpoints out of the next rate."""
        self.last_time = self.clock()

    def replan(self, step: int, planned: int, seconds: float) -> None:
        """Note that from ``step`` on the run is to have ``planned`` steps: on the disk before that takes effect."""
        self.bar.total = planned
        self.write({"step": step, PLANNED: planned, "seconds": round(seconds, 3)})
        if self.main:
            sync(self.log)

    def write(self, entry: dict) -> None:
        """Append an entry to the log."""
        if self.main:
            with open(self.log, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.main:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Finish the bar."""
        self.bar.close()


def drop_torn_line(log: Path) -> None:
    """Cut off what comes after the last whole line."""
    with open(log, "rb+") as stream:
        stream.truncate(stream.read().rfind(b"\n") + 1)


def read_planned(log: Path) -> list[tuple[int, int]]:
    """The entries of a run's `Length` that its log tells of, by step; what follows the last whole line is no entry."""
    if not log.is_file():
        return []
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return [(entry["step"], entry[PLANNED]) for line in whole if PLANNED in (entry := json.loads(line))]


def read_log(log: Path) -> tuple[list[dict], list[dict]]:
    """Training entries and validations of a log, each step once (the last time it ran)."""
    steps, validations = {}, {}
    if log.is_file():
        for line in log.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if not OTHER.isdisjoint(entry):
                continue
            (validations if "loss" not in entry else steps)[entry["step"]] = entry
    return [steps[k] for k in sorted(steps)], [validations[k] for k in sorted(validations)]
