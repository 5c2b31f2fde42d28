"""Folders, parquet and streams: what is read, what is left out, and what is refused by name."""

import csv
import io
import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from attndiff.data import image_set
from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.errors import UserError

SIZE = 8


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def put(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path)
    return path


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, "PNG")
    return buffer.getvalue()


def config(path, **options) -> DataConfig:
    return DataConfig(path=str(path), size=SIZE, **options)


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def assert_shows(images, i: int, number: int):
    expected = picture(number).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(images[i]["image"], expected, atol=1e-6)


@pytest.fixture
def parquet(tmp_path) -> Path:
    """Twelve rows of two styles and six families."""
    table = {
        "image": [{"bytes": png(i), "path": None} for i in range(12)],
        "texts": [[f"thing {i}", "  "] if i else None for i in range(12)],
        "style": ["flat", "round"] * 6,
        "family": [f"f{i // 2}" for i in range(12)],
        "number": list(range(12)),
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def test_class_folders(tmp_path):
    put(tmp_path / "dogs" / "b.png", 1), put(tmp_path / "cats" / "deep" / "a.jpeg.png", 0)
    (tmp_path / "notes.md").write_text("x"), (tmp_path / ".hidden").mkdir()
    put(tmp_path / ".hidden" / "c.png", 2)
    images = ImageSet(config(tmp_path, label_column="label", caption_column="label"))
    assert names(images) == ["cats/deep/a.jpeg.png", "dogs/b.png"]
    assert images.class_names == ["cats", "dogs"] and [images[i]["label"] for i in range(2)] == [0, 1]
    assert images[1]["caption"] == ["dogs"] and images.cells(1) == {"file_name": "dogs/b.png", "label": "dogs"}
    assert_shows(images, 0, 0), assert_shows(images, 1, 1)
    assert images.describe()["class_names"] == ["cats", "dogs"]


def test_captions_beside_images(tmp_path):
    for i in range(2):
        put(tmp_path / f"{i}.png", i).with_suffix(".txt").write_text(f"number {i}\n", encoding="utf-8")
    images = ImageSet(config(tmp_path, caption_column="text"))
    assert [images[i]["caption"] for i in range(2)] == [["number 0"], ["number 1"]]
    assert "caption" not in ImageSet(config(tmp_path))[0]
    put(tmp_path / "2.png", 2)
    images = ImageSet(config(tmp_path, caption_column="text"))
    assert len(images) == 2 and images.skipped == [("2.png", "has no caption ('text' is missing)")]
    assert ("2.png", "has no caption ('text' is missing)") in diagnose(config(tmp_path, caption_column="text")).dropped
    with pytest.raises(UserError, match=r"2\.png: has no caption"):
        ImageSet(config(tmp_path, caption_column="text", on_error="raise"))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata(tmp_path, kind):
    rows = [
        {"file_name": "x/0.png", "text": 'ze\u0301ro, "quoted"\nline', "kind": "10"},
        {"file_name": "./1.png", "text": "  ", "kind": "9"},
        {"file_name": "absent.png", "text": "gone", "kind": "9"},
        {"file_name": "1.png", "text": "again", "kind": "9"},
    ]
    put(tmp_path / "x" / "0.png", 0), put(tmp_path / "1.png", 1), put(tmp_path / "stray.png", 2)
    if kind == "csv":
        with open(tmp_path / "metadata.csv", "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader(), writer.writerows(rows)
    else:
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    images = ImageSet(config(tmp_path, caption_column="text", label_column="kind"))
    assert names(images) == ["x/0.png", "1.png", "1.png"]
    assert images[0]["caption"] == ['zéro, "quoted"\nline'] and images[1]["caption"] == [""]
    assert images.class_names == ["9", "10"] and [images[i]["label"] for i in range(3)] == [1, 0, 0]
    assert images.cells(2)["text"] == "again"
    assert images.skipped == [
        ("stray.png", f"not listed in metadata.{kind}"),
        ("absent.png", f"listed in metadata.{kind}, but not there"),
    ]


OUTSIDE = ["../a.png", "x/../../a.png", "..", "/etc/a.png", "C:/a.png", "https://host/a.png", "file:a.png"]
OUTSIDE += ["x\\a.png", "a\0.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_metadata_may_not_lead_outside(tmp_path, name):
    put(tmp_path / "data" / "b.png"), put(tmp_path / "a.png")
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    with pytest.raises(UserError, match="is not a path inside the folder") as error:
        ImageSet(config(tmp_path / "data"))
    assert repr(name) in str(error.value) and "metadata.jsonl" in str(error.value)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_links_out_of_the_folder_are_refused(tmp_path, link):
    put(tmp_path / "data" / "a.png"), put(tmp_path / "secret" / "b.png")
    target = tmp_path / "secret" if link == "folder" else tmp_path / "secret" / "b.png"
    os.symlink(target, tmp_path / "data" / ("b.png" if link == "file" else "b"))
    with pytest.raises(UserError, match="a link out of"):
        ImageSet(config(tmp_path / "data"))


def test_a_link_to_the_folder_itself_is_followed(tmp_path):
    put(tmp_path / "data" / "a.png", 3)
    os.symlink(tmp_path / "data", tmp_path / "link")
    assert_shows(ImageSet(config(tmp_path / "link")), 0, 3)


def test_parquet(parquet):
    images = ImageSet(config(parquet, caption_column="texts", label_column="style"))
    assert len(images) == 12 and images[0]["caption"] == [""] and images[3]["caption"] == ["thing 3"]
    assert images.class_names == ["flat", "round"] and images.name(3) == "row 3"
    assert images.cells(3) == {"texts": ["thing 3", "  "], "style": "round", "family": "f1", "number": 3}
    assert_shows(images, 5, 5)


def test_a_parquet_file_of_nothing_but_images_is_read(parquet, tmp_path):
    pq.write_table(pq.read_table(parquet, columns=["image"]), tmp_path / "images.parquet")
    images, others = ImageSet(config(tmp_path / "images.parquet")), ImageSet(config(parquet))
    assert len(images) == len(others) and images.cells(0) == {} and images.texts() == {}
    assert np.array_equal(images[1]["image"], others[1]["image"])


def test_parquet_parts(parquet, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    table = pq.read_table(parquet)
    pq.write_table(table.slice(0, 4), folder / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(4, 4), folder / "train-00001-of-00002.parquet")
    pq.write_table(table.slice(8), folder / "validation-00000-of-00001.parquet")
    assert len(ImageSet(config(folder))) == 8
    assert_shows(open_validation(config(folder)), 0, 8)
    with pytest.raises(UserError, match="no part called 'test', it has train, validation"):
        ImageSet(config(folder, split="test"))
    assert open_validation(config(parquet)) is None
    assert len(open_validation(config(folder, validation=str(parquet)))) == 12


def test_folder_parts(tmp_path):
    put(tmp_path / "train" / "a" / "0.png", 0), put(tmp_path / "train" / "b" / "1.png", 1)
    put(tmp_path / "test" / "b" / "2.png", 2)
    train = ImageSet(config(tmp_path, label_column="label"))
    assert names(train) == ["a/0.png", "b/1.png"]
    test = ImageSet(config(tmp_path, label_column="label", split="test"), train.class_names)
    assert test[0]["label"] == 1 and test.class_names == ["a", "b"]


def test_class_labels_keep_their_order(tmp_path):
    feature = {"label": {"names": ["zebra", "ant", "bee"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)], "label": [0, 1, 0]})
    meta = {"huggingface": json.dumps({"info": {"features": feature}})}
    pq.write_table(table.replace_schema_metadata(meta), tmp_path / "d.parquet")
    images = ImageSet(config(tmp_path / "d.parquet", label_column="label"))
    assert images.class_names == ["zebra", "ant"] and images[1]["label"] == 1 and images.name(2) == "2.png"
    kept = ImageSet(config(tmp_path / "d.parquet", label_column="label", where={"label": ["ant"]}))
    assert kept.class_names == ["ant"] and len(kept) == 1


def test_filters(parquet):
    kept = ImageSet(config(parquet, where={"style": ["flat"], "number": ["0", 2, 3]}))
    assert names(kept) == ["row 0", "row 2"]
    rest = ImageSet(config(parquet, exclude=[{"style": "flat", "family": ["f0", "f1"]}, {"number": 11}]))
    assert names(rest) == [f"row {i}" for i in (1, 3, 4, 5, 6, 7, 8, 9, 10)]
    with pytest.raises(UserError, match="no row is left"):
        ImageSet(config(parquet, where={"style": ["square"]}))


def test_fraction_holds_out_whole_families(parquet):
    both = config(parquet, validation=0.3, label_column="style")
    train, held = ImageSet(both), open_validation(both)
    assert sorted(names(train) + names(held)) == sorted(f"row {i}" for i in range(12))
    families = [{images.cells(i)["family"] for i in range(len(images))} for images in (train, held)]
    assert families[0].isdisjoint(families[1]) and families[1]
    again = open_validation(both.replace(validation=0.3))
    assert names(again) == names(held)
    assert len(open_validation(both.replace(validation=0.001))) == 2  # never no family at all


def test_bad_images_are_skipped_listed_and_logged(tmp_path, caplog):
    for i in range(4):
        put(tmp_path / f"{i}.png", i)
    (tmp_path / "1.png").write_bytes(b""), (tmp_path / "photo.psd").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        images = ImageSet(config(tmp_path))
    assert names(images) == ["0.png", "2.png", "3.png"] and "1 of 4 images skipped" in caplog.text
    assert_shows(images, 1, 2)
    assert [name for name, _ in images.skipped] == ["photo.psd", "1.png"]
    assert images.skipped[1][1].startswith("the file is empty")
    with pytest.raises(UserError, match=r"1\.png.*empty"):
        ImageSet(config(tmp_path, on_error="raise"))
    for i in (2, 3):
        (tmp_path / f"{i}.png").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"3 of 4 images are bad, first 1\.png"):
        ImageSet(config(tmp_path))


def test_large_sets_are_not_kept_in_memory(parquet, monkeypatch):
    kept = ImageSet(config(parquet))
    monkeypatch.setattr(image_set, "CACHE_BYTES", 1000)
    lazy = ImageSet(config(parquet))
    assert kept.is_kept and not lazy.is_kept
    for i in range(12):
        np.testing.assert_array_equal(lazy[i]["image"], kept[i]["image"])
    assert ImageSet(config(parquet)).fingerprint == lazy.fingerprint


def test_fingerprint_follows_content(tmp_path):
    put(tmp_path / "a.png", 0), put(tmp_path / "b.png", 1)
    before = ImageSet(config(tmp_path)).fingerprint
    assert ImageSet(config(tmp_path)).fingerprint == before
    put(tmp_path / "b.png", 2)
    assert ImageSet(config(tmp_path)).fingerprint != before


def test_depth_is_that_of_the_deepest_image(tmp_path):
    put(tmp_path / "a.png", 0)
    Image.fromarray(np.full((SIZE, SIZE), 65535, np.uint16)).save(tmp_path / "b.png")
    images = ImageSet(config(tmp_path))
    assert images.describe()["bit_depth"] == 16 and images.describe()["value_range"] == [0, 65535]
    assert (images[1]["image"] == 1).all()
    assert_shows(images, 0, 0)


def test_pickled_set_is_the_same(parquet):
    images = ImageSet(config(parquet, caption_column="texts"))
    copy = pickle.loads(pickle.dumps(images))
    assert len(copy) == 12 and copy[3]["caption"] == ["thing 3"] and copy.cells(2) == images.cells(2)
    np.testing.assert_array_equal(copy[4]["image"], images[4]["image"])


@pytest.mark.parametrize("cell", [{"bytes": None, "path": "/etc/passwd"}, {"bytes": None, "path": "../a.png"}])
def test_paths_in_parquet_are_not_opened(tmp_path, cell):
    put(tmp_path / "a.png")
    pq.write_table(pa.table({"image": [cell]}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match="holds no image"):
        ImageSet(config(tmp_path / "d.parquet", on_error="raise"))


def build_mistake(kind: str, root: Path) -> DataConfig:
    """A data set with one mistake in it."""
    if kind == "missing":
        return config(root / "absent")
    if kind == "hub":
        return config("nobody/nothing-here")
    if kind == "empty":
        return config(root)
    if kind == "no images":
        (root / "a.csv").write_text("a,b")
        return config(root)
    if kind == "not parquet":
        return config(put(root / "a.png"))
    put(root / "x" / "a.png"), put(root / "b.png")
    options = {
        "no captions": {"caption_column": "text"},
        "near column": {"caption_column": "lable"},
        "filter column": {"where": {"style": ["x"]}},
        "no class": {"label_column": "label"},
        "undivided": {"split": "test"},
    }
    if kind in options:
        return config(root, **options[kind])
    content = {
        "bad json": ("metadata.jsonl", "{"),
        "no file_name": ("metadata.jsonl", '{"file": "b.png", "text": "x"}'),
        "not utf-8": ("metadata.csv", b"file_name,text\nb.png,\xff\xfe"),
        "surplus cells": ("metadata.csv", "file_name,text\nb.png,red, blue"),
        "missing cell": ("metadata.csv", "file_name,text\nb.png"),
        "empty captions": ("metadata.csv", "file_name,text\nb.png, "),
        "half of a character": ("metadata.jsonl", '{"file_name": "b.png", "text": "cat \\ud800"}'),
        "mixed column": (
            "metadata.jsonl",
            '{"file_name": "b.png", "text": "x"}\n{"file_name": "x/a.png", "text": [1]}',
        ),
    }[kind]
    (root / content[0]).write_bytes(content[1] if isinstance(content[1], bytes) else content[1].encode())
    return config(root, caption_column="text")


MISTAKES = {
    "missing": "absent: there is no such folder",
    "hub": "nobody/nothing-here: no such folder here, and no such dataset on the Hub .*offline",
    "empty": "there are no images in this folder",
    "no images": "there are no images in this folder",
    "not parquet": "is no parquet file",
    "no captions": "has no column 'text' \\(caption_column\\).*it has file_name, label",
    "near column": "did you mean 'label'",
    "filter column": "has no column 'style' \\(where, exclude\\)",
    "no class": "b.png: has no class in column 'label'",
    "undivided": "no part called 'test'",
    "bad json": "metadata.jsonl: line 1 is not JSON",
    "no file_name": "row 1 has no file_name, only file, text",
    "not utf-8": "metadata.csv: is not UTF-8",
    "surplus cells": "line 2 has more cells than the header",
    "missing cell": "b.png: has no caption",
    "empty captions": "every caption in column 'text' is empty",
    "half of a character": r"line 1 holds '\\ud800', which is half of a character",
    "mixed column": "mixes kinds of values",
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_clear_sentence(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=MISTAKES[kind]) as error:
        ImageSet(build_mistake(kind, tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": ""}, "path: '' is no path"),
        ({"validation": 1.5}, "validation=1.5"),
        ({"validation": 1}, "validation=1 is no fraction"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"size": "wide"}, "size: input should be a valid integer.*not 'wide'"),
        ({"where": ["style"]}, "where: it must map"),
        ({"exclude": {"style": "x"}}, "exclude: it must be a list"),
    ],
)
def test_impossible_configurations(options, words):
    with pytest.raises(UserError, match=words):
        DataConfig(**{"path": "x", **options})
