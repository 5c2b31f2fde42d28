"""A comparison of ways to sample takes the time that there is, by a clock that sampling turns."""

from types import SimpleNamespace

import pytest
import torch

from attndiff.clock import Deadline
from attndiff.training.evaluation import ways as drawn_ways
from attndiff.training.evaluation.ways import SHOWN, Drawing, Way

VALUES = list(range(400))
NEEDED = 129


class Sampler:
    """Draws images that show their seed; a call of the network takes a hundredth of a second of its clock."""

    def __init__(self, slowness=lambda now: 1.0):
        self.now, self.slowness = 0.0, slowness

    def __call__(self) -> float:
        return self.now

    def sample(self, pipeline, values, seeds, steps, guidance, quiet=True):
        assert list(values) == list(seeds)
        self.now += 0.01 * len(values) * steps * self.slowness(self.now)
        return torch.tensor(list(seeds), dtype=torch.float32).view(-1, 1, 1, 1)


def make_ways() -> dict[str, Way]:
    """40 calls by the teacher's own solver, as many by another, 4 and 1 by the student: 85 in all."""
    pipeline = SimpleNamespace(scheduler=SimpleNamespace(order=1))
    steps = {"own": (40, False), "other": (40, True), "four": (4, False), "one": (1, False)}
    return {name: Way(pipeline, n, 1.0, extra) for name, (n, extra) in steps.items()}


def draw(monkeypatch, seconds: float, sampler: Sampler | None = None):
    sampler = sampler or Sampler()
    monkeypatch.setattr(drawn_ways, "sample_pixels", sampler.sample)
    drawing = Drawing(make_ways(), VALUES, 0, Deadline.after(seconds, sampler), NEEDED)
    samples = drawing.run()
    assert samples.keys() == drawing.ways.keys()
    for images in samples.values():
        assert images.flatten().tolist() == VALUES[: drawing.drawn]
    return drawing, sampler


def test_with_time_for_all_nothing_is_left_out(monkeypatch, capsys):
    drawing, sampler = draw(monkeypatch, float("inf"))
    assert drawing.drawn == 400 and len(drawing.ways) == 4 and sampler.now == pytest.approx(400 * 0.85)
    assert capsys.readouterr().out == "comparing 4 ways to sample by 400 images each: about 5.5 min\n"


def test_a_shorter_time_holds_fewer_images(monkeypatch, capsys):
    drawing, sampler = draw(monkeypatch, 200)
    assert NEEDED <= 200 // 0.85 - SHOWN <= drawing.drawn <= 235 and len(drawing.ways) == 4 and 190 < sampler.now <= 200
    assert "images each instead of 400" in capsys.readouterr().out


def test_other_solvers_go_before_distances_do(monkeypatch, capsys):
    drawing, sampler = draw(monkeypatch, 80)
    assert list(drawing.ways) == ["own", "four", "one"] and drawing.drawn >= NEEDED and sampler.now <= 80
    assert "time is short: other left out" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [40, 0])
def test_where_there_is_time_for_nothing_else_there_is_a_picture(monkeypatch, capsys, seconds):
    drawing, sampler = draw(monkeypatch, seconds)
    assert drawing.drawn == SHOWN and sampler.now == pytest.approx(SHOWN * 0.85)
    assert "time was short: 10 images each instead of 400" in capsys.readouterr().out


def test_a_slowdown_to_a_tenth_ends_it_within_a_round(monkeypatch, capsys):
    drawing, sampler = draw(monkeypatch, 340, Sampler(lambda now: 10.0 if now > 100 else 1.0))
    assert SHOWN < drawing.drawn < 200 and "instead of 400" in capsys.readouterr().out
    assert sampler.now == pytest.approx(340, rel=0.2)
