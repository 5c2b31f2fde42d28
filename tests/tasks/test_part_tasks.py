"""Segmentation, and images of maps: what a sample holds, that parts are learned, what a call gives, and measures."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from factories import segment_pipeline
from PIL import Image
from runs import close, cut, losses, train, weights

import attndiff
from attndiff.apps.data_settings import data_config
from attndiff.apps.evaluate import EvaluationSettings, evaluate
from attndiff.apps.runs import next_command
from attndiff.errors import UserError
from attndiff.metrics.reference import open_reference
from attndiff.tasks.part_maps import as_channels, as_pictures, as_shares, entropy
from attndiff.tasks.segment import SEGMENT, SegmentSettings
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer

SIDE, VOID = 16, 255


def row(seed: int) -> dict:
    """A red square (part 1) and a blue one (part 2) on grey, and an unknown corner."""
    generator = np.random.default_rng(seed)
    pixels, numbers = np.full((SIDE, SIDE, 3), 128, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    for part, colour in ((1, (200, 30, 30)), (2, (30, 30, 200))):
        top, left = generator.integers(0, SIDE - 6, 2)
        pixels[top : top + 6, left : left + 6] = colour
        numbers[top : top + 6, left : left + 6] = part
    numbers[:2, :2] = VOID
    return {"image": as_png(Image.fromarray(pixels)), "mask": as_png(Image.fromarray(numbers))}


def as_png(picture: Image.Image) -> dict:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts") / "train.parquet"
    pd.DataFrame([row(seed) for seed in range(24)]).to_parquet(path)
    return path


def settings(table, out, steps: int = 60, **task) -> dict:
    return {
        "out": str(out),
        "task": {"name": "segment", "void": VOID} | task,
        "data": {"path": str(table), "size": SIDE, "validation": 0.3},
        "condition": {"kind": "none"},
        "model": {"preset": "tiny"},
        "optim": {
            "steps": steps,
            "batch_size": 8,
            "lr": 0.01,
            "warmup": 2,
            "decay": 0.5,
            "precision": "fp32",
            "flip": 0.5,
        },
        "log": {"tracker": None, "sample_every": steps, "validate_every": steps},
    }


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A run of sixty steps."""
    out = tmp_path_factory.mktemp("segment") / "run"
    Trainer(make_config(settings(table, out))).run()
    return out


