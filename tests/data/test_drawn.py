"""Pictures that the program drew: known by the mark in their files, and not learned from unasked."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import attndiff, make_config, make_images
from PIL import Image

from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.pixels.writers import save_image
from attndiff.data.streams.ledger import Ledger
from attndiff.data.streams.stream import Stream
from attndiff.drawn import LOSSLESS, is_drawn, save_picture
from attndiff.errors import UserError
from attndiff.training.config import make_config as as_config
from attndiff.training.streams import open_streamed
from attndiff.viewing import level_curves

SIDE = 8
DRAWN = "drawn by attndiff (data.learn_drawn=true takes it)"


def picture(number: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8))


def config(path: Path, **options) -> DataConfig:
    return DataConfig(path=str(path), size=SIDE, **options)


def encoded(number: int, folder: Path, drawn: bool) -> bytes:
    file = folder / "written.png"
    (save_picture if drawn else Image.Image.save)(picture(number), file)
    content = file.read_bytes()
    file.unlink()
    return content


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_a_picture_is_known_by_its_file_and_shows_the_same(tmp_path, suffix):
    marked, plain = tmp_path / f"marked{suffix}", tmp_path / f"plain{suffix}"
    large = picture(0, 300)  # so that a WebP has its mark far from its start
    save_picture(large, marked)
    large.save(plain, **LOSSLESS.get(suffix, {}))
    assert is_drawn(marked) and is_drawn(marked.read_bytes())
    assert not is_drawn(plain) and not is_drawn(plain.read_bytes())
    np.testing.assert_array_equal(np.asarray(Image.open(marked)), np.asarray(Image.open(plain)))
    if suffix in LOSSLESS:
        np.testing.assert_array_equal(np.asarray(Image.open(marked)), np.asarray(large))


@pytest.mark.parametrize("channels, bits", [(1, 8), (4, 8), (2, 8), (1, 16), (3, 16), (500, 16), (5, 32)])
def test_samples_of_every_depth_have_the_mark(tmp_path, channels, bits):
    dtype = {8: np.uint8, 16: np.uint16, 32: np.float32}[bits]
    data = {"channels": [f"band{i}" for i in range(channels)], "bit_depth": bits}
    path = save_image(np.zeros((SIDE, SIDE, channels), dtype), tmp_path / "sample", data)
    assert is_drawn(path) and is_drawn(path.read_bytes())


def test_curves_have_the_mark(tmp_path):
    level_curves([0.1, 1.0], {"a": [0.2, 0.3]}, tmp_path / "curve.png")
    assert is_drawn(tmp_path / "curve.png")


def test_what_only_speaks_of_the_program_is_not_drawn_by_it(tmp_path):
    exif = Image.Exif()
    exif[270] = "a talk about attndiff"  # the description
    picture(0).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG attndiff")
    (tmp_path / "broken.tif").write_bytes(b"II*\0 attndiff")
    assert not any(map(is_drawn, [tmp_path / "a.jpg", tmp_path / "broken.png", tmp_path / "broken.tif"]))
    assert not is_drawn(tmp_path / "absent.png")


def folder_of(root: Path) -> Path:
    """Four pictures of two classes, and three drawn ones in a folder beside these."""
    for number in range(4):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    (root / "samples").mkdir()
    for number in range(4, 7):
        save_picture(picture(number), root / "samples" / f"{number}.png")
    return root


def test_drawn_pictures_of_a_folder_are_left_out_by_name(tmp_path):
    folder = folder_of(tmp_path / "data")
    images = ImageSet(config(folder, label_column="label"))
    assert len(images) == 4 and images.class_names == ["a", "b"]
    left_out = [(f"samples/{number}.png", DRAWN) for number in range(4, 7)]
    assert images.skipped == left_out
    found = diagnose(config(folder, label_column="label"))
    assert found.dropped == left_out and found.usable == found.rows == 4 and list(found.classes) == ["a", "b"]
    # More than half of the data may be drawn, and to leave it out is no error.
    for number in range(7, 12):
        save_picture(picture(number), folder / f"{number}.png")
    assert len(ImageSet(config(folder, on_error="raise"))) == 4


def test_they_are_learned_where_that_is_asked_for(tmp_path):
    images = ImageSet(config(folder_of(tmp_path / "data"), label_column="label", learn_drawn=True))
    assert len(images) == 7 and images.skipped == [] and images.class_names == ["a", "b", "samples"]
    assert diagnose(config(tmp_path / "data", learn_drawn=True)).usable == 7


def test_data_of_nothing_else_is_refused_with_the_setting(tmp_path):
    save_picture(picture(0), tmp_path / "0.png")
    for read in (ImageSet, diagnose):
        with pytest.raises(UserError, match=r"drew all images, such as 0.png; set data.learn_drawn=true"):
            read(config(tmp_path))
    assert len(ImageSet(config(tmp_path, learn_drawn=True))) == 1


@pytest.mark.parametrize("paths", [True, False])
def test_drawn_rows_of_a_table(tmp_path, paths):
    rows = [
        {"image": {"bytes": encoded(i, tmp_path, i % 3 == 0), "path": f"{i}.png" if paths else None}, "n": i}
        for i in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    images = ImageSet(config(tmp_path / "data.parquet"))
    assert [images.cells(i)["n"] for i in range(len(images))] == [1, 2, 4, 5, 7, 8, 10, 11]
    assert images.skipped == [(f"{i}.png" if paths else f"row {i}", DRAWN) for i in (0, 3, 6, 9)]


def test_each_part_leaves_out_its_own(tmp_path):
    rows = [{"image": encoded(i, tmp_path, i in (0, 7)), "split": "train" if i < 6 else "val"} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    images, held_out = ImageSet(config(tmp_path / "data.parquet")), open_validation(config(tmp_path / "data.parquet"))
    assert (len(images), len(held_out)) == (5, 2)
    assert images.skipped == [("row 0", DRAWN)] and held_out.skipped == [("row 7", DRAWN)]


def test_drawn_rows_of_a_stream(tmp_path):
    drawn = {1, 2, 9}
    rows = [{"image": encoded(i, tmp_path, i in drawn), "n": i} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet", row_group_size=6)
    stream = Stream(config(tmp_path / "data.parquet", stream=True, where={"n": list(range(12))}, shuffle_buffer=2))
    ledger = Ledger(tmp_path / "stream.jsonl", stream.shards)
    lane = stream.lane(0, 1, 0, ledger)
    met = {row["n"] for _, row in (next(lane)[0] for _ in range(18))}
    assert met == set(range(12)) - drawn
    assert ledger.skipped() == [f"shard {i // 6} row {i % 6}: {DRAWN}" for i in sorted(drawn)]
    learned = Stream(stream.config.replace(learn_drawn=True))
    assert len(list(learned.shard(0))) == 6


def test_a_stream_of_nothing_else_is_refused_with_the_setting(tmp_path):
    rows = [{"image": encoded(i, tmp_path, True)} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    options = {"path": str(tmp_path / "data.parquet"), "size": SIDE, "stream": True}
    run = as_config(
        {"out": str(tmp_path / "run"), "data": options, "condition": {"kind": "none"}, "optim": {"steps": 1}}
    )
    with pytest.raises(UserError, match=r"drew all images, such as shard 0 row 0; set data.learn_drawn=true"):
        open_streamed(run.data, run)


def test_samples_in_the_folder_of_data_are_not_trained_on(tmp_path):
    """What people do: sample into the folder that they train on, and train again."""
    data = make_images(tmp_path / "data")
    sampled = attndiff(
        *("sample", "emoji-xs", "red apple", "--steps", 1, "--images", data / "samples"),
        *("--out", data / "grid.png", "--attention-maps", data / "maps"),
    )
    assert sampled.code == 0, sampled.err
    written = {
        path.relative_to(data).as_posix() for name in ("samples", "maps", ".") for path in (data / name).glob("*.png")
    }
    assert written == {"samples/0000.png", "grid.png", "maps/attention-00.png"}
    told = attndiff("doctor", data, "size=16")
    assert all(f"{name}: {DRAWN}" in told.out for name in written) and "12 of 12 images usable" in told.out
    settings = make_config(
        tmp_path / "a.yaml", data, tmp_path / "run", data={"caption_column": None}, condition={"kind": "none"}
    )
    trained = attndiff("train", settings)
    assert trained.code == 0, trained.err
    left_out = json.loads((tmp_path / "run/left_out.json").read_text())
    assert {name for name, reason in left_out if reason == DRAWN} == written
    assert "files are left out" in trained.out
    learned = attndiff("train", settings, f"out={tmp_path / 'other'}", "data.learn_drawn=true")
    assert learned.code == 0, learned.err
    assert not {name for name, _ in json.loads((tmp_path / "other/left_out.json").read_text())} & written
    # What the run itself draws has the mark, wherever it is copied to.
    drawn = [*(tmp_path / "run").rglob("*.png")]
    assert drawn and all(map(is_drawn, drawn))
