"""Rows decoded at once, at their first visit, or by several processes: the same rows, and bad ones named."""

import itertools
import json
import logging
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from golden import SIZE, cases, encode
from PIL import Image
from runs import losses

from attndiff.data import image_set
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.pixels.decode import decode
from attndiff.data.pixels.header import WHOLE, read_header
from attndiff.data.reading import at_visit
from attndiff.data.reading.encoded import EncodedRows
from attndiff.data.reading.readers import Readers
from attndiff.data.reading.slots import HEAD, Slots
from attndiff.errors import UserError
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer

CASES = {case.name: case for case in cases()}


def picture(number: int, shape=(SIZE, SIZE)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)


def folder(path: Path, count: int = 12, bad: tuple[int, ...] = (), shape=(SIZE, SIZE)) -> Path:
    """Pictures with captions, some of them cut off in the middle of their pixels."""
    path.mkdir()
    for i in range(count):
        data = encode(picture(i, shape))
        (path / f"{i:03d}.png").write_bytes(data[: len(data) // 2] if i in bad else data)
        (path / f"{i:03d}.txt").write_text(f"thing {i}")
    return path


def config(path: Path, **options) -> DataConfig:
    return DataConfig(path=str(path), size=SIZE, caption_column="text", **options)


@pytest.fixture
def large(monkeypatch):
    """Sets of any size count as too large to be decoded at once."""
    monkeypatch.setattr(image_set, "CACHE_BYTES", 0)


def counted(monkeypatch) -> list[str]:
    """Names of rows as they are decoded from here on."""
    decoded, read = [], EncodedRows.read
    monkeypatch.setattr(EncodedRows, "read", lambda rows, i: (decoded.append(rows.name(i)), read(rows, i))[1])
    return decoded


# Headers


@pytest.mark.parametrize("name", CASES)
def test_a_header_says_what_decoding_gives(name):
    data, channels = CASES[name].data, CASES[name].options.get("channels", "RGB")
    try:
        decoded = decode(data, channels, name)
    except UserError:
        try:
            read_header(data, channels, name)
        except UserError as error:
            assert str(error).startswith(f"{name}: ") and "\n" not in str(error)
        return
    header = read_header(data, channels, name)
    assert header.size == decoded.pixels.shape[:2] and header.bits == 8 * decoded.pixels.itemsize


def test_a_file_is_told_from_another_by_its_content(tmp_path):
    pixels = picture(0, (400, 400))
    (tmp_path / "a.bmp").write_bytes(encode(pixels, "BMP"))
    whole = (tmp_path / "a.bmp").read_bytes()
    assert len(whole) > WHOLE
    header = read_header(whole, "RGB", "a")
    assert read_header(tmp_path / "a.bmp", "RGB", "b") == header
    for place in (60, len(whole) // 2, len(whole) - 1):
        other = bytearray(whole)
        other[place] ^= 1
        assert read_header(bytes(other), "RGB", "a").identity != header.identity
    assert read_header(whole + b"\0", "RGB", "a").identity != header.identity


# At the first visit


def test_rows_are_the_same_at_once_and_at_their_visit(tmp_path, monkeypatch):
    data = config(folder(tmp_path / "data"))
    kept = ImageSet(data)
    monkeypatch.setattr(image_set, "CACHE_BYTES", 0)
    for readers in (None, Readers(tmp_path / "decoded")):
        for _ in range(2):
            late = ImageSet(data, readers=readers)
            assert late.describe() == kept.describe() and not late.is_kept
            for mine, other in zip(late, kept, strict=True):
                np.testing.assert_array_equal(mine["image"], other["image"])
                assert mine["caption"] == other["caption"]


def test_each_row_is_decoded_once_by_whoever_comes_first(tmp_path, large, monkeypatch):
    data, readers = config(folder(tmp_path / "data", 40)), Readers(tmp_path / "decoded")
    monkeypatch.setattr(at_visit, "TRIED", 4)
    decoded = counted(monkeypatch)
    images = ImageSet(data, readers=readers)
    assert len(decoded) == 4
    decoded.clear()
    for _ in range(3):
        other = pickle.loads(pickle.dumps(images))  # as a loader worker has it
        for row in (*other, *images):
            row["image"]
    assert sorted(decoded) == [images.name(i) for i in range(40)]
    monkeypatch.setattr(at_visit, "TRIED", 1)
    decoded.clear()
    for row in ImageSet(data, readers=readers):
        row["image"]
    assert len(decoded) == 1


def test_a_row_that_turns_out_bad_is_stood_for_by_the_next_and_named(tmp_path, large, monkeypatch, caplog):
    data, readers = config(folder(tmp_path / "data", bad=(3, 4, 11))), Readers(tmp_path / "decoded")
    monkeypatch.setattr(at_visit, "TRIED", 1)
    images = ImageSet(data, readers=readers)
    assert len(images) == 12 and images.skipped == []
    with caplog.at_level(logging.WARNING):
        shown = [(row["image"], row["caption"]) for row in images]
    for i, instead in {3: 5, 4: 5, 11: 0}.items():
        np.testing.assert_array_equal(shown[i][0], images[instead]["image"])
        assert shown[i][1] == [f"thing {instead}"]
    assert [name for name, _ in images.skipped] == ["003.png", "004.png", "011.png"]
    assert "cannot be read" in images.skipped[0][1] and "003.png: skipped, cannot be read" in caplog.text
    # Another process, and the next start, know without decoding it again.
    decoded = counted(monkeypatch)
    for again in (pickle.loads(pickle.dumps(images)), ImageSet(data, readers=readers)):
        decoded.clear()
        assert [name for name, _ in again.skipped] == ["003.png", "004.png", "011.png"] and not decoded
        for i in (11, 3, 4):
            np.testing.assert_array_equal(again[i]["image"], shown[i][0])
        assert not decoded
    strict = ImageSet(data.replace(on_error="raise"))
    with pytest.raises(UserError, match=r"003\.png: cannot be read"):
        strict[3]["image"]


def test_data_of_which_most_is_bad_is_refused_before_the_first_visit(tmp_path, large):
    with pytest.raises(UserError, match=r"8 of 12 images tried are bad, first 0\d\d\.png: cannot be read"):
        ImageSet(config(folder(tmp_path / "data", bad=tuple(range(1, 9)))))
    for file in (tmp_path / "data").glob("00*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"10 of 12 images are bad, first 000\.png: the file is empty"):
        ImageSet(config(tmp_path / "data"))


def test_who_stands_for_a_row_has_its_shape(tmp_path, large, monkeypatch):
    data = folder(tmp_path / "data", 6, shape=(SIZE, 2 * SIZE))
    for file, number in zip(sorted(data.glob("*.png"))[1:5], itertools.count()):
        file.write_bytes(encode(picture(number)))
    first = data / "000.png"
    first.write_bytes(first.read_bytes()[:90])
    monkeypatch.setattr(at_visit, "TRIED", 2)
    options = {"max_aspect": 2.0, "bucket_multiple": 2}
    images = ImageSet(config(data, **options).replace(size=8))
    shapes = [row["image"].shape for row in images]
    assert shapes[0] == shapes[5] != shapes[1]
    np.testing.assert_array_equal(images[0]["image"], images[5]["image"])


def test_masks_and_further_images_are_kept_with_their_row(tmp_path, large):
    data = tmp_path / "data"
    data.mkdir()
    rows = ["file_name,text,mask,other"]
    for i in range(4):
        Image.fromarray(picture(i)).save(data / f"{i}.png")
        Image.fromarray(picture(10 + i)).save(data / f"o{i}.png")
        Image.fromarray(picture(i)[..., 0] // 64).save(data / f"m{i}.png")
        rows.append(f"{i}.png,thing,m{i}.png,o{i}.png")
    (data / "metadata.csv").write_text("\n".join(rows))
    columns = config(data, columns={"mask": "mask", "other": "image"})
    plain, kept = ImageSet(columns), ImageSet(columns, readers=Readers(tmp_path / "decoded"))
    for _ in range(2):
        for mine, other in zip(kept, plain, strict=True):
            for name in ("image", "mask", "other"):
                np.testing.assert_array_equal(mine[name], other[name])
                assert mine[name].dtype == other[name].dtype


# Slots


def test_a_slot_is_whole_or_empty(tmp_path):
    slots = Slots(tmp_path / "x/slots", 10, 3 * (HEAD.size + 10))
    slots.write(2, 1, b"0123456789"), slots.write(0, 255, "é".encode()), slots.write(1, 1, bytes(11))
    assert slots.read(0) == (255, "é".encode()) and slots.read(1) is None and slots.read(2) == (1, b"0123456789")
    slots.write(3, 1, b"beyond")
    assert slots.read(3) is None and slots.path.stat().st_size == 3 * (HEAD.size + 10)
    content = slots.path.read_bytes()
    for place in range(2 * (HEAD.size + 10), len(content)):
        broken = bytearray(content)
        broken[place] ^= 1
        slots.path.write_bytes(broken)
        assert slots.read(2) is None
        slots.path.write_bytes(content[:place])
        assert slots.read(2) is None and slots.read(0) == (255, "é".encode())


def test_a_full_disk_ends_the_keeping_and_nothing_else(caplog):
    full = Slots(Path("/dev/full"), 10, 1000)
    with caplog.at_level(logging.WARNING):
        full.write(0, 1, b"1"), full.write(1, 1, b"2")
    assert full.read(0) is None and caplog.text.count("no more decoded images are kept (No space left") == 1


def test_where_nothing_can_be_written_rows_are_decoded_at_every_visit(tmp_path, large, caplog):
    (tmp_path / "decoded").write_text("a file")
    with caplog.at_level(logging.WARNING):
        images = ImageSet(config(folder(tmp_path / "data")), readers=Readers(tmp_path / "decoded"))
    assert "decoded images are not kept" in caplog.text
    for _ in range(2):
        np.testing.assert_array_equal(images[3]["image"], ImageSet(config(tmp_path / "data"))[3]["image"])


# Several processes


def test_processes_share_the_reading_out(tmp_path, monkeypatch):
    data, met, lists = config(folder(tmp_path / "data", bad=(5,))), threading.Barrier(2), [[], []]
    decoded, opened = counted(monkeypatch), [None, None]
    monkeypatch.setattr("attndiff.data.reading.at_once.ROUND_BYTES", 3 * 3 * SIZE * SIZE)

    def read(index: int) -> None:
        def gather(mine: list) -> list[list]:
            lists[index] = mine
            met.wait()
            both = list(lists)
            met.wait()
            return both

        opened[index] = ImageSet(data, readers=Readers(None, index, 2, gather))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(decoded) == [f"{i:03d}.png" for i in range(12)]
    alone = ImageSet(data)
    for images in opened:
        assert images.fingerprint == alone.fingerprint and images.skipped == alone.skipped
        np.testing.assert_array_equal(images[7]["image"], alone[7]["image"])


# Runs


def settings(data: Path, out: Path) -> dict:
    return {
        "out": str(out),
        "data": {"path": str(data), "size": 16, "caption_column": "text"},
        "model": {"preset": "tiny"},
        "optim": {"steps": 6, "batch_size": 4, "warmup": 2, "precision": "fp32", "workers": 2},
        "log": {"every": 1, "validate_every": 3, "sample_every": 6, "checkpoint_every": 3, "tracker": None},
    }


def test_a_run_on_large_data_goes_on_exactly_and_names_what_turned_out_bad(tmp_path, large, monkeypatch):
    monkeypatch.setattr(at_visit, "TRIED", 2)
    data = folder(tmp_path / "data", 20, bad=(6, 13), shape=(16, 16))
    Trainer(make_config(settings(data, tmp_path / "whole"))).run()
    left_out = json.loads((tmp_path / "whole/left_out.json").read_text())
    assert [name for name, _ in left_out] == ["006.png", "013.png"]
    assert "| files left out | 2 |" in (tmp_path / "whole/pipeline/README.md").read_text()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000006"), shutil.rmtree(tmp_path / "cut/pipeline")
    shutil.rmtree(tmp_path / "cut/decoded")
    Trainer(make_config(settings(data, tmp_path / "cut"))).run()
    assert losses(tmp_path / "cut")[-3:] == losses(tmp_path / "whole")[-3:]
    assert list((tmp_path / "cut/decoded").rglob("*.slots"))


LARGE = """
import resource, sys
from attndiff.data import image_set
from attndiff.data.config import DataConfig
from attndiff.data.reading.readers import Readers
from pathlib import Path
image_set.CACHE_BYTES = int(sys.argv[2])
images = image_set.ImageSet(DataConfig(path=sys.argv[1], size=256), readers=Readers(Path(sys.argv[3])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    for row in images:
        row["image"].sum()
print(images.is_kept, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_data_that_are_too_large_for_it(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(400):
        Image.new("RGB", (256, 256), (i % 256, 0, 0)).save(data / f"{i}.png")
    decoded = 400 * 3 * 256**2 // 1024  # KiB
    command = [sys.executable, "-c", LARGE, str(data), "1000000", str(tmp_path / "decoded")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kept, grown = result.stdout.split()
    assert kept == "False" and int(grown) < decoded / 4
