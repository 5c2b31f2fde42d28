"""Runs that are compared after equal time: the time of a run is its steps times its arm's seconds a step.

Seconds a step are measured first, with all arms taking turns: a busy machine then slows a run down, but takes nothing
from the arm that happened to meet it. Every run computes on one thread, in the precision in which the processor is
faster, and ends with the learning rate at zero. Results are written as they come in, and what is in the file is not run
again: the report that is committed is where a campaign goes on from, on another day and another machine.
"""

import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from attndiff.apps.bench.memory import forget_peak, peak_resident
from attndiff.apps.bench.report import describe_hardware, write_json
from attndiff.device import cpu_is_faster_in_bfloat16
from attndiff.training.batches import Batch, DrawnDataset, training_loader
from attndiff.training.build import Parts
from attndiff.training.config import TrainConfig
from attndiff.training.optim import make_optimizers, set_lr

WARMUP = 50  # steps
DECAY = 0.4  # share of a run, at its end, over which the learning rate falls to zero


@dataclass(frozen=True)
class Trial:
    """A run of a campaign.

    Args:
        arm: What is compared.
        data: What it is trained on.
        lr: Learning rate.
        seed: Of weights, order and noise.
        minutes: Its length.
    """

    arm: str
    data: str
    lr: float
    seed: int
    minutes: float

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.arm} | {self.data} | lr {self.lr:g} | seed {self.seed} | {self.minutes:g} min"

    @classmethod
    def of_key(cls, key: str) -> "Trial":
        """The trial of such a name."""
        arm, data, lr, seed, minutes = key.split(" | ")
        figures = float(lr.removeprefix("lr ")), int(seed.removeprefix("seed ")), float(minutes.removesuffix(" min"))
        return cls(arm, data, *figures)


# Of a trial and, if those of another trial of the same data are at hand, their parts: config and parts.
Make = Callable[[Trial, Parts | None], tuple[TrainConfig, Parts]]
# What is kept of a run when it has ended.
Measure = Callable[[TrainConfig, Parts], dict]
# Writes what was found so far into a file, as a report.
Write = Callable[[dict, Path], None]


def write_found(found: dict, out: Path) -> None:
    """The plainest report: what was found and no more."""
    write_json(out, found)


class Loop:
    """The training loop of a run, a step at a time."""

    def __init__(self, config: TrainConfig, parts: Parts):
        self.config, self.parts = config, parts
        self.optimizers = make_optimizers(parts.model, config.optim)
        drawn = DrawnDataset(
            parts.images,
            parts.conditioning,
            config.seed,
            config.condition.dropout,
            config.optim.flip,
            parts.make_sample,
            config.condition.word_dropout or 0.0,
        )
        self.batches: Iterator[Batch] = iter(training_loader(config, drawn, 1, 0, 1, 0))

    def step(self) -> float:
        """One step; its loss."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_is_faster_in_bfloat16()):
            loss = self.parts.model(self.parts.conditioning.embed(next(self.batches))).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts.model.parameters(), self.config.optim.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()


def step_seconds(trials: list[Trial], make: Make, rounds: int) -> dict[str, float]:
    """Seconds of a training step by arm and data, the lower quartile of rounds in which all take turns."""
    torch.set_num_threads(1)
    opened: dict[str, Parts] = {}
    loops: dict[str, Loop] = {}
    for trial in trials:
        config, parts = make(trial, opened.get(trial.data))
        opened.setdefault(trial.data, parts)
        loops[place(trial)] = Loop(config, parts)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 2):
        for name, loop in loops.items():
            start = time.process_time()
            loop.step()
            if turn >= 2:  # the first ones warm up
                times[name].append(time.process_time() - start)
    return {name: statistics.quantiles(values, n=4)[0] for name, values in times.items()}


def place(trial: Trial) -> str:
    """What a trial's seconds a step depend on."""
    return f"{trial.arm} | {trial.data}"


def train(trial: Trial, steps: int, make: Make, measure: Measure) -> dict:
    """Train a run and measure it; an infinite error where its loss was not finite."""
    torch.set_num_threads(1)
    config, parts = make(trial, None)
    forget_peak()
    before = peak_resident()
    loop = Loop(config, parts)
    for step in range(steps):
        set_lr(loop.optimizers, min(1, (step + 1) / WARMUP) * min(1, (1 - step / steps) / DECAY))
        if not math.isfinite(loop.step()):
            return {"error": math.inf, "steps": steps}
    memory = peak_resident() - before
    parameters = sum(p.numel() for p in parts.model.parameters())
    precision = "bfloat16" if cpu_is_faster_in_bfloat16() else "float32"
    sizes = {"steps": steps, "parameters": parameters, "memory": memory, "precision": precision}
    return {**sizes, **measure(config, parts)}


class Campaign:
    """Runs beside each other in processes of one thread, each result written as soon as it is there.

    Args:
        out: JSON file: seconds a step by arm and data, all runs so far, and what else a report says of them.
        make: What makes a run, a function of a module.
        measure: What is kept of it, likewise.
        workers: Runs side by side.
        rounds: Turns of the arms when their steps are timed.
        report: Writes ``out``, at first without any runs.
    """

    def __init__(
        self,
        out: Path,
        make: Make,
        measure: Measure,
        workers: int = 2,
        rounds: int = 20,
        report: Write = write_found,
    ):
        self.out, self.make, self.measure, self.workers, self.rounds = out, make, measure, workers, rounds
        self.report = report
        empty = {"hardware": describe_hardware("cpu"), "step_seconds": {}, "runs": {}}
        self.found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else empty

    def time_steps(self, trials: list[Trial]) -> None:
        """Measure the seconds a step of those of these trials that are not known; one of each arm and data will do.

        The first that is known takes its turn with them, and what they need is counted in its seconds: on a faster or
        slower machine than the earlier runs had, an arm gets as many steps as it would have got beside them.
        """
        known = self.found["step_seconds"]
        missing = [trial for trial in trials if place(trial) not in known]
        if not missing:
            return
        beside = [trial for trial in trials if place(trial) in known][:1]
        measured = step_seconds([*beside, *missing], self.make, self.rounds)
        scale = known[place(beside[0])] / measured[place(beside[0])] if beside else 1.0
        known |= {place(trial): scale * measured[place(trial)] for trial in missing}
        self.write()

    def constant(self, name: str, find: Callable[[], float]) -> float:
        """A figure that is found once, and kept."""
        if name not in self.found:
            self.found[name] = find()
            self.write()
        return self.found[name]

    def run(self, trials: list[Trial]) -> list[dict]:
        """The results of the trials in their order, training those that are missing."""
        runs, seconds = self.found["runs"], self.found["step_seconds"]
        # A process a run: its peak memory is that of the run alone.
        pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
        with pool:
            missing = {}
            for trial in trials:
                if trial.key not in runs:
                    steps = max(1, round(60 * trial.minutes / seconds[place(trial)]))
                    missing[pool.submit(train, trial, steps, self.make, self.measure)] = trial.key
            for future in as_completed(missing):
                runs[missing[future]] = future.result()
                print(missing[future], future.result(), flush=True)
                self.write()
        return [runs[trial.key] for trial in trials]

    def write(self) -> None:
        """Write what was found so far."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.report(self.found, self.out)
