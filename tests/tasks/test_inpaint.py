"""Inpainting: masks, what a sample holds, and given pixels that come back to the last bit."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from commands import make_images
from factories import make_vae, quiet, text_pipeline, unconditional_pipeline
from PIL import Image

import attndiff
from attndiff import AttnDiffInpaintPipeline
from attndiff.apps.data_settings import data_config
from attndiff.apps.evaluate import EvaluationSettings, evaluate
from attndiff.diffusion.compatibility import REQUIRED_CONFIG
from attndiff.diffusion.objectives import make_objective
from attndiff.metrics.reference import open_reference
from attndiff.pipelines.call.conditioning import GivenCondition
from attndiff.pipelines.call.options import CallOptions
from attndiff.pipelines.holes import Cutouts, soft_edges
from attndiff.tasks.inpaint import INPAINT, InpaintSettings
from attndiff.tasks.masks import draw_box, draw_mask, draw_strokes
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"), count=24)


@pytest.fixture(scope="module")
def pipeline(images, tmp_path_factory):
    """Of a run of four steps, told captions."""
    settings = {
        "out": str(tmp_path_factory.mktemp("inpaint") / "run"),
        "task": {"name": "inpaint"},
        "data": {"path": str(images), "size": 16, "validation": 0.3, "caption_column": "text"},
        "condition": {"kind": "text", "vocab_size": 300, "max_length": 8},
        "model": {"preset": "tiny"},
        "optim": {"steps": 4, "batch_size": 4, "warmup": 1, "precision": "fp32"},
        "log": {"tracker": None, "sample_every": 4},
    }
    pipe = attndiff.load(Trainer(make_config(settings)).run())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_masks_are_strokes_boxes_and_everything():
    generator = np.random.default_rng(0)
    masks = torch.stack([draw_mask(24, 32, generator) for _ in range(400)])
    shares = masks.mean((1, 2, 3))
    assert set(masks.unique().tolist()) == {0.0, 1.0} and shares.min() > 0
    assert 0.18 < (shares == 1).double().mean() < 0.32
    for draw, low, high in ((draw_strokes, 0.1, 0.5), (draw_box, 0.15, 0.4)):
        mean = torch.stack([draw(24, 32, generator) for _ in range(200)]).mean()
        assert low < mean < high


def test_a_sample_knows_nothing_of_the_hole():
    image = torch.rand(3, 16, 16) + 0.5
    sample = INPAINT.make_sample({"image": image.numpy()}, np.random.default_rng(1), InpaintSettings())
    mask = sample["aligned"][:1]
    assert 0 < mask.mean() < 1 and torch.equal(sample["aligned"][1:], image * (1 - mask))
    weight = sample["pixel_weight"]
    assert weight.mean().item() == pytest.approx(1)
    assert (weight[mask == 1][0] / weight[mask == 0][0]).item() == pytest.approx(3)
    assert "images" not in sample


def hole(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., 3:9, 4:11] = 1
    return mask


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", ["pt", "np", "pil"])
def test_given_pixels_come_back_to_the_last_bit(pipeline, kind, listed):
    numbers = np.random.default_rng(0)
    mask = hole(13, 18)
    if kind == "pil":
        image = Image.fromarray(numbers.integers(0, 256, (13, 18, 3), dtype=np.uint8))
        given, told = np.asarray(image), Image.fromarray((mask[0, 0].numpy() * 255).astype(np.uint8))
    else:
        given = numbers.random((1, 13, 18, 3)).astype(np.float32)
        image, told = (torch.from_numpy(given).permute(0, 3, 1, 2), mask) if kind == "pt" else (given, mask)
    image = [image if kind == "pil" else image[0]] if listed else image
    got = pipeline(image, told, "red", num_inference_steps=2, output_type=kind).images
    got = np.asarray(got[0]) if kind == "pil" else (got.permute(0, 2, 3, 1).numpy() if kind == "pt" else got)
    inside = mask[0, 0].numpy() > 0.5
    assert np.array_equal(got[..., ~inside, :], given[..., ~inside, :])
    assert (got[..., inside, :] != given[..., inside, :]).any()


def test_the_hole_is_not_looked_at(pipeline):
    """What lies under the mask changes nothing."""
    mask, image = hole(16, 16), torch.rand(1, 3, 16, 16)
    other = torch.where(mask > 0, torch.rand(1, 3, 16, 16), image)
    results = [
        pipeline(x, mask, "red", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
        for x in (image, other)
    ]
    assert torch.equal(results[0].images, results[1].images)


def test_several_results_of_several_images(pipeline):
    image, mask = torch.rand(2, 3, 16, 16), hole(16, 16)
    got = pipeline(
        image, mask, ["red", "blue"], num_inference_steps=1, num_images_per_prompt=2, output_type="pt"
    ).images
    assert got.shape == (4, 3, 16, 16)
    known = (mask == 0).expand(2, 3, -1, -1)
    for i in range(4):
        assert torch.equal(got[i][known[0]], image[i // 2][known[0]])


@pytest.mark.parametrize(
    ("mask", "words"), [(hole(8, 16), "mask_image has the shape"), (hole(16, 16).repeat(3, 1, 1, 1), "3 rows")]
)
def test_mistakes_are_named(pipeline, mask, words):
    with pytest.raises(ValueError, match=words):
        pipeline(torch.rand(2, 3, 16, 16), mask, ["red", "blue"])


def test_a_model_is_measured_beside_fills(pipeline, images):
    data = data_config(str(images), ["size=16", "caption_column=text"])
    report = evaluate(pipeline, open_reference(data, pipeline), EvaluationSettings(2, 1.0), 6)
    for kind in ("boxes", "strokes"):
        entry = report[f"hole_psnr_{kind}"]
        assert entry["given_pixels_kept"] and entry["floor"] == entry["ways"]["harmonic"]


# With a model that was not trained to fill holes


@pytest.fixture(scope="module")
def base():
    return quiet(text_pipeline())


@pytest.fixture(scope="module")
def around(base):
    return quiet(AttnDiffInpaintPipeline.from_pipe(base))


def holes(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [0, 1] and masks."""
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    mask = torch.zeros(count, 1, 16, 16)
    mask[..., 4:12, 6:] = 1
    return images, mask