@pytest.fixture(scope="module")
def pipeline(run):
    pipe = attndiff.load(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def drawing(table, tmp_path_factory):
    """A model that draws images of maps, after two hundred steps."""
    out = tmp_path_factory.mktemp("drawing") / "run"
    Trainer(make_config(settings(table, out, 200, name="map_to_image"))).run()
    pipe = attndiff.load(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shown(seed: int) -> tuple[Image.Image, np.ndarray]:
    """An image and its map."""
    cells = row(seed)
    return tuple(Image.open(io.BytesIO(cells[name]["bytes"])) for name in ("image", "mask"))


def test_a_map_is_a_channel_for_each_part_and_back():
    numbers = torch.tensor([[0, 1], [2, VOID]])
    channels = as_channels(numbers, 3)
    assert channels.shape == (3, 2, 2) and torch.equal(channels.argmax(0)[:1], numbers[:1])
    assert (channels[:, 1, 1] == -1).all() and (channels[:, :1].sum(0) == -1).all()
    shares = as_shares(channels[:, :, :1])
    assert torch.equal(shares, (channels[:, :, :1] + 1) / 2) and torch.equal(entropy(shares), torch.zeros(2, 1))
    even = torch.full((3, 1, 1), 1 / 3)
    torch.testing.assert_close(entropy(even), torch.ones(1, 1))


def test_pictures_hold_the_numbers_in_colours_that_differ():
    numbers = torch.arange(12).view(1, 3, 4)
    (picture,) = as_pictures(numbers)
    assert (np.asarray(picture) == numbers[0].numpy()).all()
    assert len(picture.convert("RGB").getcolors()) == 12


def test_a_sample_holds_the_map_and_counts_no_unknown_pixel():
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    numbers = np.array([[0, 1, 2, VOID]] * 4)
    cells = {"image": image.numpy(), "mask": numbers}
    sample = SEGMENT.make_sample(cells, np.random.default_rng(0), SegmentSettings(parts=3, void=VOID))
    assert torch.equal(sample["aligned"], image) and torch.equal(
        sample["images"], as_channels(torch.from_numpy(numbers), 3)
    )
    assert sample["noise"].shape == sample["images"].shape and sample["noise"].std() > 0.5
    assert (sample["pixel_weight"][0, :, 3] == 0).all() and sample["pixel_weight"].mean() == pytest.approx(1)


def test_the_parts_are_counted_and_read(run, pipeline):
    assert pipeline.config.task["parts"] == 3 and pipeline.unet.config.out_channels == 3
    assert (run / "samples").is_dir()
    image, numbers = shown(1000)
    output = pipeline(image)
    found, true = np.asarray(output.images[0]), np.asarray(numbers)
    assert (found == true)[true != VOID].mean() > 0.9
    assert output.prediction.shape == (1, 3, SIDE, SIDE) and np.allclose(output.prediction.sum(1), 1, atol=1e-5)


def test_the_next_command_is_the_one_that_takes_pictures(table, tmp_path):
    trainer = Trainer(make_config(settings(table, tmp_path / "run")))
    assert next_command(trainer, tmp_path) == ["attndiff", "apply", str(tmp_path), "PICTURES"]


def test_samples_differ_and_their_mean_is_uncertain_where_they_do(pipeline):
    image, _ = shown(1001)
    wishes = {"num_inference_steps": 3, "output_type": "pt"}
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    each = [pipeline(image, generator=torch.Generator().manual_seed(i), **wishes) for i in range(4)]
    all_of_them = pipeline(image, ensemble_size=4, generator=seeds, **wishes)
    mean = torch.cat([one.prediction for one in each]).mean(0, keepdim=True)
    torch.testing.assert_close(all_of_them.prediction, mean, atol=1e-5, rtol=0)
    assert torch.equal(all_of_them.images, all_of_them.prediction.argmax(1))
    assert (each[0].prediction - each[1].prediction).abs().max() > 0.1
    assert all_of_them.uncertainty.mean() > max(one.uncertainty.mean() for one in each)


def test_images_of_any_size_are_read_in_tiles(pipeline):
    large = np.random.default_rng(0).integers(0, 255, (27, 50, 3), dtype=np.uint8)
    (numbers,) = pipeline(Image.fromarray(large), output_type="np").images
    assert numbers.shape == (27, 50) and numbers.dtype == np.int64
    assert len(pipeline([Image.fromarray(large)] * 2, tile_size=64).images) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ensemble_size": 2}, "ensemble_size"),
        ({"output_type": "latent"}, "output_type"),
        ({"tile_size": -1}, "tile_size"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a cat"}, "unconditional"),
    ],
)
def test_mistakes_are_named(pipeline, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipeline(shown(0)[0], **arguments)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"mask": "parts"}, "has no column 'parts'"),
        ({"parts": 2}, "holds 2, and there are 2 parts"),
        ({"void": None, "parts": 3}, "holds 255, and there are 3 parts"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_a_sentence(table, tmp_path, task, words):
    with pytest.raises(UserError, match=words):
        Trainer(make_config(settings(table, tmp_path / "run", **task))).run()


def test_a_model_is_measured_beside_what_is_known_without_looking(pipeline, table, tmp_path):
    reference = open_reference(data_config(str(table), ["size=16"]), pipeline)
    report = evaluate(pipeline, reference, EvaluationSettings(3, 1.0), 8, pictures=tmp_path)
    entry = report["mean_iou"]
    assert entry["value"] > 0.7 > entry["floor"] and set(entry["ways"]) >= {"one call", "sampled", "prior"}
    assert (tmp_path / "samples.png").is_file()


def test_an_image_of_a_map_has_its_parts(drawing):
    _, numbers = shown(1004)
    image, again = (
        drawing(numbers, num_inference_steps=8, generator=torch.Generator().manual_seed(0)).images[0] for _ in range(2)
    )
    pixels, true = np.asarray(image).astype(int), np.asarray(numbers)
    redder = pixels[..., 0] - pixels[..., 2]
    assert redder[true == 1].mean() > redder[true == 0].mean() + 40 > redder[true == 2].mean() + 80
    assert image.tobytes() == again.tobytes()


def test_a_run_that_goes_on_and_other_micro_batches_end_as_one(table, tmp_path):
    own = {"task__": {"name": "segment", "void": VOID}, "data__": settings(table, tmp_path)["data"]}
    own |= {"condition__": {"kind": "none"}, "log__prompts": []}
    train(tmp_path / "whole", **own)
    rest = cut(tmp_path / "whole", tmp_path / "rest")
    train(rest, **own)
    ours, theirs = weights(rest), weights(tmp_path / "whole")
    assert losses(rest) == losses(tmp_path / "whole")[3:]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    train(tmp_path / "parts", **own, optim__micro_batch=2)
    assert close(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, lambda numbers: Image.fromarray(numbers.astype(np.uint8))])
def test_maps_are_given_in_any_form_and_size(drawing, form):
    numbers = np.random.default_rng(0).integers(0, 3, (21, 38))
    images = drawing(form(numbers), num_inference_steps=1, num_images_per_prompt=2, output_type="pt").images
    assert images.shape == (2, 3, 21, 38)
    torch.testing.assert_close(images[:1], drawing(numbers[None], num_inference_steps=1, output_type="pt").images)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((8, 8), 3), "holds 3, and this model knows parts from 0 to 2"),
        (np.full((8, 8), -1), "holds -1"),
        (np.zeros((8, 8)), "whole numbers"),
        (np.zeros((0, 8), int), "whole numbers"),
        (Image.new("RGB", (8, 8)), "this picture is RGB"),
        ([Image.new("L", (8, 8)), Image.new("L", (9, 8))], "different sizes"),
        ("map.png", "must be pictures"),
        ([], "must be pictures"),
    ],
)
def test_what_is_no_map_is_named(drawing, image, words):
    with pytest.raises(ValueError, match=words):
        drawing(image)


def test_what_is_drawn_of_maps_is_read_back(drawing, pipeline, table, tmp_path):
    reference = open_reference(data_config(str(table), ["size=16"]), drawing)
    how = drawing, reference, EvaluationSettings(8, 1.0), 8
    report = evaluate(*how, pictures=tmp_path, reader=pipeline)
    entry = report["read_back"]
    assert entry["ways"]["real"] > 0.7 and entry["value"] > entry["floor"] + 0.1
    assert (tmp_path / "samples.png").is_file()
    for reader, words in ((None, "--reader is missing"), (segment_pipeline(), "4 parts"), (drawing, "name a model")):
        with pytest.raises(UserError, match=words):
            evaluate(*how, reader=reader)
