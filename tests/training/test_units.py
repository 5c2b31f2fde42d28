"""Values in units go all the way: training, the pipeline folder, samples, files, images that a call is given."""

import json

import numpy as np
import pytest
import tifffile
import torch
import yaml
from commands import attndiff
from diffusers import DiffusionPipeline
from PIL import Image
from valued import write_dicom, write_values

from attndiff.apps.data_settings import data_config
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.folder.open import load
from attndiff.metrics.reference import model_settings, open_reference

SIDE, COUNT = 16, 12
BODY = {"value_range": [-1000, 1000], "units": "HU"}
TOLD = {"bit_depth": 32, "value_range": [-1000, 1000], "units": "HU"}
# What the data is, its settings, and what a pipeline then says of it.
RUNS = {
    "setting": ("int16 tif", BODY, TOLD),
    "floats": ("float32 npy", BODY, TOLD),
    "volumes": ("rescaled nii.gz", BODY, TOLD),
    "header": ("CT dcm", {}, {"bit_depth": 32, "value_range": [-1024, 64511], "units": "HU"}),
    "numbers": ("uint16 tif", {}, {"bit_depth": 16, "value_range": [0, 65535]}),
}


def scans(folder, kind: str):
    """Blobs, each of another height."""
    folder.mkdir()
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    for i in range(COUNT):
        values = np.round(-1000 + (1000 + 150 * i) * np.exp(-(x**2 + y**2) / (10 + 3 * i)))
        write_values(folder, kind, values + 1024 if kind.startswith("uint16") else values, f"{i:02d}")
    return folder


def trained(folder, images, data: dict, **sections):
    """The pipeline folder of a run of two steps."""
    values = {
        "out": str(folder / "run"),
        "data": {"path": str(images), "size": SIDE, "channels": "L", "validation": 0.3, **data},
        "condition": {"kind": "none"},
        "model": {"preset": "tiny"},
        "optim": {"steps": 2, "batch_size": 4, "warmup": 1, "precision": "fp32"},
        "log": {"tracker": None, "sample_every": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**values, **sections}))
    result = attndiff("train", folder / "config.yaml")
    assert result.code == 0, result.err
    return folder / "run" / "pipeline"


@pytest.fixture(scope="module", params=RUNS)
def run(request, tmp_path_factory):
    """Images, pipeline folder, and what it should say."""
    kind, settings, told = RUNS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    images = scans(folder / "images", kind)
    return images, trained(folder, images, settings), told


def test_facts_are_in_the_run_the_folder_and_the_card(run):
    _, folder, told = run
    learned = json.loads((folder.parent / "learned/learned.json").read_text())["data"]
    for facts in (learned, load(folder).config.data):
        assert {key: facts[key] for key in ("bit_depth", "value_range", "units") if key in facts} == told
    low, high = told["value_range"]
    assert f"| values | {low} to {high}{' HU' if 'units' in told else ''} |" in (folder / "README.md").read_text()


def test_samples_come_out_in_units_with_and_without_attndiff(run):
    _, folder, told = run
    low, high = told["value_range"]
    for pipe in (load(folder), DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)):
        pipe.set_progress_bar_config(disable=True)
        call = {"num_inference_steps": 2, "num_images_per_prompt": 2}
        shares, units, listed = (
            pipe(**call, output_type=kind, generator=torch.Generator().manual_seed(0)).images
            for kind in ("pt", "np", "pil")
        )
        assert units.dtype == (np.float32 if "units" in told else np.uint16) and units.shape == (2, SIDE, SIDE, 1)
        expected = low + shares.permute(0, 2, 3, 1).numpy().astype(np.float64) * (high - low)
        np.testing.assert_allclose(units, expected, atol=0.51 if "units" not in told else 1e-6 * (high - low))
        np.testing.assert_array_equal(listed, units)


def test_sample_writes_files_in_units_and_pictures_in_their_window(run, tmp_path):
    _, folder, told = run
    result = attndiff("sample", folder, "--images", tmp_path / "images", "--out", tmp_path / "grid.png", "--count", 2)
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "grid.png").mode == "RGB"
    files = sorted((tmp_path / "images").iterdir())
    assert [file.suffix for file in files] == [".tif" if "units" in told else ".png"] * 2
    if "units" in told:
        stored = tifffile.TiffFile(files[0])
        assert json.loads(stored.pages.first.description) == {key: told[key] for key in ("value_range", "units")}
        config = data_config(str(tmp_path / "images"), [], model_settings(load(folder)))
        back = ImageSet(config.replace(value_range=told["value_range"], learn_drawn=True))[0]["image"]
        low, high = told["value_range"]
        np.testing.assert_allclose((back[0] + 1) / 2 * (high - low) + low, stored.asarray(), atol=1e-6 * (high - low))


