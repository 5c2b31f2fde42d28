"""Images drawn anew: every strength is another one, all of it is kept or none, and every kind of model can."""

from functools import partial

import numpy as np
import pytest
import torch
from factories import (
    class_pipeline,
    make_vae,
    pretrained_text_pipeline,
    quiet,
    student_pipeline,
    text_pipeline,
    unconditional_pipeline,
)
from PIL import Image

import attndiff
from attndiff import AttnDiffImg2ImgPipeline
from attndiff.tasks.registry import task_of

RGBA = {"channels": [*"RGBA"], "size": [16, 16], "alpha": "premultiplied"}


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def picture(seed: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    shape = (*size[::-1], len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8), mode)


def anew(make, **components) -> AttnDiffImg2ImgPipeline:
    return quiet(AttnDiffImg2ImgPipeline.from_pipe(make(), **components))


@pytest.fixture(scope="module")
def source():
    return quiet(text_pipeline())


@pytest.fixture(scope="module")
def pipeline(source):
    return quiet(AttnDiffImg2ImgPipeline.from_pipe(source))


def test_it_shares_the_weights_and_knows_its_task(source, pipeline):
    assert pipeline.unet is source.unet and pipeline.config.data == source.config.data
    assert task_of(pipeline) is task_of(source)


def test_more_strength_changes_more_and_little_changes_as_good_as_nothing(pipeline):
    image = picture()
    was = torch.from_numpy(np.asarray(image)).permute(2, 0, 1) / 255
    changes = [
        (pipeline("cat", image, strength, generator=seeds(0)[0], output_type="pt").images[0] - was).abs().mean()
        for strength in (0.001, 0.05, 0.3, 0.6, 1.0)
    ]
    assert changes == sorted(changes) and changes[0] < 0.01 < 0.1 < changes[-1]


def test_strengths_that_a_count_of_steps_rounds_to_the_same_give_different_images(pipeline):
    draw = partial(pipeline, "cat", picture(), num_inference_steps=10, output_type="pt")
    first, second = (draw(strength=strength, generator=seeds(0)[0]).images for strength in (0.834, 0.843))
    assert not torch.equal(first, second) and (first - second).abs().max() < 0.2


def test_at_full_strength_it_draws_what_the_prompt_alone_draws(source, pipeline):
    told = {"guidance_scale": 2.0, "num_inference_steps": 5, "output_type": "pt"}
    alone = source("cat", generator=seeds(3)[0], **told).images
    torch.testing.assert_close(
        pipeline("cat", picture(), 1.0, generator=seeds(3)[0], **told).images, alone, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("strength", "steps", "taken"), [(0.5, 10, 5), (0.01, 10, 1), (1.0, 3, 3), (0.99, 10, 9)])
def test_as_many_steps_are_taken_as_the_strength_says(pipeline, strength, steps, taken):
    seen = []
    pipeline("cat", picture(), strength, steps, callback_on_step_end=lambda *call: seen.append(call[1]) or {})
    assert len(seen) == taken == pipeline.num_timesteps


@pytest.mark.parametrize("size", [(16, 16), (19, 13), (40, 24)])
def test_the_result_has_the_size_of_the_image(pipeline, size):
    (image,) = pipeline("cat", picture(0, size), num_inference_steps=2).images
    assert image.size == size


def test_an_image_is_the_same_alone_and_among_others(pipeline):
    draw = partial(pipeline, num_inference_steps=3, output_type="pt")
    images, prompts = [picture(0), picture(1)], ["cat", "red dog"]
    together = draw(prompts, images, generator=seeds(5, 6)).images
    torch.testing.assert_close(draw(prompts[1], images[1], generator=seeds(6)[0]).images[0], together[1])
    of_one_prompt = draw("cat", images, generator=seeds(5, 6)).images  # told of both
    torch.testing.assert_close(of_one_prompt[0], together[0])
    of_one_image = draw(prompts, images[0], generator=seeds(5, 7)).images  # for both
    torch.testing.assert_close(of_one_image[0], together[0])
    twice = draw(prompts, images, num_images_per_prompt=2, generator=seeds(5, 8, 6, 9)).images
    torch.testing.assert_close(twice[[0, 2]], together)


@pytest.mark.parametrize(
    ("make", "told", "mode"),
    [
        (unconditional_pipeline, {}, "RGB"),
        (partial(unconditional_pipeline, 4, RGBA), {}, "RGBA"),
        (class_pipeline, {"class_labels": "dog"}, "RGB"),
        (pretrained_text_pipeline, {"prompt": "a cat"}, "RGB"),
        (partial(unconditional_pipeline, 4, {"channels": [*"RGB"]}, vae=make_vae()), {}, "RGB"),
        (partial(student_pipeline, text_pipeline), {"prompt": "cat"}, "RGB"),
    ],
)
def test_every_kind_of_model_can(make, told, mode):
    pipe = anew(make)
    side = pipe.image_side
    images = pipe(image=[picture(i, (side, side), mode) for i in range(2)], **told, generator=seeds(0)[0]).images
    assert [image.mode for image in images] == [mode] * 2 and images[0].size == (side, side)
    assert images[0].tobytes() != images[1].tobytes()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"strength": 0}, "strength must be above 0, which would leave the image as it is"),
        ({"strength": 1.2}, "at most 1, not 1.2"),
        ({"strength": "much"}, "strength must be"),
        ({"image": None}, "image must be pictures, arrays or tensors"),
        ({"image": torch.rand(1, 4, 8, 8)}, "takes 3 channels"),
        ({"prompt": ["a", "b", "c"], "image": [picture(), picture(1)]}, "image has 2 rows for 3 images"),
        ({"generator": seeds(1, 2, 3)}, "generator is a list of 3 for 1 images"),
    ],
)
def test_mistakes_are_named(pipeline, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline(**{"prompt": "cat", "image": picture(), **wrong})


def test_its_folder_opens_as_what_it_is(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "folder")
    again = quiet(attndiff.load(tmp_path / "folder"))
    told = {"prompt": "cat", "image": picture(), "num_inference_steps": 2, "output_type": "pt"}
    assert isinstance(again, AttnDiffImg2ImgPipeline)
    ours, theirs = (pipe(**told, generator=seeds(0)[0]).images for pipe in (pipeline, again))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
