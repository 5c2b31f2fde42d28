"""Super-resolution: what a sample holds, what a call gives, and that it ends as a folder that is measured."""

import numpy as np
import pytest
import torch
from commands import make_images
from PIL import Image

import attndiff
from attndiff.apps.data_settings import data_config
from attndiff.apps.evaluate import EvaluationSettings, evaluate
from attndiff.errors import UserError
from attndiff.metrics.reference import open_reference
from attndiff.tasks.resampling import back_project, enlarge_by, shrink_by
from attndiff.tasks.upscale import UPSCALE, UpscaleSettings, small_of
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), captions=False, count=24)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A run of four steps."""
    out = tmp_path_factory.mktemp("upscale") / "run"
    settings = {
        "out": str(out),
        "task": {"name": "upscale"},
        "data": {"path": str(images), "size": 16, "validation": 0.3},
        "condition": {"kind": "none"},
        "model": {"preset": "tiny"},
        "optim": {"steps": 4, "batch_size": 4, "warmup": 1, "precision": "fp32"},
        "log": {"tracker": None, "sample_every": 4},
    }
    Trainer(make_config(settings)).run()
    return out


@pytest.fixture(scope="module")
def pipeline(run):
    pipe = attndiff.load(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def smooth(seed: int, side: int = 16) -> torch.Tensor:
    noise = torch.rand(2, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return enlarge_by(noise, 4).clamp(-1, 1)


@pytest.mark.parametrize(("resample", "size"), [(shrink_by, (16, 12)), (enlarge_by, (64, 48))])
def test_interpolation_is_that_of_pillow(resample, size):
    planes = torch.rand(1, 1, 32, 24, generator=torch.Generator().manual_seed(0))
    theirs = Image.fromarray(planes[0, 0].numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    torch.testing.assert_close(resample(planes, 2)[0, 0], torch.from_numpy(np.array(theirs)), atol=1e-4, rtol=0)


def test_a_sample_holds_what_the_enlarged_image_lacks():
    settings = UpscaleSettings(residual_std=0.25)
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sample = UPSCALE.make_sample({"image": image.numpy()}, np.random.default_rng(0), settings)
    torch.testing.assert_close(sample["aligned"] + 0.25 * sample["images"], image)
    assert torch.equal(sample["aligned"], enlarge_by(small_of(image[None], 2), 2)[0])


def test_the_residual_is_measured_once_and_kept(run, pipeline):
    measured = pipeline.config.task["residual_std"]
    assert 0.01 < measured < 1 and pipeline.config.task["scale"] == 2
    assert UPSCALE.learn([], UpscaleSettings(residual_std=0.5)) == {}


def test_back_projection_makes_the_result_agree_with_the_small_image():
    small = small_of(smooth(0), 2)
    wrong = enlarge_by(small, 2) + 0.2 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before, after = ((shrink_by(x, 2) - small).square().mean() for x in (wrong, back_project(wrong, small, 8)))
    assert after < before / 100


@pytest.mark.parametrize("steps", [1, 3])
def test_a_call_gives_twice_the_size_of_any_image(pipeline, steps):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (11, 7, 3), dtype=np.uint8))
    generator = torch.Generator().manual_seed(0)
    (large,) = pipeline(picture, num_inference_steps=steps, generator=generator).images
    assert large.size == (14, 22)
    grey = pipeline(picture.convert("L"), num_inference_steps=1, output_type="pt").images
    assert grey.shape == (1, 3, 22, 14)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_network_sees_no_more_at_once_than_twice_what_it_learned_from_or_is_told(pipeline, steps, monkeypatch):
    """A picture of 48 x 20 by a network that learned to make images of 16 x 16, whose sides are multiples of 4."""
    seen, forward = [], pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet, "forward", lambda x, *rest, **more: seen.append(x.shape) or forward(x, *rest, **more)
    )
    small = torch.rand(2, 3, 48, 20, generator=torch.Generator().manual_seed(0))
    for tile_size, sides in ((None, (32, 32)), (12, (24, 24)), (64, (96, 40))):
        seen.clear()
        wishes = {"num_inference_steps": steps, "tile_size": tile_size, "output_type": "pt"}
        large = pipeline(small, generator=torch.Generator().manual_seed(1), **wishes).images
        assert large.shape == (2, 3, 96, 40) and {shape[-2:] for shape in seen} == {sides}


def test_one_call_has_no_chance_in_it_and_sampling_has(pipeline):
    small = small_of(smooth(2), 2).add(1).div(2)
    kinds = {1: True, 3: False}
    for steps, same in kinds.items():
        first, second = (
            pipeline(small, num_inference_steps=steps, back_projections=0, output_type="pt",
                     generator=torch.Generator().manual_seed(seed)).images
            for seed in (0, 1)
        )  # fmt: skip
        assert torch.equal(first, second) is same


def test_one_call_is_what_training_taught_at_the_highest_level(pipeline):
    """By the parts: no noise, the enlarged image beside it, the highest level; the answer is minus the prediction."""
    small = small_of(smooth(3), 2)
    enlarged = enlarge_by(small, 2)
    coordinate = pipeline.objective.coordinate(torch.tensor(1 - 1e-6)).expand(2)
    with torch.no_grad():
        prediction = pipeline.unet(torch.cat([torch.zeros_like(enlarged), enlarged], 1), coordinate).sample
    expected = (enlarged - prediction * pipeline.config.task["residual_std"]).clamp(-1, 1)
    got = pipeline(small.add(1).div(2), back_projections=0, output_type="pt").images * 2 - 1
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": torch.rand(1, 4, 8, 8)}, "4, 8, 8"),
        ({"image": torch.rand(1, 3, 8, 8) * 3}, "0 to 1"),
        ({"image": "picture.png"}, "image must be"),
        ({"image": torch.rand(1, 3, 8, 8), "back_projections": -1}, "back_projections"),
        ({"image": torch.rand(1, 3, 8, 8), "tile_size": 0}, "tile_size"),
        ({"image": torch.rand(1, 3, 8, 8), "tile_size": 2.5}, "tile_size"),
        ({"image": torch.rand(1, 3, 8, 8), "prompt": "a cat"}, "unconditional"),
    ],
)
def test_mistakes_are_named(pipeline, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline(**arguments)


def test_a_model_is_measured_beside_interpolation(pipeline, images, tmp_path):
    data = data_config(str(images), ["size=16"])
    report = evaluate(pipeline, open_reference(data, pipeline), EvaluationSettings(1, 1.0), 6, pictures=tmp_path)
    entry = report["psnr"]
    assert entry["floor"] == entry["ways"]["bicubic, back-projected"] > entry["ways"]["bicubic"]
    assert report["consistency"]["value"] > 40 and (tmp_path / "samples.png").is_file()


def test_an_objective_that_cannot_learn_it_is_refused(images, tmp_path):
    settings = {
        "out": str(tmp_path / "run"),
        "task": {"name": "upscale"},
        "data": {"path": str(images), "size": 16},
        "condition": {"kind": "none"},
        "model": {"preset": "tiny"},
        "objective": {"name": "edm"},
        "optim": {"steps": 1},
    }
    with pytest.raises(UserError, match=r"objective.name edm does not learn task.name upscale; give one of flow"):
        Trainer(make_config(settings))
