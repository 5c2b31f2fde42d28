"""What captions help to denoise: exact on predictors whose answer is known, and the same as what training measures."""

from functools import partial

import numpy as np
import pytest
import torch
from factories import class_pipeline, pretrained_text_pipeline, text_pipeline

from attndiff.alpha import laid_over
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset, spread_over
from attndiff.diffusion.objectives import FlowMatching, make_objective
from attndiff.folder.shipped import bundled_data
from attndiff.metrics.denoising.bootstrap import bootstrap_means, interval_of
from attndiff.metrics.denoising.caption_gain import (
    NOISE_OVER_SIGNAL,
    families_of,
    gain_of,
    gains,
    other_rows,
    told_errors,
)
from attndiff.metrics.denoising.told import tells
from attndiff.tasks.prompts import PROMPTS
from attndiff.training.batches import DrawnDataset
from attndiff.training.conditioning import Conditioning
from attndiff.training.heads.denoising import DenoisingModel

COUNT = 70  # more than one batch


def emoji(channels: str = "RGB", label: str | None = None, count: int = COUNT) -> Subset:
    """Real emoji of 16 px in several styles."""
    columns = {"caption_column": "captions", "label_column": label}
    config = DataConfig(path=str(bundled_data("emoji32")), size=16, channels=channels, split="validation", **columns)
    return spread_over(ImageSet(config), count)


@pytest.fixture(scope="module")
def rows() -> Subset:
    return emoji()


class Knowing:
    """Draws the image of a caption, and black where it is told nothing; notes what it is given."""

    def __init__(self, rows: Subset, prompt: str = "text"):
        self.images = dict(zip(PROMPTS[prompt].of_all(rows), rows.tensor(), strict=True))
        self.nothing = torch.full_like(rows.tensor()[0], -1)
        self.given: list[tuple] = []

    def __call__(self, values):
        def denoise(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            self.given.append((values, x, level))
            return torch.stack([self.images.get(value, self.nothing) for value in values])

        return denoise


def errors_of(tell, rows: Subset, kind: str = "text", **choice):
    return told_errors(tell, FlowMatching(), rows, PROMPTS[kind], **choice)


# Predictors whose answer is known


def test_a_model_that_knows_captions_gains_all_that_it_erred_without(rows):
    (errors,) = errors_of(Knowing(rows), rows).values()
    real, gain = rows.tensor().double(), gain_of(errors)
    expected = (real + 1).square().mean((1, 2, 3))
    assert torch.equal(errors.own, torch.zeros(COUNT, 4, dtype=torch.float64))
    torch.testing.assert_close(errors.null, expected[:, None].expand(-1, 4), rtol=1e-5, atol=0)
    assert gain.value == pytest.approx(expected.mean().item(), rel=1e-5) and gain.n == COUNT
    values = PROMPTS["text"].of_all(rows)
    others = other_rows(values, families_of(rows), [""] * COUNT)
    wrong = (real[others] - real).square().mean((1, 2, 3))
    assert gain_of(errors, over_other=True).value == pytest.approx(wrong.mean().item(), rel=1e-5)


def test_what_differs_is_told_and_not_the_noise(rows):
    model, again = Knowing(rows), Knowing(rows)
    errors_of(model, rows), errors_of(again, rows)
    first = model.given[:12]
    for level in range(4):
        null, own, other = first[level], first[4 + level], first[8 + level]
        assert torch.equal(null[1], own[1]) and torch.equal(own[1], other[1])
        assert set(null[0]) == {None} and all(a != b for a, b in zip(own[0], other[0], strict=True))
        s = own[2].view(-1, 1, 1, 1)
        torch.testing.assert_close(s[0, 0, 0] / (1 - s[0, 0, 0]), torch.tensor([NOISE_OVER_SIGNAL[level]]))
        noise = (own[1] - (1 - s) * rows.tensor()[:64]) / s
        assert noise.std().item() == pytest.approx(1, abs=0.02) and noise.mean().item() == pytest.approx(0, abs=0.02)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(model.given, again.given, strict=True))
    assert not torch.equal(model.given[0][1][:6], model.given[12][1])  # of the second batch


@pytest.mark.parametrize("make", [text_pipeline, class_pipeline])
def test_a_model_that_ignores_its_condition_gains_exactly_nothing(make):
    pipeline, kind = make(), "text" if make is text_pipeline else "class"
    rows = emoji(label="style", count=20)
    if kind == "class":
        pipeline = make(tuple(rows.class_names))
    hearing = errors_of(tells(pipeline), rows, kind)[""]
    pipeline.condition_encoder.norm_out.weight.data.zero_()  # tokens that say nothing
    deaf = errors_of(tells(pipeline), rows, kind)[""]
    for over_other in (False, True):
        gain = gain_of(deaf, over_other)
        assert gain.value == 0 and gain.interval == [0, 0]
        assert gain_of(hearing, over_other).value != 0


# The model as training has it


