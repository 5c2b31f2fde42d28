"""The time, asked of a clock for which a test can put another one."""

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]  # seconds since whenever


@dataclass(frozen=True)
class Deadline:
    """The moment by which something is to be done.

    Args:
        at: The moment, in seconds of the clock.
        clock: Whom to ask.
    """

    at: float
    clock: Clock = time.perf_counter

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.perf_counter) -> "Deadline":
        """The one that is so many seconds from now."""
        return cls(clock() + seconds, clock)

    @property
    def left(self) -> float:
        """Seconds until then, below zero where it has passed."""
        return self.at - self.clock()


def in_words(seconds: float) -> str:
    """A length of time to read."""
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{max(seconds, 0):.0f} s"
