"""Models that are known to be bad come after real images, and what cannot tell them apart does not judge."""

import sys

import pytest
import torch
import yardstick as script
from places import ROOT

from attndiff.apps.evaluate import as_text
from attndiff.metrics.controls import CONTROLS, noised
from attndiff.metrics.extractors.base import Extractor
from attndiff.metrics.extractors.pretext import Result
from attndiff.metrics.extractors.trained import trained_extractor
from attndiff.metrics.measure import DISTANCES, Yardstick, measure
from attndiff.metrics.own_condition import exchanged, own_condition
from attndiff.metrics.shares import is_clear_of_chance, share, wilson

# Shares


def test_intervals_are_those_of_wilsons_formula():
    """Against Brown, Cai and DasGupta 2001: 0 of 10 gives [0, 0.278], 5 of 10 [0.237, 0.763]."""
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-3)


def hits(n: int, of: int) -> torch.Tensor:
    return torch.arange(of) < n


@pytest.mark.parametrize(
    ("n", "of", "chance", "clear"),
    [
        (1520, 4000, 0.25, False),  # surely above chance, and yet hardly
        (4000, 4000, 0.25, True),
        (31, 350, 0.02, True),
        (9, 350, 0.02, False),
        (2, 2, 0.5, False),  # two of two may be luck
        (360, 464, 0.51, True),
    ],
)
def test_what_is_clear_of_chance(n, of, chance, clear):
    assert is_clear_of_chance(share(hits(n, of)), chance) == clear


# Own conditions


def test_every_image_gets_another_condition():
    captions = ["a", "b", "a", "c", "b", "a"]
    assert sorted(exchanged(captions)) == sorted(captions)
    assert all(one != two for one, two in zip(exchanged(captions), captions, strict=True))


def judge_by_mean(blind: bool = False) -> Extractor:
    """Sees the class in an image's mean, or nothing."""

    def own(images: torch.Tensor, classes: list[int]) -> Result:
        seen = torch.full((len(images),), 2.0) if blind else (images.mean((1, 2, 3)) * 4).round() + 2
        return Result(seen == torch.tensor(classes), 0.2)

    return Extractor("means", lambda images: images.mean((2, 3)), own={"class": own})


def test_samples_are_held_against_real_images_chance_and_other_conditions():
    classes = [i % 5 for i in range(100)]
    real = ((torch.tensor(classes) - 2) / 4).view(-1, 1, 1, 1).expand(100, 1, 8, 8).contiguous()
    found = own_condition(judge_by_mean(), "class", real.roll(50, 0), real, classes)
    assert (found["value"], found["floor"], found["n"], found["chance"]) == (1, 1, 100, 0.2)
    assert found["judges"] and found["controls"]["other_classes"] == 0 and found["controls"]["blurred"] == 1
    half = own_condition(
        judge_by_mean(), "class", torch.where(torch.arange(100).view(-1, 1, 1, 1) < 50, real, 0), real, classes
    )
    assert half["value"] == pytest.approx(0.6) and half["interval"][0] < 0.6 < half["interval"][1]
    blind = own_condition(judge_by_mean(blind=True), "class", real, real, classes)
    assert not blind["judges"] and blind["why_not"] == "real images do hardly better than chance"


def test_what_is_no_judgement_is_said_in_a_sentence_and_not_in_the_table():
    common = {"n": 9, "extractor": "x", "controls": {"blurred": 0.5}}
    report = {
        "precision": {
            "value": 0.89,
            "floor": 0.8,
            **common,
            "judges": False,
            "why_not": "blurred real images score so",
        },
        "coverage": {"value": 0.125, "floor": 0.75, **common, "judges": True},
        "near_copies": {"value": 0.5, "interval": [0.25, 0.75], "floor": 0.05, "n": 9, "extractor": "pixels"},
        "extractor_accuracy": {
            "value": 0.26,
            "floor": 0.25,
            "n": 9,
            "extractor": "y",
            "refused": "nothing was learned",
        },
    }
    *table, sentence, refusal = as_text(report).splitlines()
    assert [line.split()[0] for line in table] == ["metric", "coverage", "near_copies"]
    assert "0.125" in table[1] and "0.75" in table[1] and "0.5 [0.25, 0.75]" in table[2]
    assert sentence == "precision 0.89 (real images 0.8) is not a judgement: blurred real images score so"
    assert refusal == "extractor_accuracy: nothing was learned"