@pytest.mark.parametrize("make", [text_pipeline, pretrained_text_pipeline, partial(class_pipeline, tuple("abcdef"))])
def test_a_pipeline_denoises_as_training_measures(make):
    pipeline = make()
    rows = emoji(label="style", count=5)
    kind = "class" if pipeline.tokenizer is None else "text"
    prompt = PROMPTS[kind]
    conditioning = Conditioning(prompt, pipeline.tokenizer, pipeline.text_encoder)
    objective = make_objective(pipeline.config.objective)
    model = DenoisingModel(pipeline.unet, pipeline.condition_encoder, objective).eval()
    dataset = DrawnDataset(rows, conditioning, seed=0)
    batch = torch.utils.data.default_collate([dataset[i, 0] for i in range(5)])
    for i, caption in enumerate(prompt.of_all(rows)):  # the first of several, as an evaluation has it
        if kind == "text":
            batch["input_ids"][i], batch["attention_mask"][i] = (t[0] for t in conditioning.tokens([caption]).values())
    batch = conditioning.embed(batch)
    level = objective.level_from_log_ratio(torch.full((5,), 1.2))
    x = objective.add_noise(batch["images"], batch["noise"], level)
    with torch.no_grad():
        for values, drop in ((prompt.of_all(rows), False), ([None] * 5, True)):
            told = {**batch, "drop": torch.full((5,), drop)}
            expected = objective.denoised(x, model.predict(x, level, told), level)
            torch.testing.assert_close(tells(pipeline)(values)(x, level), expected, rtol=1e-4, atol=1e-5)


# What is seen


@pytest.mark.parametrize("channels", ["L", "RGBA"])
def test_images_of_every_kind(channels):
    rows = emoji(channels, count=20)
    found = errors_of(Knowing(rows), rows)
    assert list(found) == ([""] if channels == "L" else ["_on_white", "_on_black"])
    if channels == "RGBA":
        real, nothing = rows.tensor().double(), torch.full((20, 4, 16, 16), -1.0, dtype=torch.float64)
        expected = (laid_over(nothing, -1.0) - laid_over(real, -1.0)).square().mean().item()
        assert gain_of(found["_on_black"]).value == pytest.approx(expected, rel=1e-5)
    report = gains("text", found, found, "_of_set")
    assert set(report) == {f"caption_gain{over}_of_set{e}" for over in ("", "_over_other_captions") for e in found}


# Other rows, families, intervals


def test_another_row_shows_something_else_and_has_the_same_style(rows):
    values, families, styles = PROMPTS["text"].of_all(rows), families_of(rows), rows.texts()["style"]
    found = other_rows(values, families, styles)
    assert found == other_rows(values, families, styles) and len(set(found)) > COUNT / 3
    for i, other in enumerate(found):
        assert values[other] != values[i] and families[other] != families[i] and styles[other] == styles[i]
    assert other_rows(["a", "a", "b", "c"], ["1", "2", "3", "3"], ["x", "x", "x", "y"])[:2] == [2, 2]
    assert other_rows(["a", "b"], ["1", "1"], ["", ""]) == [None, None]


def test_rows_without_another_are_left_out(rows):
    few = Subset(rows, [0, 1, *(i for i, s in enumerate(rows.texts()["style"]) if s == rows.texts()["style"][0])])
    (errors,) = errors_of(Knowing(few), few, within="caption").values()  # nothing else of the same name
    assert not errors.has_other.any() and gain_of(errors, over_other=True) is None
    assert list(gains("text", {"": errors}, {"": errors})) == ["caption_gain"]


def test_without_a_column_every_row_is_a_family():
    class Untold:
        texts = staticmethod(dict)
        __len__ = staticmethod(lambda: 3)

    assert families_of(Untold()) == ["0", "1", "2"]


def test_intervals_cover_the_mean_of_families_that_hang_together():
    rng, families = np.random.default_rng(0), [str(i // 4) for i in range(120)]
    covered = {"families": 0, "rows": 0}
    for _ in range(200):
        values = torch.from_numpy(np.repeat(rng.normal(size=30), 4) + 0.3 * rng.normal(size=120))[:, None]
        for name, of in (("families", families), ("rows", [str(i) for i in range(120)])):
            low, high = interval_of(bootstrap_means(values, of)[:, 0])
            covered[name] += low < 0 < high
    assert 0.89 * 200 <= covered["families"] <= 0.985 * 200
    assert covered["rows"] < 0.8 * 200


def test_what_was_learned_by_heart_is_the_difference(rows):
    known = errors_of(Knowing(Subset(rows, range(35))), Subset(rows, range(35)))
    new = errors_of(Knowing(Subset(rows, range(35))), Subset(rows, range(35, 70)))
    entry = gains("text", new, known)["caption_gain"]
    assert entry["value"] == 0 and entry["floor"] > 0.5  # of captions that it never heard it draws nothing
    assert entry["by_heart_interval"][0] < entry["by_heart"] == entry["floor"] < entry["by_heart_interval"][1]
    assert entry["training"]["families"] == len(set(families_of(Subset(rows, range(35)))))
