"""Keeping a run within its time: how many steps fit into it, asked again and again at the pace that is measured.

The rules, each with its constant:

- The pace is that of the last `WINDOW` of the time; neither the first step of a process, which may compile, nor what is
  done between steps counts for it. Before step 1 it is what a step took alone.
- Whatever else is yet to be done (validations, grids, checkpoints, the folder and its card at the end) counts as many
  steps as it took the last time, or is estimated to take.
- A plan is looked at every ``log.every`` steps, and at least `CHECKS` times in what is left of the run.
- It is corrected if it misses the time by more than `TOLERANCE` of what is left of the run and of all of it.
- No correction takes away more than half of the steps that are left: a stall that is over by the next check does not
  end a run.
- No plan has less than ``optim.least_steps`` steps, or less than one more step.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from attndiff.clock import Clock, in_words
from attndiff.training.config import LogConfig, TrainConfig
from attndiff.training.run.plan import UNTIMED, RunPlan
from attndiff.training.run.progress import read_planned
from attndiff.training.state.checkpoint import read_length
from attndiff.training.state.length import Length

CHECKS = 50
WINDOW = 0.04
TOLERANCE = (0.05, 0.02)
LEAST = 1e-6  # seconds of a step, where a clock is too coarse for it

Stopwatch = Callable[[str], AbstractContextManager]  # a context in which something of a name is done


class Pace:
    """What is known of the time of a run, and what follows from it for its number of steps.

    Args:
        config: The settings, with ``optim.minutes``.
        plan: What was measured before step 1.
        chores: Estimated seconds of what is done beside the steps, from `RunPlan.chores`.
        clock: Whom to ask.
        began: When the run would have begun if it had not been interrupted.
        kept: Seconds of the minutes that are for what comes after the run.
    """

    def __init__(
        self, config: TrainConfig, plan: RunPlan, chores: dict[str, float], clock: Clock, began: float, kept: float
    ):
        self.log, self.least, self.clock, self.began = config.log, config.optim.least_steps, clock, began
        self.seconds = max(0.0, 60 * config.optim.minutes - kept)  # until the folder and its card are written
        step = max(plan.step_seconds, LEAST)
        self.step_seconds = step * UNTIMED
        self.worth = {name: seconds / step for name, seconds in chores.items() if every(name, self.log) != 0}
        self._stepping = 0.0  # seconds of steps
        self._points: deque[tuple[int, float]] = deque()  # (step, seconds of steps until it was done)
        self._mark = clock()

    @property
    def used(self) -> float:
        """Seconds of the run so far, those before it was interrupted among them."""
        return self.clock() - self.began

    # What is noted

    def stepped(self, step: int) -> None:
        """Note that ``step`` (from 1) is done."""
        now = self.clock()
        if self._points:
            self._stepping += now - self._mark
        self._mark = now
        self._points.append((step, self._stepping))
        while len(self._points) > 2 and self._stepping - self._points[1][1] >= WINDOW * self.seconds:
            self._points.popleft()
        (first, before), (last, after) = self._points[0], self._points[-1]
        if last > first and after - before >= WINDOW * self.seconds:
            self.step_seconds = (after - before) / (last - first)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note what the block takes, in steps, and that it is none."""
        began = self.clock()
        yield
        self._mark = self.clock()
        self.worth[name] = (self._mark - began) / self.step_seconds

    # What follows

    def due(self, step: int, length: Length) -> bool:
        """Whether to look at the plan after a step; not as long as entries lie ahead, of a run that was interrupted."""
        left = length.end(step) - step
        return left > 0 and step > length.last and step % min(self.log.every, max(1, left // CHECKS)) == 0

    def fitting(self, step: int) -> int:
        """Steps of the whole run that fit into its time, of which ``step`` are done; `least` where fewer do."""
        at_end = sum(self.worth.values())
        between = sum(worth / every(name, self.log) for name, worth in self.worth.items() if every(name, self.log))
        left = self.seconds - self.used - at_end * self.step_seconds
        return max(self.least, step + 1, step + int(left / (self.step_seconds * (1 + between))))

    def corrected(self, step: int, length: Length) -> int | None:
        """Steps that the run is to have from ``step`` on, None if it may stay as it is planned."""
        planned = length.end(step)
        fitting = max(self.fitting(step), planned - (planned - step) // 2)
        of_left, of_all = TOLERANCE
        off = abs(fitting - planned) * self.step_seconds
        enough = max(of_left * (planned - step) * self.step_seconds, of_all * self.seconds)
        return fitting if off > enough else None

    def seconds_of(self, name: str) -> float:
        """What something beside the steps takes now."""
        return self.worth[name] * self.step_seconds

    def remaining(self, step: int, planned: int) -> float:
        """Seconds until a run of ``planned`` steps has written its folder."""
        return (planned - step + sum(self.worth.values())) * self.step_seconds

    def overdue(self, step: int, planned: int) -> str | None:
        """The sentence that the least number of steps makes the run longer than its time, where it does."""
        total = self.used + self.remaining(step, planned)
        if planned > self.least or total <= (1 + TOLERANCE[1]) * self.seconds:
            return None
        return (
            f"optim.least_steps={self.least} makes the run longer than the time it was given: about "
            f"{in_words(total)} instead of {in_words(self.seconds)}"
        )


def every(name: str, log: LogConfig) -> int | None:
    """Steps from one time to the next that something is done; None if it is done at the end only, 0 if never."""
    if name == "package":
        return None
    return {
        "validate": log.validate_every,
        "sample": log.sample_every,
        "evaluate": log.evaluate_every or 0,
        "checkpoint": log.checkpoint_every,
    }[name]


def kept_entries(newest: Path | None, log: Path) -> list[tuple[int, int]]:
    """What a run that was interrupted had planned: the entries in its checkpoint, and those written after it.

    Args:
        newest: The checkpoint that it goes on from, if any.
        log: Its log.
    """
    entries = read_length(newest) if newest else []
    last = entries[-1][0] if entries else -1
    return [*entries, *(entry for entry in read_planned(log) if entry[0] > last)]
