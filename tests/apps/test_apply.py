"""``attndiff apply``: which pictures it takes, what becomes of them and where; nothing of the user's is lost."""

import re

import numpy as np
import pytest
from commands import attndiff, tree
from factories import (
    caption_pipeline,
    inpaint_pipeline,
    map_pipeline,
    raster_pipeline,
    segment_pipeline,
    text_pipeline,
    upscale_pipeline,
)
from PIL import Image

from attndiff.drawn import is_drawn


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny pipeline folders by task."""
    root = tmp_path_factory.mktemp("models")
    pipelines = {
        "upscale": upscale_pipeline(),
        "inpaint": inpaint_pipeline(),
        "segment": segment_pipeline(),
        "map": map_pipeline(),
        "text": text_pipeline(),
        "raster": raster_pipeline(),
        "caption": caption_pipeline(),
    }
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / name)
    return root


def picture(seed: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], bands), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


@pytest.fixture
def photos(tmp_path):
    """A folder of three pictures, one of them below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    picture(0).save(folder / "one.png")
    picture(1, (20, 12)).save(folder / "two.webp", lossless=True)
    picture(2).save(folder / "more" / "three.png")
    return folder


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_results_lie_beside_the_pictures_which_stay_and_are_not_drawn_twice(models, photos):
    before = tree(photos)
    result = attndiff("apply", models / "upscale", photos)
    assert (result.code, result.err) == (0, "") and "large:     3 written beside the pictures" in result.out
    assert names(photos) == before.keys() - {"more"} | {"one.large.png", "two.large.png", "more/three.large.png"}
    assert before.items() <= tree(photos).items()
    assert Image.open(photos / "two.large.png").size == (40, 24) and is_drawn(photos / "two.large.png")
    after = tree(photos)
    again = attndiff("apply", models / "upscale", photos)
    assert again.code == 0 and "large:     0 written" in again.out and "kept:      3" in again.out
    assert tree(photos) == after
    (photos / "one.large.png").write_bytes(b"")
    assert "large:     3 written" in attndiff("apply", models / "upscale", photos, "--again").out
    assert tree(photos) == after


def test_a_folder_of_results_has_the_names_of_the_pictures(models, photos, tmp_path):
    out = tmp_path / "out"
    assert attndiff("apply", models / "upscale", photos, "--out", out).code == 0
    assert names(out) == {"one.png", "two.png", "more/three.png"}
    assert attndiff("apply", models / "upscale", photos / "*.webp", "--out", out, "--count", 2).code == 0
    assert names(out) == {"one.png", "two.png", "two-00.png", "two-01.png", "more/three.png"}


def test_settings_are_arguments_of_the_call(models, photos):
    results = []
    for settings in ((), ("num_inference_steps=3",), ("num_inference_steps=3", "back_projections=0")):
        result = attndiff("apply", models / "upscale", photos / "one.png", *settings, "--again")
        assert (result.code, result.err) == (0, "")
        results.append(np.asarray(Image.open(photos / "one.large.png")).astype(int))
    assert all((a != b).any() for a, b in zip(results, results[1:]))


def test_a_picture_is_drawn_anew_by_the_seed(models, photos):
    results = []
    for options in (("strength=0.3",), ("strength=0.3",), ("strength=0.3", "--seed", 5), ("strength=0.9",)):
        wishes = ("num_inference_steps=3", "--prompt", "red apple, flat", "--again")
        result = attndiff("apply", models / "text", photos / "one.png", *options, *wishes)
        assert (result.code, result.err) == (0, "") and "anew:      1 written" in result.out
        results.append((photos / "one.anew.png").read_bytes())
    assert results[0] == results[1] and len({*results}) == 3


@pytest.mark.parametrize(("model", "prompt"), [("inpaint", ()), ("text", ("--prompt", "cat face"))])
def test_a_hole_is_filled_and_the_rest_stays(models, photos, tmp_path, model, prompt):
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "one.png")
    given = np.asarray(Image.open(photos / "one.png"))
    for place in (tmp_path / "masks" / "one.png", tmp_path / "masks"):
        arguments = (photos / "one.png", "--mask", place, "num_inference_steps=2", *prompt, "--again")
        result = attndiff("apply", models / model, *arguments)
        assert (result.code, result.err) == (0, "")
        filled = np.asarray(Image.open(photos / "one.filled.png"))
        hole = np.asarray(mask) > 0
        assert (filled[~hole] == given[~hole]).all() and (filled[hole] != given[hole]).any()


