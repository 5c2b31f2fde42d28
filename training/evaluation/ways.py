"""Samples of the same captions and noise by several ways to sample, as many as there is time for."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from attndiff.clock import Deadline, in_words
from attndiff.metrics.samples import BATCH, sample_pixels
from attndiff.progress import progress
from attndiff.tasks.prompts import Value

ROUNDS = 20  # in the time that is left, at least
SHOWN = 10  # samples a row of a picture, which are drawn in any case


@dataclass
class Way:
    """One way to sample.

    Args:
        pipeline: Of the teacher or the student.
        steps: Of its scheduler.
        guidance: Guidance scale.
        extra: Whether it is left out where time is short.
    """

    pipeline: object
    steps: int
    guidance: float
    extra: bool = False

    @property
    def calls(self) -> int:
        """Evaluations of the network for one image."""
        calls = self.steps * self.pipeline.scheduler.order - (self.pipeline.scheduler.order - 1)
        return calls * (2 if self.guidance > 1 else 1)


class Drawing:
    """Draws equally many samples by each way: `SHOWN` at first, then up to `BATCH` more as long as there is time.

    Args:
        ways: By name; those that turn out to be too many for the time are taken out.
        values: What to draw, one an image.
        seed: Of the first image; each has its own.
        deadline: By which to end.
        needed: Images that a distance needs; where the time is too short for so many, no more than `SHOWN` are drawn.
    """

    def __init__(self, ways: dict[str, Way], values: list[Value], seed: int, deadline: Deadline, needed: int):
        self.ways, self.values, self.seed, self.deadline, self.needed = dict(ways), values, seed, deadline, needed
        self.parts: dict[str, list[torch.Tensor]] = {name: [] for name in ways}
        self.seconds: dict[str, float] = {}  # of an image, by way, the last time
        self.drawn = 0

    def run(self) -> dict[str, torch.Tensor]:
        """Samples ``(N, C, H, W)`` by way."""
        asked = len(self.values)
        first = min(SHOWN, asked)
        with self._bar(first) as bar:
            self._round(first, bar)
        planned = self._fitting(asked)
        if planned > self.drawn:
            print(self._announced(planned), flush=True)
        with self._bar(planned - self.drawn) as bar:
            while count := self._next(planned):
                self._round(count, bar)
        if self.drawn < asked:
            print(self._said(asked), flush=True)
        return {name: torch.cat(parts) for name, parts in self.parts.items()}

    def _next(self, planned: int) -> int:
        """Images of the next round, few enough that a machine that slows down in it is noticed; 0 at the end."""
        fitting = self._left() / self._an_image()
        count = min(planned - self.drawn, max(SHOWN, min(BATCH, fitting / ROUNDS)))
        return int(count) if count <= fitting else 0

    def _fitting(self, asked: int) -> int:
        """Images by each way for which there is time, after the first were drawn; takes ways out for more of them."""
        planned = min(asked, self.drawn + self._left() / self._an_image())
        if planned < min(self.needed, asked) and (extra := [name for name, way in self.ways.items() if way.extra]):
            print(f"time is short: {', '.join(extra)} left out", flush=True)
            for name in extra:
                del self.ways[name], self.parts[name], self.seconds[name]
            planned = min(asked, self.drawn + self._left() / self._an_image())
        return int(planned) if planned >= min(self.needed, asked) else self.drawn

    def _round(self, count: int, bar: tqdm) -> None:
        """So many images more by each way."""
        chosen = slice(self.drawn, self.drawn + count)
        seeds = range(self.seed + self.drawn, self.seed + self.drawn + count)
        for name, way in self.ways.items():
            began = self.deadline.clock()
            samples = sample_pixels(way.pipeline, self.values[chosen], seeds, way.steps, way.guidance)
            self.seconds[name] = max((self.deadline.clock() - began) / count, 1e-9)
            self.parts[name].append(samples)
            bar.update(count * way.calls)
        self.drawn += count

    def _an_image(self) -> float:
        """Seconds of one image by every way."""
        return sum(self.seconds.values())

    def _left(self) -> float:
        return max(0.0, self.deadline.left)

    def _bar(self, count: int) -> tqdm:
        return progress(None, "Sampling", count * sum(way.calls for way in self.ways.values()), "call")

    def _announced(self, planned: int) -> str:
        seconds = in_words((planned - self.drawn) * self._an_image())
        return f"comparing {len(self.ways)} ways to sample by {planned} images each: about {seconds}"

    def _said(self, asked: int) -> str:
        return f"time was short: {self.drawn} images each instead of {asked}"
