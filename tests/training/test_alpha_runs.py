"""Runs on real emoji with their alpha: what is trained, measured, drawn and written of them."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from commands import attndiff
from diffusers import DiffusionPipeline
from PIL import Image
from runs import train

import attndiff as package
from attndiff.alpha import ALPHA_PEAK, laid_over, premultiplied
from attndiff.apps import demo
from attndiff.apps.data_settings import data_config
from attndiff.apps.evaluate import EvaluationSettings, evaluate
from attndiff.apps.sample import Request, sample_rows, save_attention
from attndiff.errors import UserError
from attndiff.folder.shipped import bundled_data
from attndiff.metrics.near_copies import near_copies, training_pool
from attndiff.metrics.reference import model_settings, open_reference
from attndiff.tasks.resampling import shrink_by
from attndiff.training.state import resume
from attndiff.training.state.learned import read_learned

FOOD = {
    "path": "emoji32",
    "size": 16,
    "channels": "RGBA",
    "caption_column": "captions",
    "where": {"style": ["noto"], "group": ["Food & Drink"]},
}
CALL = ["caption_column=captions", 'where={style: [noto], group: ["Food & Drink"]}']
STEPS = {"optim__": {"steps": 2, "batch_size": 4, "warmup": 1, "precision": "fp32"}}
QUIET = {"log__": {"tracker": None}}


def run_of(tmp_path_factory, **changes):
    out = tmp_path_factory.mktemp("run") / "run"
    train(out, **{"data__": FOOD, **STEPS, **QUIET, **changes})
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory)


@pytest.fixture(scope="module")
def pipeline(run):
    return opened(run)


def opened(run):
    pipe = package.load(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(n: int = 3) -> list[Image.Image]:
    """Real emoji with alpha, of 16 px."""
    rows = pq.read_table(bundled_data("emoji32") / "validation.parquet").slice(0, n).to_pylist()
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    return [image.convert("RGBA").resize((16, 16), Image.Resampling.LANCZOS) for image in images]


def test_held_out_errors_are_logged_on_both_grounds(run):
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    raw = next(entry["raw"] for entry in entries if "raw" in entry)
    assert len(raw["per_level_on_white"]) == len(raw["per_level_on_black"]) == len(raw["per_level"])
    assert raw["x0_error_on_white"] != raw["x0_error_on_black"]


def test_a_run_becomes_a_folder_of_transparent_images(run):
    pipe = DiffusionPipeline.from_pretrained(run / "pipeline", trust_remote_code=True)
    assert pipe.config.data["alpha"] == "premultiplied"
    (image,) = pipe("pizza, noto", num_inference_steps=2).images
    assert image.mode == "RGBA"
    assert {"README.md", "grid.png", "neighbours.png", "attention.png"} <= {p.name for p in run.glob("pipeline/*")}


@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_the_command_writes_alpha(run, kind, tmp_path):
    arguments = ["--steps", 2, "--out", tmp_path / "grid.png", "--images", tmp_path / "images", "--format", kind]
    assert attndiff("sample", run / "pipeline", "pizza, noto", *arguments).code == 0
    image = Image.open(tmp_path / f"images/0000.{kind}")
    assert image.mode == "RGBA" and image.getextrema()[3] != (255, 255)
    checkered = (tmp_path / "grid.png").read_bytes()
    assert attndiff("sample", run / "pipeline", "pizza, noto", *arguments, "--ground", "white").code == 0
    assert (tmp_path / "grid.png").read_bytes() != checkered
    refused = attndiff("sample", run / "pipeline", "pizza, noto", *arguments, "--ground", "squares")
    assert refused.code != 0 and "--ground='squares' is no colour" in refused.err


def test_demo_and_lens_show_alpha_over_squares(pipeline, tmp_path):
    asked = {"prompt": "pizza, noto", "images": 1, "steps": 2, "guidance": 1.0, "seed": 0, "attention": True}
    (picture,), (maps,) = demo.draw(pipeline, **asked)
    assert picture.mode == maps.mode == "RGB"
    rows = sample_rows(pipeline, Request(["pizza, noto"], 2, attention=True))
    (path,) = save_attention(pipeline, rows, ["pizza, noto"], tmp_path)
    assert Image.open(path).mode == "RGB"


def test_measures_are_of_what_is_seen_on_white_and_on_black(pipeline, tmp_path):
    data = data_config(
        "emoji32", ["caption_column=captions", "where={style: [noto, twemoji]}"], model_settings(pipeline)
    )
    assert data.channels == "RGBA"
    report = evaluate(pipeline, open_reference(data, pipeline), EvaluationSettings(1, 1.0), 130, pictures=tmp_path)
    named = {name for name in report if name.endswith(("_on_white", "_on_black"))}
    assert set(report) - named == {"extractor_accuracy", "near_copies"}
    for ground in ("white", "black"):
        assert {
            f"{name}_on_{ground}" for name in ("own_caption_first", "frechet_distance", "held_out_error_ratio")
        } < named
    assert report["frechet_distance_on_white"]["value"] != report["frechet_distance_on_black"]["value"]
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "error_by_noise.png").is_file()


def test_near_copies_are_looked_for_on_white(pipeline):
    reference = open_reference(data_config("emoji32", CALL, model_settings(pipeline)), pipeline)
    pool = training_pool(reference)
    copies = pool.tensor()[:6]
    white = copies.clone()  # the same on white, though alpha and colour are not: white ink where there was none
    white[:, :3] = laid_over(copies, 1.0)
    white[:, 3] = ALPHA_PEAK
    for samples in (copies, white):
        found = near_copies(samples, reference, pool)
        assert found.share == 1 and found.distances.max() < 1e-6


def test_a_run_of_straight_alpha_does_not_go_on(run, monkeypatch):
    def earlier(*where):
        learned = read_learned(*where)
        return replace(learned, data={key: value for key, value in learned.data.items() if key != "alpha"})

    monkeypatch.setattr(resume, "read_learned", earlier)
    with pytest.raises(UserError, match="read its images in another way"):
        train(run, data__=FOOD, **STEPS, **QUIET)


def test_a_model_of_straight_alpha_is_not_gone_on_from(run, tmp_path):
    pipe = opened(run)
    pipe.register_to_config(data={k: v for k, v in pipe.config.data.items() if k != "alpha"})
    pipe.save_pretrained(tmp_path / "earlier")
    with pytest.raises(UserError, match="whose colour was not multiplied by alpha"):
        train(tmp_path / "run", data__=FOOD, model__={"init_from": str(tmp_path / "earlier")}, **STEPS, **QUIET)


def test_ink_trains_and_is_measured_as_ink(tmp_path_factory):
    data = {**FOOD, "channels": "LA", "ink": "black"}
    pipe = opened(run_of(tmp_path_factory, data__=data))
    assert model_settings(pipe) == {"size": 16, "channels": "LA", "ink": "black"}
    (image,) = pipe("pizza, noto", num_inference_steps=2).images
    assert image.mode == "LA"


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory):
    return opened(run_of(tmp_path_factory, task__={"name": "inpaint"}))


@pytest.fixture(scope="module")
def upscaling(tmp_path_factory):
    return opened(run_of(tmp_path_factory, task__={"name": "upscale"}))


def test_holes_are_filled_and_what_is_given_comes_back(inpainting):
    images, mask = pictures(), np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    made = inpainting(images, Image.fromarray(mask), ["pizza, noto"] * 3, num_inference_steps=2).images
    for image, given in zip(made, images, strict=True):
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(image)[mask == 0], np.asarray(given)[mask == 0])


def test_enlarged_images_agree_with_what_was_given(upscaling):
    images = pictures()
    large = upscaling(images, ["pizza, noto"] * 3, back_projections=50, output_type="pt").images * 2 - 1
    given = torch.stack([torch.from_numpy(np.asarray(one).transpose(2, 0, 1).copy()) for one in images]) / 127.5 - 1
    for ground in (1.0, -1.0):
        again, expected = (laid_over(premultiplied(one), ground) for one in (large, given))
        assert (shrink_by(again, 2) - expected).abs().mean() < 0.02


@pytest.mark.parametrize("kind", ["inpainting", "upscaling"])
def test_restored_images_are_scored_on_both_grounds(kind, request):
    pipe = request.getfixturevalue(kind)
    reference = open_reference(data_config("emoji32", CALL, model_settings(pipe)), pipe)
    report = evaluate(pipe, reference, EvaluationSettings(1, 1.0), 4)
    assert report and all(name.endswith(("_on_white", "_on_black")) for name in report)
    if kind == "inpainting":
        assert all(entry["given_pixels_kept"] for entry in report.values())
    else:
        assert report["consistency_on_white"]["value"] > 35 and report["consistency_on_black"]["value"] > 35
