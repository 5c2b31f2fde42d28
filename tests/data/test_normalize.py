"""Every kind of image against the exact tensor it must become, or the exact refusal."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
from golden import SIZE, cases, encode, png_header
from PIL import Image

from attndiff.data.pixels.normalize import Normalizer, to_signed
from attndiff.errors import UserError

CASES = {case.name: case for case in cases()}
READ = [name for name, case in CASES.items() if case.refusal is None]
REFUSED = [name for name, case in CASES.items() if case.refusal is not None]


def test_golden_set_is_large_enough():
    assert len(READ) >= 20 and len(REFUSED) >= 8


@pytest.mark.parametrize("name", READ)
def test_golden_tensor(name):
    case = CASES[name]
    normalizer = Normalizer(SIZE, **case.options)
    result = normalizer.normalize(case.data)
    assert result.levels.dtype == case.levels.dtype
    np.testing.assert_array_equal(result.levels, case.levels)
    missing = [note for note in case.notes if note not in result.notes]
    assert not missing, result.notes
    tensor = normalizer(case.data)
    assert tensor.dtype == np.float32 and np.abs(tensor).max() <= 1 + normalizer.has_alpha
    peak = {"uint8": 255, "uint16": 65535, "float32": 1}[str(case.levels.dtype)]
    expected = case.levels / peak * 2.0 - 1
    if normalizer.has_alpha:
        expected[:-1] *= case.levels[-1] / peak
        expected[-1] *= 2
    np.testing.assert_allclose(tensor, expected, atol=2e-7)


@pytest.mark.parametrize("name", REFUSED)
def test_golden_refusal(name):
    case = CASES[name]
    with pytest.raises(UserError) as error:
        Normalizer(SIZE, **case.options)(case.data, name)
    assert str(error.value).startswith(f"{name}: ") and re.search(case.refusal, str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_bytes_path_and_opened_image_agree(tmp_path):
    case = CASES["rgba.png"]
    (tmp_path / "rgba.png").write_bytes(case.data)
    normalizer = Normalizer(SIZE)
    expected = normalizer(case.data)
    np.testing.assert_array_equal(normalizer(tmp_path / "rgba.png"), expected)
    np.testing.assert_array_equal(normalizer(Image.open(io.BytesIO(case.data))), expected)
    with pytest.raises(UserError, match=r"absent\.png: cannot be opened"):
        normalizer(tmp_path / "absent.png")


def test_sixteen_bit_ramp_is_scaled_and_not_saturated():
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    tensor = Normalizer(64, "L")(encode(ramp))
    assert len(np.unique(tensor)) == ramp.size
    np.testing.assert_allclose((tensor[0] + 1) / 2 * 65535, ramp, atol=0.01)


def test_lanczos_agrees_with_pillow():
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ours = Normalizer(20).normalize(encode(noise)).levels
    crop = Image.fromarray(noise[:, 10:60])
    theirs = np.asarray(crop.resize((20, 20), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    inner = (slice(None), slice(4, -4), slice(4, -4))  # at the edges ours also sees pixels beyond the crop
    assert np.abs(ours[inner].astype(int) - theirs[inner]).max() <= 1


def test_a_bomb_is_refused_without_the_memory_to_decode_it():
    code = (
        "import resource, sys, warnings; warnings.simplefilter('error')\n"
        "from attndiff.data.pixels.normalize import Normalizer\n"
        "limit = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 100_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: Normalizer(8)(sys.stdin.buffer.read(), 'bomb.png')\n"
        "except ValueError as error: print(error)"
    )
    data = png_header(12_000, 12_000)
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert b"bomb.png: 12000x12000 is more than 64 megapixels" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size=0"),
        ({"size": True}, "size=True"),
        ({"channels": "RBG"}, "did you mean 'RGB'"),
        ({"channels": 0}, "channels=0"),
        ({"resize": "lanzcos"}, "did you mean 'lanczos'"),
        ({"background": "whit"}, "background='whit' is no colour"),
        ({"ink": "blak", "channels": "LA"}, "ink='blak' is no colour"),
        ({"ink": "black"}, "set channels to LA or RGBA, not RGB"),
    ],
)
def test_impossible_options(options, words):
    with pytest.raises(UserError, match=words):
        Normalizer(**{"size": 4, **options})


def test_describe():
    assert Normalizer(8, "LA").describe() == {
        "channels": ["L", "A"],
        "bit_depth": 8,
        "value_range": [0, 255],
        "class_names": None,
        "size": [8, 8],
        "alpha": "premultiplied",
    }
    assert Normalizer(8, 2).describe(16, ["a"])["channels"] == ["band1", "band2"]


def test_to_signed_reaches_both_ends():
    for dtype, peak in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1)):
        np.testing.assert_array_equal(to_signed(np.array([0, peak], dtype)), [-1, 1])