# The order of known models


@pytest.fixture(scope="module")
def emoji():
    """A thousand emoji at 16 px, with captions, styles and groups."""
    train, test = script.emoji(ROOT)
    shrunk = [script.replace(part, images=torch.nn.functional.avg_pool2d(part.images, 2)) for part in (train, test)]
    return script.parts_of(script.rows_of(shrunk[0], [*range(2400)]), shrunk[1], 250)


@pytest.fixture(scope="module")
def instrument(emoji):
    return trained_extractor(emoji.rest, emoji.test)


def test_bad_models_come_after_real_images(emoji, instrument):
    """Noise for an untrained model, much noise on real images, one style alone, and others' captions."""
    assert instrument.name.startswith("attndiff-classifier:captions+")
    yardstick = Yardstick(emoji.test.images, emoji.others.images, instrument)
    bad = {
        "untrained": torch.randn(emoji.test.images.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1),
        "noise_added": noised(noised(emoji.others.images)),
        "one_condition": script.one_condition(emoji),
    }
    of = {name: yardstick.measure(samples) for name, samples in bad.items()}
    metrics = {
        name: {**entry, "bad": {model: found[name]["value"] for model, found in of.items()}}
        for name, entry in of["untrained"].items()
    }
    assert all(metrics[name]["judges"] for name in DISTANCES)
    assert metrics["frechet_distance"]["controls"].keys() == CONTROLS.keys()
    assert not script.wrong_orders(metrics)
    own = script.own_trial(instrument, emoji, {"untrained": bad["untrained"], "briefly_trained": bad["noise_added"]})
    assert own["judges"] and own["among"] == 50 and own["floor"] > 5 * own["chance"]
    assert own["bad"]["untrained"] < own["floor"] and own["bad"]["other_conditions"] < own["floor_interval"][0]


def test_a_wrong_order_is_found():
    entry = {"floor": 0.5, "judges": True, "bad": {"untrained": 0.6, "one_condition": 0.7}}
    assert len(script.wrong_orders({"precision": entry})) == 1  # variety is none of its business
    assert len(script.wrong_orders({"coverage": entry})) == 2
    assert not script.wrong_orders({"frechet_distance": entry, "recall": {**entry, "judges": False}})


def test_an_extractor_that_sees_colours_alone_does_not_judge_what_they_cannot_show(emoji):
    colours = Extractor("colours", lambda images: images.mean((2, 3)))
    report = measure(emoji.test.images, emoji.others.images, emoji.others.images, colours)
    assert not any(report[name]["judges"] for name in ("frechet_distance", "kernel_distance", "precision", "coverage"))
    assert "exchanged quarters" in report["frechet_distance"]["why_not"]


def test_what_real_images_hardly_reach_does_not_judge():
    """Two kinds of real images that have nothing in common: every set is far from either."""
    apart = [torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(s)) / 4 + s - 0.5 for s in (0, 1)]
    report = measure(apart[0], apart[1], apart[1], Extractor("pixels", lambda images: images.mean((1, 3))))
    assert report["coverage"]["floor"] < 0.5 and not report["coverage"]["judges"]
    assert report["coverage"]["why_not"] == "real images themselves reach no more than 0"


@pytest.mark.slow
def test_the_order_is_right_for_every_data_set_at_hand(tmp_path, monkeypatch):
    """The emoji, and those in a folder that the environment names."""
    import os

    data = os.environ.get("ATTNDIFF_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["yardstick", data, "--out", str(tmp_path)])
    assert script.main() == 0
