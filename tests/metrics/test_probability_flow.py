"""The bound of bits per value: right where the true figure is known, whatever the path; refused in a sentence."""

import math
from functools import partial

import pytest
import torch
from commands import make_images
from factories import (
    caption_pipeline,
    class_pipeline,
    make_vae,
    raster_pipeline,
    student_pipeline,
    text_pipeline,
    unconditional_pipeline,
)

from attndiff.apps.evaluate import EvaluationSettings, evaluate
from attndiff.apps.likelihood import likelihood_bound
from attndiff.data.config import DataConfig
from attndiff.diffusion.objectives import OBJECTIVES
from attndiff.errors import UserError
from attndiff.metrics.denoising.probability_flow import bits_at_most, denoiser_at
from attndiff.metrics.reference import open_reference

SHAPE = (48, 3, 8, 8)


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def on_levels(values: torch.Tensor) -> torch.Tensor:
    """The nearest of 256 levels."""
    return values.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1)


def denoise_normal(z: torch.Tensor, ratio: float, spread: float) -> torch.Tensor:
    """What is known best of images whose values are independent and normal."""
    return z * spread**2 / (spread**2 + ratio**2)


@pytest.mark.parametrize("spread", [0.3, 0.1])
def test_of_normal_images_it_is_their_entropy(spread):
    images = on_levels(torch.randn(SHAPE, generator=seed(1)) * spread)
    normal, half = torch.distributions.Normal(0.0, spread), 1 / 255
    true = -(normal.cdf(images + half) - normal.cdf(images - half)).log2().mean((1, 2, 3))
    found = bits_at_most(partial(denoise_normal, spread=spread), images, seed(), steps=80)
    assert (found.mean() - true.mean()).abs() < 0.01
    assert torch.corrcoef(torch.stack([found.float(), true]))[0, 1] > 0.95  # of every image, too


def test_of_black_and_white_images_it_lies_above_their_one_bit():
    images = torch.randint(2, SHAPE, generator=seed(1)) * 2.0 - 1
    found = bits_at_most(lambda z, ratio: (z / ratio**2).tanh(), images, seed(), sigma_data=1.0, steps=160)
    assert 1.0 < found.mean() < 1.6  # what is above is what reading levels off noise leaves open


def test_a_model_that_knows_less_needs_more_bits():
    images = on_levels(torch.randn(SHAPE, generator=seed(1)) * 0.1)
    found = [bits_at_most(partial(denoise_normal, spread=known), images, seed()).mean() for known in (0.1, 0.2, 0.5)]
    assert found == sorted(found) and found[2] - found[0] > 0.5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_is_the_same_whatever_the_path_from_image_to_noise(name):
    """A network that predicts what its objective asks for of images of one grey, and the denoiser itself."""
    objective, grey = OBJECTIVES[name](), 0.25

    def denoise(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        ratio = objective.log_ratio(level).exp()[:, None, None, None]
        image = torch.zeros_like(x[:1])
        scale = (objective.add_noise(image + 1, image, level[:1])).mean()  # of the image in the noisy one
        return grey + (x / scale - grey) * 0.01 / (0.01 + ratio**2)

    def plain(z: torch.Tensor, ratio: float) -> torch.Tensor:
        return grey + (z - grey) * 0.01 / (0.01 + ratio**2)

    images = on_levels(grey + torch.randn(SHAPE, generator=seed(1)) * 0.1)
    ours = bits_at_most(denoiser_at(denoise, objective), images, seed())
    assert (ours - bits_at_most(plain, images, seed())).abs().max() < 1e-3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("likelihood")
    for part, count in (("train", 40), ("validation", 40)):
        make_images(place / part, count=count)
    return place


def bound(pipeline, place, n: int = 3) -> dict:
    return likelihood_bound(pipeline, open_reference(DataConfig(path=str(place), size=16), pipeline), 0, n)


@pytest.mark.parametrize("make", [unconditional_pipeline, class_pipeline, text_pipeline])
def test_every_kind_of_condition_has_one(place, make):
    pipeline = make(("a", "b")) if make is class_pipeline else make()
    entry = bound(pipeline, place)["bits_per_value_at_most"]
    low, high = entry["interval"]
    assert entry["n"] == 3 and math.isfinite(entry["value"]) and low <= entry["value"] <= high
    assert abs(entry["value"] - entry["in_half_the_steps"]) < 0.5 and entry["floor_of"] == "lossless WebP"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (caption_pipeline, "draws no whole images from noise"),
        (raster_pipeline, "exact, and in its report anyway"),
        (partial(student_pipeline, text_pipeline), "a few-step student does not follow it"),
        (partial(text_pipeline, vae=make_vae()), "a model of latents says nothing of pixels"),
        (partial(unconditional_pipeline, 4, {"channels": [*"RGBA"], "size": [16, 16]}), "not whole levels"),
    ],
)
def test_where_there_is_none_a_sentence_says_so_before_anything_is_drawn(place, make, sentence):
    with pytest.raises(UserError, match=rf"--likelihood .*{sentence}: leave it out"):
        evaluate(
            make(),
            open_reference(DataConfig(path=str(place), size=16), text_pipeline()),
            EvaluationSettings(1, 1.0),
            bounded=3,
        )


@pytest.mark.parametrize("n", [0, 41])
def test_more_images_than_are_held_out_are_refused(place, n):
    with pytest.raises(UserError, match=f"--likelihood {n}: choose from 1 to 40"):
        bound(text_pipeline(), place, n)
