"""The model card says what the run measured, shows only pictures that are there, and leaves out what is not known."""

import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import attndiff
from attndiff.training.build import build
from attndiff.training.card import write_card
from attndiff.training.config import make_config
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.checkpoint import RunState

LICENCES = ["MIT", "CC-BY-4.0", "MIT"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("validation", 4)):
        rows = []
        for i in range(n):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, "PNG")
            row = {"image": {"bytes": buffer.getvalue(), "path": None}, "caption": f"shape {i}", "kind": "ab"[i % 2]}
            rows.append(row | {"license": LICENCES[i % 3]})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def finished_run(data: Path, out: Path, kind: str = "text"):
    """Everything that `write_card` takes, of a run of 40 steps that lasted 8 seconds."""
    columns = {"text": {"caption_column": "caption"}, "class": {"label_column": "kind"}, "none": {}}[kind]
    condition = {"kind": kind, "max_length": 8, "vocab_size": 300}
    values = {"out": str(out), "data": {"path": str(data), "size": 16, **columns}, "condition": condition}
    config = make_config(values | {"model": {"preset": "tiny"}, "optim": {"steps": 40, "batch_size": 8}})
    parts = build(config)
    with torch.no_grad():
        for parameter in parts.model.parameters():  # a new network outputs zeros
            parameter.add_(0.05 * torch.randn(parameter.shape))
    state = RunState(parts.model, PowerEMA(parts.model), [], step=40, seconds=8.0)
    return config, parts, state


def validation_entry() -> dict:
    """What the log's last validation holds: figures that no other part of a card could contain."""
    ratios = [0.125 * 2**i for i in range(8)]
    results = {
        name: {"loss": 0.4321 - 0.1 * k, "n": 4, "noise_over_signal": ratios}
        | {"per_level": [0.01234 * (i + 1) + 0.00011 * k for i in range(8)], "x0_error": 0.05}
        for k, name in enumerate(("raw", "ema_0.050", "ema_0.100"))
    }
    return {"step": 40, "images": 320, **results}


def pictures_of(out: Path) -> None:
    (out / "samples").mkdir(parents=True)
    (out / "log.jsonl").write_text("")
    for name, colour in (("samples/step_00000020", "red"), ("samples/step_00000040", "blue"), ("loss_curve", "green")):
        Image.new("RGB", (8, 8), colour).save(out / f"{name}.png")


def parse(card: Path) -> tuple[dict, str]:
    _, front, body = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def links(body: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", body)


def card_of(config, parts, state, validation, best, folder):
    """The card of a folder that opens with these weights."""
    return write_card(config, parts, state, validation, (best, state.named()[best]), folder)


def test_the_card_holds_every_figure_of_the_run(data, tmp_path):
    pictures_of(tmp_path)
    config, parts, state = finished_run(data, tmp_path)
    entry = validation_entry()
    before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    front, body = parse(card_of(config, parts, state, entry, "ema_0.100", tmp_path / "pipeline"))
    assert front["library_name"] == "diffusers"
    assert front["pipeline_tag"] == "text-to-image"
    assert "attndiff" in front["tags"]
    assert f"attndiff {attndiff.__version__}" in body
    for name in ("raw", "ema_0.050", "ema_0.100"):
        assert f"{entry[name]['loss']:.4f}" in body
        assert all(f"{error:.5f}" in body for error in entry[name]["per_level"])
    assert all(f"| {ratio:.3f} |" in body for ratio in entry["raw"]["noise_over_signal"])
    assert "| ema_0.100 (chosen) | 0.2321 |" in body
    assert "| images seen | 320 (26.7 visits to each) |" in body
    assert "| speed | 40.0 images/s" in body
    assert "| licence: MIT | 8 training images |" in body
    assert "| licence: CC-BY-4.0 | 4 training images |" in body
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.S)[1])
    assert settings["optim"]["steps"] == 40
    assert settings["data"]["path"] == data.name
    assert str(data.parent) not in body
    assert all(torch.equal(p, before[name]) for name, p in parts.model.named_parameters())


def test_where_words_acted_is_drawn_of_a_network_whose_blocks_are_compiled(data, tmp_path):
    config, parts, state = finished_run(data, tmp_path)
    for block in parts.model.blocks():
        block.compile(backend="eager", dynamic=False)
    card_of(config, parts, state, validation_entry(), "raw", tmp_path / "pipeline")
    assert (tmp_path / "pipeline/attention.png").stat().st_size > 0


def test_every_table_has_one_width(data, tmp_path):
    config, parts, state = finished_run(data, tmp_path)
    _, body = parse(card_of(config, parts, state, validation_entry(), "raw", tmp_path / "pipeline"))
    tables = re.findall(r"(?:^\|.*\n)+", body, re.M)
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_card_shows_the_last_grid_and_only_pictures_that_are_there(data, tmp_path):
    pictures_of(tmp_path)
    config, parts, state = finished_run(data, tmp_path)
    card = card_of(config, parts, state, validation_entry(), "raw", tmp_path / "pipeline")
    assert set(links(card.read_text())) == {"grid.png", "loss_curve.png", "attention.png", "neighbours.png"}
    assert all((card.parent / link).is_file() for link in links(card.read_text()))
    assert Image.open(card.parent / "grid.png").getpixel((0, 0)) == (0, 0, 255)


def test_the_memorisation_loss_is_of_the_chosen_weights(data, tmp_path):
    config, parts, state = finished_run(data, tmp_path)
    losses = {}
    for best in ("raw", "ema_0.050"):
        _, body = parse(card_of(config, parts, state, validation_entry(), best, tmp_path / "pipeline"))
        losses[best] = float(re.search(r"evenly over the data: ([\d.]+)", body)[1])
    assert losses["raw"] == losses["ema_0.050"]  # the averages of this run are its weights
    state.ema.averages[0.05] = [p * 0 for p in state.ema.averages[0.05]]
    _, body = parse(card_of(config, parts, state, validation_entry(), "ema_0.050", tmp_path / "pipeline"))
    assert float(re.search(r"evenly over the data: ([\d.]+)", body)[1]) != losses["raw"]


@pytest.mark.parametrize("kind", ["class", "none"])
def test_without_text_or_a_measured_loss(data, tmp_path, kind):
    config, parts, state = finished_run(data, tmp_path, kind)
    front, body = parse(card_of(config, parts, state, {"raw": {"loss": 0.0}}, "raw", tmp_path / "pipeline"))
    assert front["pipeline_tag"] == "unconditional-image-generation"
    assert "0.0000" not in body
    assert links(body) == ["neighbours.png"]
    assert ('class_labels="a"' in body) == (kind == "class")


@pytest.mark.parametrize("kind", ["class", "none"])
def test_guidance_is_named_only_where_there_is_something_to_lead_away_from(data, tmp_path, kind):
    pictures_of(tmp_path)
    _, body = parse(card_of(*finished_run(data, tmp_path, kind), validation_entry(), "raw", tmp_path / "pipeline"))
    assert ("with guidance" in body) == (kind == "class") and "grid.png" in links(body)