def seeds(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("resamplings", [0, 2])
def test_any_model_draws_around_what_is_known(around, resamplings):
    images, mask = holes()
    told = {"prompt": "cat", "num_inference_steps": 4, "resamplings": resamplings, "output_type": "pt"}
    drawn = around(images, mask, **told, generator=seeds()).images
    assert torch.equal(drawn * (1 - mask), images * (1 - mask)) and not torch.equal(drawn, images)
    alone = around(images[1], mask[1], **told, generator=seeds()[1]).images[0]
    torch.testing.assert_close(alone, drawn[1])
    others = images * mask + 0.5 * (1 - mask)  # what is known of an image reaches what is drawn
    changed = around(others, mask, **told, generator=seeds()).images
    assert (changed - drawn).abs()[mask.expand_as(drawn) > 0.5].max() > 1e-3


def test_a_hole_that_is_all_of_the_image_holds_what_the_prompt_draws(base, around):
    images, mask = holes()
    told = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt", "generator": seeds()}
    drawn = around(images, torch.ones_like(mask), "cat", resamplings=0, **told).images
    torch.testing.assert_close(drawn, base(["cat", "cat"], **{**told, "generator": seeds()}).images)


@pytest.mark.parametrize("objective", ["flow", "x0", "edm", "epsilon", "v"])
def test_what_is_known_stays_so_with_every_scheduler(objective):
    """Before the given pixels are pasted in: nothing else was led there."""
    made = make_objective({"name": objective})
    images, mask = holes()
    for name in REQUIRED_CONFIG[objective]:
        kind = getattr(diffusers, name)
        taken = inspect.signature(kind.__init__).parameters
        settings = {key: value for key, value in REQUIRED_CONFIG[objective][name].items() if key in taken}
        scheduler = kind(**settings, **({"sigma_data": made.sigma_data} if objective == "edm" else {}))
        base = unconditional_pipeline(objective=made.to_config(), scheduler=scheduler)
        pipe = quiet(AttnDiffInpaintPipeline.from_pipe(base))
        options = CallOptions(3, 1.0, generator=seeds())
        known = torch.cat([mask, images * 2 - 1], dim=1)
        with torch.no_grad(), pipe.calling(options) as solver:
            encoded = pipe.encode(GivenCondition(), 1, False, False)
            noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
            drawn = pipe._around(solver, noise, encoded, options, known, resamplings=1)
        assert drawn.isfinite().all() and torch.equal(drawn * (1 - mask), (images * 2 - 1) * (1 - mask)), name


def test_what_a_model_that_knows_no_masks_cannot_be_asked_for(around):
    images, mask = holes(1)
    with pytest.raises(ValueError, match="resamplings must be a whole number from 0, not -1"):
        around(images, mask, resamplings=-1)
    latents = AttnDiffInpaintPipeline.from_pipe(unconditional_pipeline(4, {"channels": [*"RGB"]}, vae=make_vae()))
    with pytest.raises(ValueError, match="this model draws latents, in which a hole has no sharp edge"):
        latents(images, mask)


# Soft edges, a part of a large picture, and what lies beside one


def test_what_is_drawn_fades_into_what_was_given(around):
    images, mask = holes()
    told = {"prompt": "cat", "num_inference_steps": 2, "resamplings": 0, "output_type": "pt"}
    soft = around(images, mask, **told, blur_factor=1.5, generator=seeds()).images
    edges = soft_edges(mask, 1.5)
    given = (soft == images).all(dim=1, keepdim=True)
    assert given[edges == 0].all() and (edges == 0).any()
    assert torch.equal(edges[mask > 0.5], torch.ones(int(mask.sum()))) and not given[..., 4:12, 5].any()
    row = edges[0, 0, 8, :7]
    assert (row.diff() >= 0).all() and 0 < row[5] < 1
    assert torch.equal(around(images, mask, **told, generator=seeds()).images * (1 - mask), images * (1 - mask))


def scene(mode: str = "RGB") -> tuple[Image.Image, Image.Image]:
    """A picture of 90 x 60 px of noise and a hole of 12 x 10 in it."""
    values = np.random.default_rng(0).integers(0, 256, (60, 90, len(mode)), dtype=np.uint8)
    mask = Image.new("L", (90, 60))
    mask.paste(255, (70, 5, 82, 15))
    return Image.fromarray(values.squeeze()).convert(mode), mask


@pytest.mark.parametrize("blur_factor", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_part_of_a_large_picture_is_drawn_at_the_size_of_the_model(around, monkeypatch, mode, blur_factor):
    picture, mask = scene(mode)
    seen = []
    told = {"num_inference_steps": 2, "resamplings": 0, "padding_mask_crop": 4, "blur_factor": blur_factor}
    sample = around.sample

    def watched(solver, noise, *rest, **more):
        seen.append(noise.shape[-2:])
        return sample(solver, noise, *rest, **more)

    monkeypatch.setattr(around, "sample", watched)
    drawn = around(picture, mask, "cat", **told, num_images_per_prompt=2, generator=seeds()).images
    assert set(seen) == {torch.Size((16, 16))} and len(drawn) == 2
    whole, hole = np.asarray(picture.convert("RGB")).astype(int), np.asarray(mask) > 127
    for one in drawn:
        changed = (np.asarray(one) != whole).any(-1)
        assert one.size == picture.size and changed[hole].mean() > 0.9
        assert changed[~hole].any() == (blur_factor > 0)
        assert not changed[:, :60].any() and not changed[25:].any()
    assert (np.asarray(drawn[0]) != np.asarray(drawn[1])).any()


def test_pictures_of_several_sizes_are_cut_at_their_own_holes(around):
    (first, mask), second = scene(), Image.new("RGB", (40, 40), "red")
    other = Image.new("1", (40, 40))
    other.paste(1, (0, 30, 8, 40))
    told = {"num_inference_steps": 1, "resamplings": 0, "padding_mask_crop": 2, "generator": seeds()}
    drawn = around([first, second], [mask, other], "cat", **told).images
    assert [one.size for one in drawn] == [(90, 60), (40, 40)]
    changed = (np.asarray(drawn[1]) != np.asarray(second)).any(-1)
    assert changed[30:, :8].any() and not changed[:30].any() and not changed[:, 8:].any()


def test_a_hole_of_one_pixel_is_not_lost_where_many_pixels_become_one():
    mask = Image.new("L", (900, 900))
    mask.putpixel((450, 450), 255)
    cutouts = Cutouts.around(Image.new("RGB", mask.size), mask, (16, 16), 400, 0)
    assert np.asarray(cutouts.masks[0]).sum() >= 255
    drawn = cutouts.put_back([Image.new("RGB", (16, 16), "red")])[0]
    assert drawn.getpixel((450, 450)) == (255, 0, 0) and np.asarray(drawn).sum() == 255


def test_parts_are_cut_of_pictures_only():
    deep = unconditional_pipeline(3, data={"channels": [*"RGB"], "bit_depth": 16, "value_range": [0, 4000]})
    picture, mask = scene()
    with pytest.raises(ValueError, match="padding_mask_crop is for models of pictures of 8 bits"):
        AttnDiffInpaintPipeline.from_pipe(deep)(picture, mask, padding_mask_crop=2)


def test_what_lies_beside_a_picture_is_drawn(around):
    picture = scene()[0].crop((0, 0, 12, 16))
    (wider,) = around.outpaint(picture, left=3, right=5, prompt="cat", num_inference_steps=2, resamplings=0).images
    assert wider.size == (20, 16) and np.array_equal(wider.crop((3, 0, 15, 16)), picture)
    assert np.asarray(wider)[:, 15:].std() > 0
    told = {"prompt": "cat", "num_inference_steps": 1, "resamplings": 0, "generator": seeds()}
    two = around.outpaint([picture, picture], top=4, **told).images
    assert [one.size for one in two] == [(12, 20)] * 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"padding_mask_crop": -1}, "padding_mask_crop must be a whole number of pixels from 0, not -1"),
        ({"padding_mask_crop": 2, "output_type": "np"}, "output_type must be pil with padding_mask_crop"),
        ({"padding_mask_crop": 2, "mask_image": Image.new("L", (90, 60))}, "nothing is white"),
        (
            {"padding_mask_crop": 2, "mask_image": Image.new("L", (9, 9), 255)},
            "mask_image is 9 x 9, .* 90 x 60",
        ),
        ({"padding_mask_crop": 2, "image": np.zeros((60, 90, 3))}, "is for pictures .* of 8 bits, not ndarray"),
        ({"padding_mask_crop": 2, "image": Image.new("I;16", (90, 60))}, "of 8 bits, not mode I;16"),
        ({"blur_factor": -2}, "blur_factor must be a number of pixels from 0, not -2"),
        ({"blur_factor": "2"}, "blur_factor must be a number of pixels from 0, not '2'"),
    ],
)
def test_mistakes_with_parts_and_edges_are_named(around, wrong, words):
    picture, mask = scene()
    with pytest.raises(ValueError, match=words):
        around(**{"image": picture, "mask_image": mask, "num_inference_steps": 1, **wrong})


@pytest.mark.parametrize("sides", [{}, {"left": -1}, {"top": 1.5}])
def test_room_is_a_number_of_pixels(around, sides):
    with pytest.raises(ValueError, match="must be a whole number of pixels"):
        around.outpaint(scene()[0], **sides)
