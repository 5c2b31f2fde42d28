"""Samples written and read back are the same numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from attndiff.data.pixels.normalize import Normalizer, to_signed
from attndiff.data.pixels.writers import save_image, to_data_units
from attndiff.errors import UserError

LEVELS = {8: np.uint8, 16: np.uint16}
ROUND_TRIPS = [
    (channels, bits, suffix)
    for bits, table in {
        8: {"L": ".png", "LA": ".png", "RGB": ".png", "RGBA": ".png", 1: ".png", 2: ".tif", 5: ".tif"},
        16: {"L": ".png", 1: ".png", "RGB": ".tif", "RGBA": ".tif", 2: ".tif", 5: ".tif"},
    }.items()
    for channels, suffix in table.items()
]


@pytest.mark.parametrize(("channels", "bits", "suffix"), ROUND_TRIPS)
def test_round_trip_is_exact(channels, bits, suffix, tmp_path):
    normalizer = Normalizer(6, channels)
    data = normalizer.describe(bits)
    shape = (len(data["channels"]), 6, 6)
    levels = np.random.default_rng(0).integers(1, 1 << bits, shape).astype(LEVELS[bits])
    sample = torch.from_numpy(normalizer.tensor(levels))
    array = to_data_units(sample, data)
    assert array.dtype == LEVELS[bits]
    np.testing.assert_array_equal(array, levels.transpose(1, 2, 0))
    path = save_image(array, tmp_path / "deep" / "image.png", data)
    assert path.suffix == suffix and path.is_file()
    back = normalizer.normalize(path).levels
    assert back.dtype == LEVELS[bits]
    np.testing.assert_array_equal(back, levels)


def test_every_sixteen_bit_level_survives(tmp_path):
    data = Normalizer(256, "L").describe(16)
    levels = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    path = save_image(to_data_units(to_signed(levels), data), tmp_path / "ramp.png", data)
    assert Image.open(path).mode == "I;16"
    np.testing.assert_array_equal(Normalizer(256, "L").normalize(path).levels, levels)


@pytest.mark.parametrize("channels", ["L", "RGB", 3, 5])
def test_floats_round_trip(channels, tmp_path):
    normalizer = Normalizer(4, channels)
    data = normalizer.describe(32)
    sample = np.random.default_rng(0).uniform(-1, 1, (len(data["channels"]), 4, 4)).astype(np.float32)
    path = save_image(to_data_units(sample, data), tmp_path / "image", data)
    assert path.suffix == ".tif"
    np.testing.assert_allclose(normalizer(path), sample, atol=1e-6)


def test_to_data_units_clips_and_takes_batches():
    data = Normalizer(2, "RGB").describe()
    batch = torch.full((5, 3, 2, 2), 7.0, dtype=torch.bfloat16)
    batch[1] = -7
    array = to_data_units(batch, data)
    assert array.shape == (5, 2, 2, 3) and (array[0] == 255).all() and (array[1] == 0).all()
    rounded = to_data_units(torch.zeros(3, 1, 1), data)
    assert rounded.ravel().tolist() == [128, 128, 128]  # 127.5, to the even neighbour


def test_mistakes_are_named(tmp_path):
    data = Normalizer(4, "RGB").describe()
    with pytest.raises(UserError, match="not \\(height, width, 3\\)"):
        save_image(np.zeros((4, 4, 5), np.uint8), tmp_path / "x.png", data)
    with pytest.raises(UserError, match="array is float64, but the data has 8 bits"):
        save_image(np.zeros((4, 4, 3)), tmp_path / "x.png", data)