def test_real_images_are_read_as_the_model_has_them(run):
    images, folder, told = run
    pipe = load(folder)
    reference = open_reference(data_config(str(images), [], model_settings(pipe)), pipe)
    described = reference.train.images.describe()
    assert {key: described[key] for key in ("bit_depth", "value_range", "units") if key in described} == told


def test_an_evaluation_refuses_no_file_of_the_model_s_kind(tmp_path):
    """Of a model that learned DICOM by its header, other files of the same units."""
    ct = tmp_path / "ct"
    ct.mkdir()
    for i in range(4):
        write_dicom(ct / f"{i}.dcm", np.full((SIDE, SIDE), 500 * i, np.uint16))
    pipe = load(trained(tmp_path, ct, {}))
    floats = tmp_path / "floats"
    floats.mkdir()
    for i in range(4):
        write_values(floats, "float32 npy", np.full((SIDE, SIDE), 500 * i - 1024), f"{i}")
    references = [open_reference(DataConfig(path=str(p), size=SIDE, channels="L"), pipe, 1) for p in (ct, floats)]
    one, two = (reference.test.tensor() for reference in references)
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpainting")
    images = scans(folder / "images", "int16 tif")
    pipe = load(trained(folder, images, BODY, task={"name": "inpaint"}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


GIVEN = np.random.default_rng(0).uniform(-1000, 1000, (SIDE, SIDE, 1)).astype(np.float32)
HOLE = torch.zeros(1, 1, SIDE, SIDE)
HOLE[..., 4:9, 5:11] = 1


@pytest.mark.parametrize("form", ["array", "list", "batch", "picture"])
@pytest.mark.parametrize("output", ["np", "pil"])
def test_a_call_is_given_values_in_units(inpainting, form, output):
    forms = {"array": GIVEN, "list": [GIVEN], "batch": GIVEN[None], "picture": Image.fromarray(GIVEN[..., 0])}
    call = {"mask_image": HOLE, "num_inference_steps": 2, "output_type": output}
    result = inpainting(forms[form], **call, generator=torch.Generator().manual_seed(0)).images[0]
    known = HOLE[0, 0].numpy() == 0
    assert result.shape == (SIDE, SIDE, 1)
    np.testing.assert_allclose(result[known], GIVEN[known], atol=0 if form != "picture" else 1e-3)
    shares = torch.from_numpy((GIVEN.astype(np.float64) + 1000) / 2000).permute(2, 0, 1)[None]
    as_tensor = inpainting(shares, **call, generator=torch.Generator().manual_seed(0)).images[0]
    np.testing.assert_allclose(result, as_tensor, atol=0.02)


def test_what_a_call_is_given_beyond_the_range_is_clipped_and_said(inpainting, caplog):
    call = {"mask_image": torch.ones(1, 1, SIDE, SIDE), "num_inference_steps": 1, "output_type": "pt"}
    inpainting(np.where(np.arange(SIDE)[:, None, None] < 4, np.float32(2000), GIVEN), **call)
    assert "25.00% of the values lie outside of -1000 to 1000 and were clipped" in caplog.text
    with pytest.raises(ValueError, match="image holds numbers that are not finite"):
        inpainting(np.full_like(GIVEN, np.nan), **call)


def test_sixteen_bits_that_were_given_come_back(tmp_path):
    pipe = load(trained(tmp_path, scans(tmp_path / "images", "uint16 tif"), {}, task={"name": "inpaint"}))
    given = np.random.default_rng(0).integers(0, 65536, (1, SIDE, SIDE, 1)).astype(np.uint16)
    result = pipe(given / np.float32(65535), HOLE, num_inference_steps=1, output_type="np").images
    known = HOLE[0, 0].numpy() == 0
    np.testing.assert_array_equal(result[0, known], given[0, known])


def test_parts_that_state_different_ranges_are_refused(tmp_path):
    for part, intercept in (("train", -1024), ("validation", 0)):
        (tmp_path / "images" / part).mkdir(parents=True)
        for i in range(4):
            path = tmp_path / "images" / part / f"{i}.dcm"
            write_dicom(path, np.full((SIDE, SIDE), 100 * i, np.uint16), RescaleIntercept=intercept)
    config = {"data": {"path": str(tmp_path / "images"), "size": SIDE, "channels": "L"}, "out": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**config, "condition": {"kind": "none"}, "optim": {"steps": 1}})
    )
    result = attndiff("train", tmp_path / "config.yaml")
    assert result.code != 0 and "state different value ranges" in result.err and "Traceback" not in result.err
