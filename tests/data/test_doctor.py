"""The doctor names every file that training would drop or alter, and imports no model library to do so."""

import json
import subprocess
import sys

import numpy as np
import pytest
from golden import SIZE, cases
from PIL import Image

from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose, near_pairs, thumbnail
from attndiff.data.image_set import ImageSet
from attndiff.errors import UserError


def test_golden_folder(tmp_path):
    golden = [case for case in cases() if not case.options]
    for case in golden:
        (tmp_path / case.name).write_bytes(case.data)
    report = diagnose(DataConfig(path=str(tmp_path), size=SIZE, on_error="raise"))
    refused = {case.name for case in golden if case.refusal}
    assert {name for name, _ in report.dropped} == refused
    assert report.rows == len(golden) and report.usable == len(golden) - len(refused) and report.tensor == [3, 4, 4]
    for case in golden:
        for note in case.notes:
            assert case.name in report.altered[note]
    assert report.altered["resized up"] == ["pixel.png"] and report.sizes["1x1"] == 1
    assert report.kinds["CMYK 8-bit"] == 1 and report.kinds["LA 8-bit"] == 1
    same = next(group for group in report.duplicates if "rgb.png" in group)
    assert {"rgb.bmp", "rgb.webp", "animated.png", "exif1.png", "tall.png"} <= set(same)
    assert json.loads(report.to_json())["altered"] == report.altered
    skipped = ImageSet(DataConfig(path=str(tmp_path), size=SIZE)).skipped
    assert skipped == report.dropped  # what training leaves out is what the doctor said


@pytest.fixture
def folder(tmp_path):
    """Two classes, captions in a metadata file, a repeated image, a nearly repeated one and a broken one."""
    base = np.random.default_rng(0).integers(20, 200, (4, 16, 16, 3), dtype=np.uint8)
    for i, array in enumerate([*base, base[0], base[1] + 1]):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    texts = ["red", "red", "a long caption", "", "x", "y", "z"]
    rows = zip([*(f"{i}.png" for i in range(6)), "broken.png"], texts, "aababab", strict=True)
    lines = [f"{name},{text},{kind}" for name, text, kind in rows]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text,kind", *lines]))
    return tmp_path


def test_captions_classes_and_duplicates(folder):
    report = diagnose(DataConfig(path=str(folder), size=16, caption_column="text", label_column="kind"))
    lengths = {"shortest": 1, "median": 2, "longest": 14, "words": 3}
    assert report.captions == {"number": 7, "distinct": 6, "empty": 1, **lengths} and report.tokens is None
    assert report.classes == {"a": 4, "b": 3}
    assert report.duplicates == [["0.png", "4.png"]] and report.near_duplicates == [("1.png", "5.png")]
    assert report.dropped == [("broken.png", "the file is empty (0 bytes), replace or remove it")]
    text = report.to_text()
    for words in ("6 of 7 images usable, as 3 x 16 x 16", "broken.png: the file is empty", "0.png = 4.png", "a: 4"):
        assert words in text
    assert len(text.splitlines()) < 25


def test_thumbnails_of_any_size():
    for size in (1, 3, 8, 13, 32):
        flat = thumbnail(np.full((3, size, size), 0.25, np.float32))
        assert flat.shape == (192,)
        np.testing.assert_allclose(flat, 0.25)


def test_near_pairs_across_chunks():
    thumbnails = np.random.default_rng(0).uniform(-1, 1, (40, 64)).astype(np.float32)
    thumbnails[35] = thumbnails[2] + 0.001
    assert near_pairs(thumbnails, chunk=7) == [(2, 35)]


def test_whole_data_that_cannot_be_used_is_a_user_error(folder):
    with pytest.raises(UserError, match="did you mean 'text'"):
        diagnose(DataConfig(path=str(folder), caption_column="texts"))


def test_doctor_imports_neither_diffusers_nor_torch(folder):
    code = (
        "import sys\nfrom attndiff.data.config import DataConfig\nfrom attndiff.data.doctor import diagnose\n"
        "diagnose(DataConfig(path=sys.argv[1], size=8)).to_text()\n"
        "print([name for name in ('diffusers', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
