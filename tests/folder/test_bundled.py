"""What ships with the package keeps its promises: sizes, licences, and code that is the package's own."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from places import ROOT
from torch.utils.flop_counter import FlopCounterMode

import attndiff
from attndiff.folder.code_bundle import bundle_component
from attndiff.folder.shipped import bundled_data, bundled_model

DATA = bundled_data("emoji32")


@pytest.fixture(scope="module", params=["emoji-xs", "emoji-xs-student"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name):
    return bundled_model(name)


@pytest.fixture(scope="module")
def pipe(name):
    pipe = attndiff.load(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder_size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_sizes_are_within_the_limits(pipe, folder):
    networks = (pipe.unet, pipe.condition_encoder)
    assert sum(p.numel() for network in networks for p in network.parameters()) <= 12_000_000
    assert folder_size(folder) <= 25_000_000 and folder_size(DATA) <= 12_000_000
    tokens, counter = torch.randn(1, 24, 192), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        pipe.unet(torch.randn(1, 3, 32, 32), torch.zeros(1), tokens, pooled_projections=tokens[:, 0])
    assert counter.get_total_flops() <= 2e9


def test_the_code_in_the_folder_is_the_code_of_the_package(pipe, folder):
    """After a change of the networks or the pipeline: ``python scripts/bundle_model.py``."""
    for component, part in ((pipe.unet, "unet"), (pipe.condition_encoder, "condition_encoder"), (pipe, ".")):
        file, source = bundle_component(type(component))
        assert (folder / part / file).read_text() == source


def test_the_model_of_sprites_writes_with_the_code_of_the_package_and_names_its_licence():
    """It lies outside the wheel, because its images do."""
    folder = ROOT / "model_cards/caption-sprites/model"
    pipe = attndiff.load(folder)
    parts = ((pipe.text_decoder, "text_decoder"), (pipe.condition_encoder, "condition_encoder"), (pipe, "."))
    for component, part in parts:
        file, source = bundle_component(type(component))
        assert (folder / part / file).read_text() == source
    card = (folder / "README.md").read_text()
    assert "license: cc-by-sa-3.0" in card and "Johannes Sjölund" in card and folder_size(folder) <= 5_000_000
    (caption,) = pipe(Image.new("RGBA", (64, 64))).captions
    assert caption.startswith("a ")


def test_every_image_may_be_passed_on():
    allowed = {"MIT", "CC-BY-4.0", "Apache-2.0 (flags: public domain)"}
    for part in ("train", "validation"):
        assert set(pq.read_table(DATA / f"{part}.parquet", columns=["license"])["license"].to_pylist()) <= allowed
    assert len(list((DATA / "LICENSES").iterdir())) >= 4


def test_no_held_out_family_is_trained_on():
    families = [
        set(pq.read_table(DATA / f"{part}.parquet", columns=["family"])["family"].to_pylist())
        for part in ("train", "validation")
    ]
    assert not families[0] & families[1]


def test_a_prompt_names_the_colour_of_what_comes_out(pipe):
    images = pipe(
        ["blue heart, noto", "red apple, fluent flat"],
        num_inference_steps=4 if pipe.config.student else 12,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        output_type="pt",
    ).images
    blue, red = images[:, :, 8:24, 8:24].mean(dim=(2, 3))
    assert blue[2] > blue[0] + 0.2 and red[0] > red[2] + 0.2


def test_the_student_takes_few_calls_and_has_its_guidance_built_in():
    student = attndiff.load("emoji-xs-student").config.student
    assert set(student["sigmas"]) == {"1", "2", "4"} and student["guidance_scale"] == 3


def test_the_card_says_where_the_model_came_from(name, folder):
    card = (folder / "README.md").read_text()
    settings = json.loads((folder / "unet" / "config.json").read_text())
    assert settings["_class_name"] == "AttentionUNet2DModel"
    for word in ("MIT", "Apache-2.0", "images seen", "held-out loss", "near-copies", "hardware"):
        assert word in card, word