def test_a_map_of_parts_holds_their_numbers(models, photos):
    for settings in ((), ("num_inference_steps=2", "ensemble_size=3", "--again")):
        result = attndiff("apply", models / "segment", photos / "two.webp", *settings)
        assert (result.code, result.err) == (0, "") and "parts:     1 written" in result.out
        parts = Image.open(photos / "two.parts.png")
        assert parts.mode == "P" and parts.size == (20, 12) and np.asarray(parts).max() < 4
    result = attndiff("apply", models / "map", photos / "two.parts.png", "--count", 2, "num_inference_steps=2")
    assert (result.code, result.err) == (0, "") and "drawn:     2 written" in result.out
    drawn = [Image.open(photos / f"two.parts.drawn-0{i}.png") for i in (0, 1)]
    assert {image.size for image in drawn} == {(20, 12)} and drawn[0].tobytes() != drawn[1].tobytes()


@pytest.mark.parametrize("model", ["upscale", "inpaint", "segment", "map"])
def test_sampling_without_pictures_is_refused_in_a_sentence(models, tmp_path, model):
    result = attndiff("sample", models / model, "--out", tmp_path / "grid.png")
    assert result.code == 2 and "give it pictures with attndiff apply" in result.err
    assert len(result.err.strip().splitlines()) == 1 and not (tmp_path / "grid.png").exists()


def test_what_reading_alters_is_said(models, tmp_path):
    turned = picture(3, (16, 12))
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    picture(4, mode="RGBA").save(tmp_path / "clear.png")
    result = attndiff("apply", models / "upscale", tmp_path)
    assert "alpha composited over white (1 of 2)" in result.out and "EXIF" in result.out
    assert Image.open(tmp_path / "turned.large.png").size == (24, 32)


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("upscale", ("nothing.png",), "nothing.png is no file or folder, and no pattern of any"),
        ("upscale", ("empty",), "empty has no pictures in it"),
        ("upscale", ("back_projections=2",), "PICTURE is missing"),
        ("upscale", ("one.png", "strenght=0.5"), "setting='strenght' is unknown"),
        ("upscale", ("one.png", "back_projections=many"), "back_projections"),
        ("upscale", ("one.png", "back_projections=-1"), "one.png: back_projections must be a whole number from 0"),
        ("upscale", ("one.png", "--mask", "one.png"), "--mask: .* takes none: leave it out"),
        ("upscale", ("one.png", "--prompt", "cat"), "unconditional"),
        ("upscale", ("text.png",), "text.png: cannot be read"),
        ("upscale", ("same/one.png", "same/one.jpg"), "would be what becomes of same/one.jpg"),
        ("upscale", ("one.png", "--out", "."), "would be what becomes of one.png"),
        ("upscale", ("one.png", "--out", "two.png"), "two.png is a file, not a folder"),
        ("upscale", ("one.png", "--count", "0"), "count"),
        ("inpaint", ("one.png",), "--mask: .* needs one"),
        ("inpaint", ("one.png", "--mask", "nothing.png"), "--mask nothing.png is no file or folder"),
        ("inpaint", ("one.png", "--mask", "empty"), "--mask: empty has 0 masks called one"),
        ("inpaint", ("one.png", "--mask", "two.png"), "one.png: mask_image has the shape"),
        ("segment", ("one.png", "--count", "2"), "--count: .* reads one map"),
        ("segment", ("one.png", "--mask", "two.png"), "--mask: .* takes none"),
        ("map", ("one.png",), "one.png: .*(mask|number|channel)"),
        ("text", ("one.png",), "prompt"),
        ("text", ("one.png", "--prompt", "cat", "strength=0"), "one.png: strength"),
        ("raster", ("one.png",), "attndiff sample"),
        ("caption", ("one.png",), "attndiff caption"),
    ],
)
def test_mistakes_are_one_sentence_and_cost_nothing(models, tmp_path, monkeypatch, model, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "same").mkdir()
    for name, seed in (("one.png", 0), ("two.png", 1), ("same/one.png", 2), ("same/one.jpg", 3)):
        picture(seed, (16, 16) if seed != 1 else (8, 8)).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    before = tree(tmp_path)
    result = attndiff("apply", models / model, *arguments)
    assert result.code == 2 and len(result.err.strip().splitlines()) == 1
    assert re.search(words, result.err), result.err
    assert tree(tmp_path) == before
