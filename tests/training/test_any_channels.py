"""Images of five bands and 16 bits go all the way: doctor, training, a folder that stock diffusers opens, and files."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from commands import attndiff
from diffusers import DiffusionPipeline
from PIL import Image

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.pixels.writers import save_image
from attndiff.folder.shipped import bundled_data

SIDE = 16
# Mean distance between quantiles of samples and held-out images, as a share of the value range, at most; and at most
# this share of the distance at which uniform noise lies.
BOUND, SHARE_OF_NOISE = 0.12, 0.6


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """Real emoji as five bands of 16 bits: red, green, blue, alpha and brightness."""
    folder = tmp_path_factory.mktemp("bands")
    rows = pq.read_table(bundled_data("emoji32") / "train.parquet").to_pylist()
    for i, row in enumerate([row for row in rows if row["style"] == "noto"][300:540]):
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA").resize((SIDE, SIDE))
        pixels = np.asarray(image, dtype=np.float64) / 255
        stack = np.concatenate([pixels, pixels[..., :3].mean(-1, keepdims=True)], axis=-1)
        tifffile.imwrite(folder / f"{i:03d}.tif", (stack * 65535).round().astype(np.uint16), planarconfig="contig")
    return folder


@pytest.fixture(scope="module")
def pipeline(bands, tmp_path_factory):
    """The folder of a short unconditional run on the bands."""
    out = tmp_path_factory.mktemp("run") / "bands"
    config = out.parent / "bands.yaml"
    config.write_text(
        f"out: {out}\n"
        f"data: {{path: {bands}, size: {SIDE}, channels: 5, validation: 0.2}}\n"
        "condition: {kind: none}\n"
        "model:\n  preset: tiny\n"
        "  unet: {patch_size: 1, levels: [{width: 32, depth: 1}, {width: 64, depth: 1, attention: global}]}\n"
        "optim: {steps: 300, batch_size: 16, warmup: 10, lr: 0.01, adamw_lr: 0.005, precision: fp32, ema: [0.1]}\n"
        "log: {tracker: null, validate_every: 300, sample_every: 300}\n"
    )
    result = attndiff("train", config)
    assert result.code == 0, result.err
    return out / "pipeline"


def test_the_doctor_knows_the_bands(bands):
    result = attndiff("doctor", bands, "channels=5", f"size={SIDE}")
    assert result.code == 0 and "16" in result.out and "5" in result.out


def test_samples_have_the_histograms_of_held_out_images(bands, pipeline):
    pipe = DiffusionPipeline.from_pretrained(pipeline, trust_remote_code=True)
    samples = np.asarray(
        pipe(num_images_per_prompt=64, output_type="np", generator=torch.Generator().manual_seed(0)).images
    )
    assert samples.dtype == np.uint16 and samples.shape == (64, SIDE, SIDE, 5)
    data = DataConfig(path=str(bands), size=SIDE, channels=5, validation=0.2)
    held_out = open_validation(data)
    real = np.stack([held_out[i]["image"] for i in range(len(held_out))])
    levels = np.linspace(0.02, 0.98, 49)
    for band in range(5):
        drawn = np.quantile(samples[..., band] / 65535, levels)
        expected = np.quantile((real[:, band] + 1) / 2, levels)
        distance = np.abs(drawn - expected).mean()
        assert distance < BOUND, band
        assert distance < SHARE_OF_NOISE * np.abs(levels - expected).mean(), band


def test_samples_are_files_that_read_back_the_same(pipeline, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(pipeline, trust_remote_code=True)
    image = np.asarray(pipe(num_inference_steps=2, output_type="np").images)[0]
    path = save_image(image, tmp_path / "sample", pipe.config.data)
    assert path.suffix == ".tif" and np.array_equal(tifffile.imread(path), image)
    back = ImageSet(DataConfig(path=str(tmp_path), size=SIDE, channels=5, learn_drawn=True))[0]["image"]
    assert np.allclose((back.transpose(1, 2, 0) + 1) / 2 * 65535, image, atol=0.5)
