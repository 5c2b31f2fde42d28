"""Stages, one after the other, that together keep to a time: each gets its share of what is left on the clock."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from attndiff.clock import Deadline


@dataclass
class Stage:
    """A part of the whole.

    Args:
        name: For people.
        run: Does it, given the seconds that it has.
        seconds: That it takes on two cores, or of which it makes good use if it is flexible.
        flexible: Whether it keeps to the seconds that it is given.
    """

    name: str
    run: Callable[[float], None]
    seconds: float
    flexible: bool = False


class Timetable:
    """Runs stages in turn.

    A stage that is not flexible is expected to be as slow as those before it were; what is left beside these is divided
    among the flexible ones in proportion to what they make good use of, and none gets more than that.

    Args:
        stages: In order.
        deadline: By which the last is to end.
    """

    def __init__(self, stages: list[Stage], deadline: Deadline):
        self.stages, self.deadline = stages, deadline
        self.taken: dict[str, float] = {}  # seconds by name of those that are done

    def run(self) -> Iterator[tuple[Stage, float]]:
        """Each stage before it is run, with the seconds until the end of the last as they are expected now."""
        for stage in self.stages:
            yield stage, sum(self.seconds_of(other) for other in self._ahead)
            began = self.deadline.clock()
            stage.run(self.seconds_of(stage))
            self.taken[stage.name] = self.deadline.clock() - began

    @property
    def _ahead(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.name not in self.taken]

    @property
    def slowness(self) -> float:
        """How many times as long as expected the stages took that are not flexible, 1 at least."""
        done = [stage for stage in self.stages if stage.name in self.taken and not stage.flexible]
        return (
            max(1.0, sum(self.taken[stage.name] for stage in done) / sum(stage.seconds for stage in done))
            if done
            else 1.0
        )

    def seconds_of(self, stage: Stage) -> float:
        """What a stage that lies ahead is expected to take, or given, above zero."""
        if not stage.flexible:
            return stage.seconds * self.slowness
        rigid = sum(other.seconds * self.slowness for other in self._ahead if not other.flexible)
        wanted = sum(other.seconds for other in self._ahead if other.flexible)
        return max(1.0, stage.seconds * min(1.0, (self.deadline.left - rigid) / wanted))
