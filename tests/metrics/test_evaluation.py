"""The measures of samples give what they must on planted cases, and the emoji evaluation runs from end to end."""

import io
import json
import sys
from pathlib import Path

import evaluate_emoji
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from factories import text_pipeline
from PIL import Image

from attndiff.metrics.extractors.classifier import classify, train_classifier
from attndiff.metrics.extractors.named import Captions
from attndiff.metrics.extractors.pretext import Material
from attndiff.metrics.neighbours import nearest_images, neighbour_sheet
from attndiff.metrics.own_condition import exchanged, is_choice
from attndiff.metrics.retrieval import caption_ranks, captions_within, new_retrieval, train_retrieval


def noise(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_images_are_nearest_to_themselves_at_distance_zero():
    images = noise(70)
    indices, distances = nearest_images(images, images)
    assert torch.equal(indices[:, 0], torch.arange(70))
    assert (distances == 0).all()


@pytest.mark.parametrize("shift", [(2, -1), (0, 2), (-2, -2)])
def test_a_shifted_copy_is_found(shift):
    reference = noise(30)
    samples = reference[[7, 21]].roll(shift, dims=(2, 3))
    indices, distances = nearest_images(samples, reference, k=2)
    assert indices[:, 0].tolist() == [7, 21]
    assert (distances[:, 0] == 0).all()
    assert (distances[:, 1] > 0.1).all()


def test_a_shift_beyond_two_pixels_is_no_copy():
    reference = noise(30)
    _, distances = nearest_images(reference[:1].roll(3, dims=3), reference)
    assert distances.item() > 0.1


def test_features_decide_where_given():
    reference = torch.stack([torch.full((3, 16, 16), level) for level in (-0.5, 0.0, 0.5)])
    indices, distances = nearest_images(reference[[2]] * -1, reference, features=lambda x: x.mean((2, 3)).abs())
    assert indices.item() in (0, 2)
    assert distances.item() == 0


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"16.*8"):
        nearest_images(noise(1), noise(1, size=8))


def test_the_sheet_has_a_row_of_neighbours_below_every_row():
    picture = Image.new("RGB", (16, 16), "red")
    one = neighbour_sheet({"a": [picture]}, {"a": [picture]}, [""])
    two = neighbour_sheet({"a": [picture], "b": [picture]}, {"a": [picture], "b": [picture]}, [""])
    assert np.asarray(two).shape[0] > 1.8 * np.asarray(one).shape[0]
    assert (np.asarray(one) == (255, 0, 0)).all(2).sum() == 2 * 96 * 96


def stripes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of upright (class 1) or level (class 0) stripes, of any colour, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    wave = torch.where(torch.arange(16) % 4 < 2, 1.0, -1.0).expand(n, 1, 16, 16)
    images = torch.where(labels.view(-1, 1, 1, 1).bool(), wave, wave.transpose(2, 3))
    colours = torch.randn(n, 3, 1, 1, generator=generator)
    return images * colours + 0.1 * torch.randn(n, 3, 16, 16, generator=generator), labels


def test_the_classifier_learns_two_styles_and_repeats_itself():
    images, labels = stripes(256, seed=0)
    new_images, new_labels = stripes(100, seed=1)
    model = train_classifier(images, labels, epochs=6, width=8)
    assert (classify(model, new_images) == new_labels).float().mean() > 0.95
    again = train_classifier(images, labels, epochs=6, width=8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_caption_ranks_of_a_perfect_judge_of_chance_and_of_ties():
    own = torch.arange(200)
    assert (caption_ranks(torch.eye(200), own) == 1).all()
    chance = torch.rand(2000, 200, generator=torch.Generator().manual_seed(1))
    ranks = caption_ranks(chance, own.repeat(10))
    assert (ranks == 1).float().mean().item() == pytest.approx(1 / 50, abs=0.01)
    assert ranks.min() == 1
    assert ranks.max() == 50
    assert (caption_ranks(torch.zeros(200, 200), own) == 50).all()


def test_a_pool_smaller_than_the_choice_is_refused():
    with pytest.raises(ValueError, match="too few"):
        caption_ranks(torch.eye(10), torch.arange(10))


def test_captions_of_other_groups_are_not_drawn():
    """Four styles of 25 captions, and a judge that prefers any caption of another style."""
    styles = [i // 25 for i in range(100)]
    captions = [f"{i}, {style}" for i, style in enumerate(styles)]
    allowed = captions_within([str(style) for style in styles], captions, captions)
    assert allowed.sum(1).tolist() == [25] * 100 and allowed.diagonal().all()
    similarity = torch.eye(100).where(allowed, 2.0)
    own = torch.arange(100)
    assert (caption_ranks(similarity, own) > 1).all()
    assert (caption_ranks(similarity, own, allowed=allowed) == 1).all()
    assert (caption_ranks(torch.zeros(100, 100), own, allowed=allowed) == 25).all()
    assert (caption_ranks(torch.zeros(100, 100), own, candidates=10, allowed=allowed) == 10).all()


def test_own_captions_are_judged_within_a_style():
    """A judge that knows the style alone is right by chance there; a lone caption of its style is left out."""
    styles = ["red", "blue"] * 30 + ["white"]
    captions = [f"{i}, {style}" for i, style in enumerate(styles)]
    colours = {"red": (1.0, -1, -1), "blue": (-1.0, -1, 1), "white": (1.0, 1, 1)}
    images = torch.stack([torch.tensor(colours[style]).view(3, 1, 1).expand(3, 16, 16) for style in styles])
    model = new_retrieval(captions, [[caption] for caption in captions], channels=3)
    material = Material(images, [[caption] for caption in captions], {})
    judge = Captions(model, material, material, torch.Generator())
    anywhere, inside = (judge.judge(model.trunk, images, captions, groups) for groups in (None, styles))
    assert (len(anywhere.hits), anywhere.chance) == (61, 1 / 50)
    assert (len(inside.hits), inside.chance) == (60, pytest.approx(1 / 30))


def test_captions_are_exchanged_within_groups():
    captions, groups = ["a", "b", "c", "d", "e"], ["x", "x", "y", "y", "z"]
    assert exchanged(captions, groups) == ["b", "a", "d", "c", "e"]
    assert is_choice(captions, groups) and not is_choice(["a", "a", "b"], ["x", "x", "y"])


def test_caption_retrieval_learns_colours():
    names = ["red", "green", "blue", "white"] * 48
    colours = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1)}
    images = torch.stack([torch.tensor(colours[n]).view(3, 1, 1).float().expand(3, 16, 16) for n in names])
    images = images + 0.2 * noise(len(names))
    captions = [[name, f"{name}, a colour"] for name in names]
    model = new_retrieval(names, captions, channels=3)
    train_retrieval(model, images, names, captions, epochs=20)
    pool = sorted(colours)
    own = torch.tensor([pool.index(name) for name in names])
    assert (caption_ranks(model.similarity(images, pool), own, candidates=4) == 1).float().mean() > 0.95


