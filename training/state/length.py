"""How long a run is: its number of steps, and the entries by which it is corrected where a time was given instead.

An entry ``(s, n)`` says that from step ``s`` on the run is to have ``n`` steps. What share of the run is done at a step
follows from the step and the entries alone: the share that an entry finds left is spread evenly over the steps that it
leaves, so that neither the share nor anything that follows from it (learning rate, steps of a student's path) jumps.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Stretch:
    """The steps from one entry to the next.

    Args:
        start: Its first step, counted from 0.
        end: Steps of the whole run, as planned here.
        whole: Steps that a run would have which went at this pace from its first step on.
    """

    start: int
    end: int
    whole: float


class Length:
    """The planned steps of a run, by the step at which they were planned.

    Args:
        entries: ``(step, planned steps)`` by step; the first of step 0.
        fixed: Whether the number of steps was given, so that nothing will correct it.

    Raises:
        ValueError: As `add`.
    """

    def __init__(self, entries: Iterable[tuple[int, int]], fixed: bool = False):
        self.fixed = fixed
        self._stretches: list[Stretch] = []
        for step, planned in entries:
            self.add(step, planned)

    @property
    def entries(self) -> list[tuple[int, int]]:
        """All of them, by step."""
        return [(stretch.start, stretch.end) for stretch in self._stretches]

    @property
    def last(self) -> int:
        """The step of the last entry."""
        return self._stretches[-1].start

    def add(self, step: int, planned: int) -> None:
        """From ``step`` on the run is to have ``planned`` steps.

        Raises:
            ValueError: If the run has ended by then, in either plan, or there is a later entry.
        """
        whole = float(planned)
        if self._stretches:
            before = self._stretches[-1]
            if not before.start < step < min(planned, before.end):
                raise ValueError(f"{planned} steps from step {step} on do not follow {self.entries}")
            whole = (planned - step) * before.whole / (before.end - step)
        elif step != 0 or planned < 1:
            raise ValueError(f"{planned} steps from step {step} on are no beginning of a run")
        self._stretches.append(Stretch(step, planned, whole))

    def _at(self, step: int) -> Stretch:
        return next(stretch for stretch in reversed(self._stretches) if stretch.start <= step)

    def end(self, step: int) -> int:
        """Steps of the run as planned at a step."""
        return self._at(step).end

    def share(self, step: int) -> float:
        """Share of the run, in [0, 1], that is done before a step."""
        now = self._at(step)
        return (now.whole - (now.end - step)) / now.whole

    def fall(self, step: int, decay: float) -> float:
        """A line that falls from 1 to 0 over the last share ``decay`` of the run and is 1 before."""
        now = self._at(step)
        falling = decay * now.whole
        return min(1.0, (now.end - step) / falling) if falling else 1.0

    def steps_from(self, start: int) -> Iterator[int]:
        """The steps from one on to the end, wherever that is by then."""
        step = start
        while step < self.end(step):
            yield step
            step += 1