# The script


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(evaluate_emoji, "CONCEPTS", ["name 0", "name 1"])
    monkeypatch.setattr(evaluate_emoji, "SEEDS_OF_WITHHELD", 2)
    return evaluate_emoji


def write_emoji(folder: Path) -> Path:
    """Tiny emoji data with a recipe: 12 training names, 4 held-out ones, two styles and one that is left out."""
    rng = np.random.default_rng(0)
    for split, names in (("train", range(12)), ("validation", range(12, 16))):
        rows = []
        for name in names:
            for style in ("flat", "3d", "other"):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "PNG")
                caption = f"name {name}"
                rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "captions": [f"{caption}, {style}"]})
                rows[-1] |= {"caption": caption, "style": style}
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    recipe = folder / "recipe.yaml"
    data = {"path": str(folder), "size": 16, "caption_column": "captions", "where": {"style": ["flat", "3d"]}}
    data["exclude"] = [{"caption": "name 1", "style": "3d"}]
    recipe.write_text(json.dumps({"out": "run", "data": data, "optim": {"steps": 1}}))
    return recipe


def test_the_emoji_evaluation_runs_and_goes_on_where_it_stopped(tmp_path, script, monkeypatch):
    (tmp_path / "data").mkdir()
    recipe, model, out = write_emoji(tmp_path / "data"), tmp_path / "model", tmp_path / "out"
    text_pipeline().save_pretrained(model)
    arguments = ["evaluate_emoji", str(model), "--out", str(out), "--json", str(out / "report.json")]
    arguments += ["--recipe", str(recipe), "--steps", "1", "--style-epochs", "1", "--caption-epochs", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    report = json.loads((out / "report.json").read_text())
    assert [cell["prompt"] for cell in report["grid"] if cell["withheld"]] == ["name 1, 3d"]
    assert len(report["grid"]) == 4
    assert "name 1, 3d" not in [cell["nearest"] for cell in report["grid"]]
    (row,) = report["withheld_pairs"]
    assert (row["concept"], row["style"], len(row["ranks"])) == ("name 1", "3d", 2)
    assert report["generated"]["held-out captions"]["caption_retrieval"]["n"] == 4
    assert report["real"]["caption_retrieval_training captions"]["n"] == 10
    assert report["real"]["nearest_training_image_held_out_families"]["n"] == 8
    assert (np.asarray(Image.open(out / "grid.png")) == (255, 0, 0)).all(2).sum() > 500
    assert Image.open(out / "grid_neighbours.png").height > 1.8 * Image.open(out / "grid.png").height

    card = (out / "evaluation.md").read_text()
    assert f"{report['generated']['training captions']['style_accuracy']['share']:.1%}" in card
    assert f"{report['near_copy_threshold']:.4f}" in card
    assert "| name 1, 3d |" in card

    monkeypatch.setattr(script.Samples, "pipe", property(lambda self: pytest.fail("sampled again")))
    script.main()
    again = json.loads((out / "report.json").read_text())
    assert {**again, "seconds": 0} == {**report, "seconds": 0}
