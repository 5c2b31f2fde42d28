"""What people really have: what files and folders mean is honoured, or refused in a sentence; nothing goes silently."""

import csv
import io
import json
import os
import struct
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.parts import open_parts
from attndiff.data.pixels.normalize import Normalizer
from attndiff.data.streams.encoded import EncodedImages
from attndiff.data.streams.stream import Stream
from attndiff.errors import UserError

SIZE = 4


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path


def config(path, **options) -> DataConfig:
    return DataConfig(path=str(path), size=SIZE, **options)


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def table_of(folder: Path, **columns) -> Path:
    rows = len(next(iter(columns.values())))
    images = [{"bytes": png(i), "path": None} for i in range(rows)]
    pq.write_table(pa.table({"image": images, **columns}), folder / "data.parquet")
    return folder / "data.parquet"


def captions(images) -> list[list[str]]:
    return [images[i]["caption"] for i in range(len(images))]


# Parts.


@pytest.mark.parametrize(
    ("train", "held"),
    [("train", "val"), ("Train", "Valid"), ("training", "dev"), ("train", "held-out"), ("TRN", "Val")],
)
def test_folders_with_the_usual_names_are_parts_and_no_classes(tmp_path, train, held):
    for number, place in enumerate((f"{train}/cat/0.png", f"{train}/dog/1.png", f"{held}/cat/2.png")):
        put(tmp_path / place, number)
    images = ImageSet(config(tmp_path, label_column="label"))
    assert names(images) == ["cat/0.png", "dog/1.png"] and images.class_names == ["cat", "dog"]
    held_out = open_validation(config(tmp_path, label_column="label"), images.class_names)
    assert names(held_out) == ["cat/2.png"] and held_out[0]["label"] == 0


@pytest.mark.parametrize("place", ["{cls}/{part}", "images/{part}/{cls}", "{part}/images/{cls}"])
def test_parts_are_found_wherever_they_lie(tmp_path, place):
    for i, (part, cls) in enumerate([("train", "cat"), ("train", "dog"), ("test", "cat"), ("val", "dog")]):
        put(tmp_path / place.format(part=part, cls=cls) / f"{i}.png", i)
    data = config(tmp_path, label_column="label")
    images, held_out, _ = open_parts(data)
    assert len(images) == 2 and len(held_out) == 1
    if place != "{part}/images/{cls}":
        assert images.class_names == ["cat", "dog"]


def test_a_doubtful_name_is_asked_about(tmp_path):
    put(tmp_path / "test" / "0.png"), put(tmp_path / "bus" / "1.png", 1), put(tmp_path / "car" / "2.png", 2)
    with pytest.raises(UserError, match=r"data\.named_parts=true.*data\.named_parts=false"):
        ImageSet(config(tmp_path, label_column="label"))
    classes = ImageSet(config(tmp_path, label_column="label", named_parts=False))
    assert classes.class_names == ["bus", "car", "test"]
    with pytest.raises(UserError, match="no part called 'train'"):
        ImageSet(config(tmp_path, named_parts=True))
    tests = ImageSet(config(tmp_path, named_parts=True, split="test"))
    assert names(tests) == ["0.png"] or names(tests) == ["test/0.png"]
    assert sorted(name for name, _ in tests.skipped) == ["bus/1.png", "car/2.png"]


def test_parquet_files_with_the_usual_names_are_parts(tmp_path):
    for number, name in enumerate(("train-00000-of-00001", "val-00000-of-00001", "icons_test")):
        table_of(tmp_path, n=[number, number]).rename(tmp_path / f"{name}.parquet")
    assert [cells["n"] for cells in map(ImageSet(config(tmp_path)).cells, range(2))] == [0, 0]
    assert open_validation(config(tmp_path)).cells(0)["n"] == 1
    table_of(tmp_path, n=[3]).rename(tmp_path / "more.parquet")
    with pytest.raises(UserError, match=r"more\.parquet is not.*named_parts"):
        ImageSet(config(tmp_path))


def test_a_split_column_divides_the_rows(tmp_path):
    data = config(table_of(tmp_path, split=["train", "train", "Val", "test"]))
    images, held_out, notes = open_parts(data)
    assert names(images) == ["row 0", "row 1"] and names(held_out) == ["row 2"] and notes == []
    assert len(ImageSet(data.replace(named_parts=False))) == 4
    assert names(ImageSet(data.replace(where={"split": ["test"]}))) == ["row 3"]
    other = config(table_of(tmp_path, split=["train", "banana", "split", "x"]))
    assert len(ImageSet(other)) == 4


# What stands in a folder.


def test_everything_in_a_folder_is_read_or_named(tmp_path):
    put(tmp_path / "a" / "0.png"), put(tmp_path / "b" / "1.jfif", 1), put(tmp_path / "b" / "2.PNG", 2)
    for junk in ("Thumbs.db", "desktop.ini", ".DS_Store", "a/.hidden", "README.md", "b/LICENSE.txt", "noto-LICENSE"):
        (tmp_path / junk).write_bytes(b"x")
    for other in ("photo.psd", "more.zip", "notes.md", "a/._0.png", "stray.txt", "old.csv"):
        (tmp_path / other).write_bytes(b"x")
    put(tmp_path / "mine" / "samples" / "9.png", 9)
    (tmp_path / "mine" / "config.json").write_text("{}"), (tmp_path / "mine" / "run.lock").touch()
    images, _, notes = open_parts(config(tmp_path, label_column="label"))
    left_out = dict(images.skipped)
    assert set(left_out) == {"photo.psd", "more.zip", "notes.md", "a/._0.png", "stray.txt", "old.csv", "mine"}
    assert "run" in left_out["mine"] and "unpack" in left_out["more.zip"]
    assert (
        images.class_names == ["a", "b"]
        and notes[-1].startswith("7 files are left out (")
        and "left_out.json" in notes[-1]
    )
    report = diagnose(config(tmp_path, label_column="label"))
    assert report.usable == 3 and dict(report.dropped) == left_out and report.classes == {"a": 1, "b": 2}


def test_linked_folders_inside_are_read_once(tmp_path):
    put(tmp_path / "a" / "0.png"), put(tmp_path / ".store" / "b" / "1.png", 1)
    os.symlink(tmp_path / ".store" / "b", tmp_path / "b")
    os.symlink(tmp_path / "a", tmp_path / "again")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    images = ImageSet(config(tmp_path, label_column="label"))
    assert names(images) == ["a/0.png", "b/1.png"]
    assert {name for name, _ in images.skipped} == {"again", "a/up"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    put(tmp_path / "a" / "0.png"), put(tmp_path / "b" / "1.png", 1)
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(UserError, match="b: the folder cannot be listed"):
            ImageSet(config(tmp_path))
    finally:
        (tmp_path / "b").chmod(0o700)


def test_a_folder_that_vanishes_is_an_error(tmp_path, monkeypatch):
    put(tmp_path / "a" / "0.png"), put(tmp_path / "b" / "1.png", 1)
    scandir = os.scandir

    def vanishing(folder):
        if Path(folder).name == "b":
            raise OSError(116, "Stale file handle")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", vanishing)
    with pytest.raises(UserError, match=r"b: the folder cannot be listed \(Stale file handle\)"):
        ImageSet(config(tmp_path))


def test_names_that_are_no_utf8_are_named_and_the_rest_is_read(tmp_path):
    put(tmp_path / "0.png")
    for name in (b"caf\xe9.png", b"caf\xe9/1.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(png(1))
    images = ImageSet(config(tmp_path))
    assert names(images) == ["0.png"] and [name for name, _ in images.skipped] == ["caf\\xe9", "caf\\xe9.png"]
    json.dumps(images.skipped).encode(), "".join(diagnose(config(tmp_path)).to_text()).encode()


# Captions.


@pytest.mark.parametrize(
    ("image", "caption"),
    [("0.png", "0.txt"), ("0.JPG", "0.TXT"), ("0.png", "0.caption"), ("0.png", "0.png.txt"), ("É.png", "e\u0301.Txt")],
)
def test_captions_are_found_under_the_names_that_tools_write(tmp_path, image, caption):
    put(tmp_path / image), (tmp_path / caption).write_text("a thing", encoding="utf-8")
    put(tmp_path / "z.png", 1), (tmp_path / "z.txt").write_text("zed")
    images = ImageSet(config(tmp_path, caption_column="text"))
    assert (
        captions(images) == ([["a thing"], ["zed"]] if image < "z" else [["zed"], ["a thing"]]) and not images.skipped
    )


def test_a_second_caption_of_an_image_is_named(tmp_path):
    put(tmp_path / "0.png"), (tmp_path / "0.txt").write_text("one"), (tmp_path / "0.caption").write_text("two")
    images = ImageSet(config(tmp_path, caption_column="text"))
    assert captions(images) == [["one"]] and images.skipped == [("0.caption", "the .txt beside it is the caption")]


def test_captions_are_text_whatever_the_column_stores(tmp_path):
    data = table_of(
        tmp_path, text=[b"caf\xc3\xa9", b"tea"], blank=[float("nan"), None], struct=[{"en": "a"}, {"en": "b"}]
    )
    assert captions(ImageSet(config(data, caption_column="text"))) == [["café"], ["tea"]]
    assert captions(ImageSet(config(data, caption_column="struct.en"))) == [["a"], ["b"]]
    with pytest.raises(UserError, match="'blank' is empty"):
        ImageSet(config(data, caption_column="blank"))
    with pytest.raises(UserError, match=r"row 0: column 'struct' holds structures of en.*caption_column=COLUMN\.en"):
        ImageSet(config(data, caption_column="struct"))
    data = table_of(tmp_path, number=[1.5, float("nan")], tags=[["a", "b"], ["c"]], half=[b"\xff", b"a"])
    for column, words in (("number", "holds float 1.5 and no text"), ("half", "not UTF-8")):
        with pytest.raises(UserError, match=words):
            ImageSet(config(data, caption_column=column))
    with pytest.raises(UserError, match="'tags' holds lists and no class"):
        ImageSet(config(data, label_column="tags"))
    with pytest.raises(UserError, match="row 1: has no class in column 'number'"):
        ImageSet(config(data, label_column="number"))


def test_digits_of_other_scripts_are_text_and_forms_of_a_letter_one_class(tmp_path):
    nfd = unicodedata.normalize("NFD", "é")
    images = ImageSet(config(table_of(tmp_path, kind=["10", "9", "٣"]), label_column="kind"))
    assert images.class_names == ["10", "9", "٣"]
    images = ImageSet(config(table_of(tmp_path, kind=["é", nfd, "e "]), label_column="kind"))
    assert images.class_names == ["e", "é"] and [images[i]["label"] for i in range(3)] == [1, 1, 0]


# Metadata.


def metadata(folder: Path, text: str, images: int = 3) -> Path:
    for i in range(images):
        put(folder / f"{i}.png", i)
    (folder / "metadata.csv").write_text(text, encoding="utf-8", newline="")
    return folder


def test_a_quote_that_is_never_closed_is_an_error_with_its_line(tmp_path):
    rows = "".join(f"{i}.png,{chr(34) * (i == 1)}thing {i}\n" for i in range(3))
    with pytest.raises(UserError, match="begins on line 3 is no CSV"):
        ImageSet(config(metadata(tmp_path, f"file_name,text\n{rows}"), caption_column="text"))


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_only_ends_of_lines_end_a_row(tmp_path, end):
    text = f"file_name,text\r\n0.png,first{end}second\r\n1.png,one\r\n2.png,two\r\n"
    assert captions(ImageSet(config(metadata(tmp_path, text), caption_column="text")))[0] == [
        f"first{end}second".strip()
    ]


def test_long_cells_and_other_delimiters_are_read(tmp_path):
    for delimiter in (",", ";", "\t"):
        rows = "".join(f"{i}.png{delimiter}{'x' * 140_000}{delimiter}thing {i}\n" for i in range(3))
        data = metadata(tmp_path, f"file_name{delimiter}long{delimiter}text\n{rows}")
        assert captions(ImageSet(config(data, caption_column="text"))) == [["thing 0"], ["thing 1"], ["thing 2"]]
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": "0.png", "n": 18446744073709551616}', "mixes kinds of values"),
        ('{"file_name": "0.png", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1 is not JSON"),
    ],
    ids=["too large", "too deep"],
)
def test_json_that_nobody_can_hold_is_a_sentence(tmp_path, line, words):
    put(tmp_path / "0.png"), (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=words):
        ImageSet(config(tmp_path))


def test_names_in_metadata_are_compared_as_people_read_them(tmp_path):
    put(tmp_path / "0.PNG"), put(tmp_path / unicodedata.normalize("NFD", "é.png"), 1)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,zero\né.png,acute\n", encoding="utf-8")
    assert captions(ImageSet(config(tmp_path, caption_column="text"))) == [["zero"], ["acute"]]
    (tmp_path / "metadata.csv").write_text("file_name,text\n0,zero\n1,one\n")
    with pytest.raises(UserError, match=r"none of the 2 images that it lists is there, such as '0'.*such as 0\.PNG"):
        ImageSet(config(tmp_path))


def test_a_column_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="two columns called 'text'"):
        ImageSet(config(metadata(tmp_path, "file_name,text,text\n0.png,a,b\n")))


def test_one_image_cannot_be_divided(tmp_path):
    put(tmp_path / "0.png")
    with pytest.raises(UserError, match="there is one image; leave it out"):
        ImageSet(config(tmp_path, validation=1e-7))
    with pytest.raises(UserError, match="has no rows"):
        ImageSet(config(table_of(tmp_path, n=[]).rename(tmp_path / "empty.parquet")))


# Files.


def levels(path: Path, channels) -> np.ndarray:
    return Normalizer(SIZE, channels).normalize(path).levels


def notes(path: Path, channels) -> list[str]:
    return Normalizer(SIZE, channels).normalize(path).notes


RAMP = np.linspace(0, 1, SIZE)[None].repeat(SIZE, 0)


def ramp(dtype: str, peak: float) -> np.ndarray:
    return np.rint(RAMP * peak).astype(dtype) if dtype != "float32" else RAMP.astype(dtype)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("dtype", "peak"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_white_is_zero_where_a_tiff_says_so(tmp_path, dtype, peak, order):
    tifffile.imwrite(tmp_path / "a.tif", ramp(dtype, peak), photometric="miniswhite", byteorder=order)
    for channels in ("L", 1):
        np.testing.assert_allclose(levels(tmp_path / "a.tif", channels)[0], peak - ramp(dtype, peak))


@pytest.mark.parametrize("compression", ["lzw", "zstd", "zlib", "lzma", "packbits", "jpeg2000", "jpegxl", "lerc"])
def test_bands_are_read_in_every_compression(tmp_path, compression):
    bands = np.random.default_rng(0).integers(0, 65536, (5, SIZE, SIZE), dtype=np.uint16)
    settings = {"jpeg2000": {"reversible": True, "level": 0}, "jpegxl": {"lossless": True}}.get(compression)
    stored = {"photometric": "minisblack", "planarconfig": "separate", "compressionargs": settings}
    tifffile.imwrite(tmp_path / "a.tif", bands, compression=compression, **stored)
    np.testing.assert_array_equal(levels(tmp_path / "a.tif", 5), bands)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_tiffs_of_another_library_are_read_as_bands(tmp_path, compression, mode):
    values = np.random.default_rng(0).integers(0, 256, (16, 16, {"L": 1, "RGB": 3, "CMYK": 4}[mode]), dtype=np.uint8)
    image = Image.fromarray(values.squeeze(), mode)
    image.save(tmp_path / "a.tif", compression=compression, **({"quality": 100} if compression == "jpeg" else {}))
    read = Normalizer(16, values.shape[-1]).normalize(tmp_path / "a.tif").levels.transpose(1, 2, 0)
    np.testing.assert_allclose(read, values, atol=60 if compression == "jpeg" else 0)  # JPEG halves the colours


@pytest.mark.parametrize("how", ["predictor", "tiles", "pyramid", "ome", "imagej", "bigtiff"])
def test_bands_are_read_as_microscopes_and_satellites_write_them(tmp_path, how):
    bands = np.random.default_rng(0).integers(0, 65536, (5, SIZE, SIZE), dtype=np.uint16)
    options = {
        "predictor": {"compression": "lzw", "predictor": True},
        "tiles": {"tile": (16, 16)},
        "pyramid": {"subifds": 1},
        "ome": {"ome": True, "metadata": {"axes": "CYX"}},
        "imagej": {"imagej": True, "metadata": {"axes": "CYX"}},
        "bigtiff": {"bigtiff": True},
    }[how]
    kind = {key: options.pop(key) for key in ("ome", "imagej", "bigtiff") if key in options}
    with tifffile.TiffWriter(tmp_path / "a.tif", **kind) as file:
        file.write(bands, photometric="minisblack", **options)
        if how == "pyramid":
            file.write(bands[:, ::2, ::2], photometric="minisblack", subfiletype=1)
    np.testing.assert_array_equal(levels(tmp_path / "a.tif", 5), bands)


def test_pages_are_bands_and_a_grey_image_has_one(tmp_path):
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for page in range(5):
            file.write(np.full((SIZE, SIZE), 10 * page, np.uint8), photometric="minisblack")
    assert levels(tmp_path / "pages.tif", 5)[:, 0, 0].tolist() == [0, 10, 20, 30, 40]
    with pytest.raises(UserError, match="has 5 bands, but channels=1"):
        levels(tmp_path / "pages.tif", 1)
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((40, 32), np.uint8))
    for channels in (5, 40):
        with pytest.raises(UserError, match=f"has 1 band, but channels={channels}"):
            levels(tmp_path / "grey.tif", channels)


def packed_tiff(values: np.ndarray, bits: int) -> bytes:
    """A greyscale TIFF whose values ``(H, W)`` take this many bits each, as cameras write them."""
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values.tolist()]
    data = b"".join(int(row, 2).to_bytes(len(row) // 8) for row in rows)
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<4sI", b"II*\0", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_significant_bits_are_the_range(tmp_path):
    twelve = np.rint(RAMP * 4095).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(packed_tiff(twelve, 12))
    for channels in ("L", 1):
        np.testing.assert_array_equal(levels(tmp_path / "a.tif", channels)[0], np.rint(twelve * (65535 / 4095)))
    assert "12-bit scaled to 16-bit" in notes(tmp_path / "a.tif", 1)


@pytest.mark.parametrize("peak", [255, 1023, 4095, 65535])
def test_pgm_of_every_depth_is_read_over_its_range(tmp_path, peak):
    values = np.rint(RAMP * peak).astype(">u2" if peak > 255 else np.uint8)
    (tmp_path / "a.pgm").write_bytes(f"P5 {SIZE} {SIZE} {peak}\n".encode() + values.tobytes())
    read = levels(tmp_path / "a.pgm", "L")
    assert read.dtype == (np.uint16 if peak > 255 else np.uint8)
    np.testing.assert_allclose(read[0] / np.iinfo(read.dtype).max, values / peak, atol=1 / peak)


def test_deep_colour_that_is_cut_is_noted(tmp_path):
    values = np.zeros((SIZE, SIZE, 3), ">u2")
    (tmp_path / "a.ppm").write_bytes(f"P6 # by hand\n{SIZE} {SIZE}\n65535\n".encode() + values.tobytes())
    assert notes(tmp_path / "a.ppm", "RGB") == ["16-bit colour PPM read with 8 bits (a TIFF keeps 16)"]


@pytest.mark.parametrize("chunk", ["zTXt", "iTXt", "iCCP"])
def test_large_chunks_beside_the_pixels_do_not_matter(tmp_path, chunk):
    info = PngImagePlugin.PngInfo()
    text = "".join(map(chr, np.random.default_rng(0).integers(32, 127, 1_500_000)))
    if chunk == "zTXt":
        info.add_text("workflow", text, zip=True)
    elif chunk == "iTXt":
        info.add_itxt("workflow", text, zip=True)
    profile = text.encode() if chunk == "iCCP" else None
    Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(tmp_path / "a.png", pnginfo=info, icc_profile=profile)
    assert levels(tmp_path / "a.png", "RGB")[:, 0, 0].tolist() == [1, 2, 3]


def wide_profile() -> bytes:
    """Red and green exchanged, which no viewer could overlook."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green = srgb.index(b"rXYZ"), srgb.index(b"gXYZ")
    swapped = bytearray(srgb)
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    at = swapped.find("sRGB".encode("utf-16-be"))
    while at >= 0:
        swapped[at : at + 8] = "mine".encode("utf-16-be")
        at = swapped.find("sRGB".encode("utf-16-be"))
    return bytes(swapped)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_converted_for_photographs_and_kept_for_bands(tmp_path, mode):
    image = Image.new("RGBA", (SIZE, SIZE), (250, 10, 20, 255)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=wide_profile())
    assert levels(tmp_path / "a.png", "RGB")[:, 0, 0].tolist() == pytest.approx([10, 250, 20], abs=2)
    assert "colour profile converted to sRGB" in notes(tmp_path / "a.png", "RGB")
    if mode == "RGB":
        assert levels(tmp_path / "a.png", 3)[:, 0, 0].tolist() == [250, 10, 20]
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "b.png", icc_profile=plain)
    assert levels(tmp_path / "b.png", "RGB")[:, 0, 0].tolist() == [250, 10, 20]


def test_nan_and_infinity_are_refused(tmp_path):
    for number in (np.nan, np.inf):
        values = ramp("float32", 1)
        values[0, 0] = number
        tifffile.imwrite(tmp_path / "a.tif", values)
        with pytest.raises(UserError, match="NaN or infinity"):
            levels(tmp_path / "a.tif", 1)


def test_arrays_of_numpy(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE, 5), dtype=np.uint16)
    for name, array in (("last", values), ("first", values.transpose(2, 0, 1))):
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_array_equal(levels(tmp_path / f"{name}.npy", 5), values.transpose(2, 0, 1))
    np.savez(tmp_path / "one.npz", values)
    np.testing.assert_array_equal(levels(tmp_path / "one.npz", 5), values.transpose(2, 0, 1))
    np.savez(tmp_path / "two.npz", a=values, b=values)
    with pytest.raises(UserError, match="2 arrays"):
        levels(tmp_path / "two.npz", 5)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        levels(tmp_path / "objects.npy", 1)
    np.save(tmp_path / "long.npy", np.zeros((SIZE, SIZE), np.int64))
    with pytest.raises(UserError, match="64-bit int64 has no set range"):
        levels(tmp_path / "long.npy", 1)
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(UserError, match="0 arrays"):
        levels(tmp_path / "other.npz", 1)


def test_jpeg_xl(tmp_path):
    import imagecodecs

    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    (tmp_path / "a.jxl").write_bytes(imagecodecs.jpegxl_encode(values, lossless=True))
    np.testing.assert_array_equal(levels(tmp_path / "a.jxl", "RGB"), values.transpose(2, 0, 1))


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason='HEIC needs pip install "attndiff[heif]"')
    image = Image.new("RGB", (64, 64), (200, 100, 50))
    heif.from_pillow(image).save(tmp_path / "a.heic", quality=100)
    assert levels(tmp_path / "a.heic", "RGB")[:, 0, 0].tolist() == pytest.approx([200, 100, 50], abs=4)


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1", "signed"])
def test_dicom(tmp_path, kind):
    pydicom = pytest.importorskip("pydicom", reason='DICOM needs pip install "attndiff[medical]"')
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    twelve = np.rint(RAMP * 4095).astype(np.int64)
    dataset.Rows = dataset.Columns = SIZE
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 12, 11
    dataset.PixelRepresentation = int(kind == "signed")
    dataset.PhotometricInterpretation = "MONOCHROME2" if kind == "signed" else kind
    dataset.PixelData = (twelve - 2048 if kind == "signed" else twelve).astype("<i2").tobytes()
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset, enforce_file_format=True)
    expected = np.rint(twelve * (65535 / 4095))
    expected = 65535 - expected if kind == "MONOCHROME1" else expected
    np.testing.assert_array_equal(levels(tmp_path / "a.dcm", "L")[0], expected)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_slices(tmp_path, suffix):
    nibabel = pytest.importorskip("nibabel", reason='NIfTI needs pip install "attndiff[medical]"')
    values = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)
    nibabel.save(nibabel.Nifti1Image(values[..., None], np.eye(4)), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(levels(tmp_path / f"a{suffix}", "L")[0], values.T)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.eye(4)), tmp_path / f"b{suffix}")
    with pytest.raises(UserError, match="holds 3 slices, name the one that is meant in a column 'slice'"):
        levels(tmp_path / f"b{suffix}", 1)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_of_a_volume_are_images_of_one_family(tmp_path, suffix):
    nibabel = pytest.importorskip("nibabel", reason='NIfTI needs pip install "attndiff[medical]"')
    for volume in range(8):
        values = 10 * volume + np.arange(3, dtype=np.uint8)[None, None].repeat(SIZE, 0).repeat(SIZE, 1)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"v{volume}{suffix}")
    (tmp_path / f"v0{suffix.removesuffix('.gz')}.txt").write_text("a knee")
    put(tmp_path / "plain.png", 200)
    images = ImageSet(config(tmp_path, channels="L"))
    assert len(images) == 25 and names(images)[:2] == ["plain.png", f"v0{suffix} slice 0"]
    shown = [round((float(images[i]["image"].mean()) + 1) * 127.5) for i in range(1, 25)]
    assert shown == [10 * volume + index for volume in range(8) for index in range(3)]
    part = ImageSet(config(tmp_path, channels="L", validation=0.3))
    held_out = open_validation(config(tmp_path, channels="L", validation=0.3))
    volumes = [{name.split()[0] for name in names(rows)} for rows in (part, held_out)]
    assert not volumes[0] & volumes[1] and len(volumes[0] | volumes[1]) == 9
    (tmp_path / "metadata.csv").write_text(f"file_name,slice\nv3{suffix},2\nv4{suffix},7\n")
    images = ImageSet(config(tmp_path, channels="L"))
    assert (
        names(images) == [f"v3{suffix} slice 2"] and "none of number 7" in dict(images.skipped)[f"v4{suffix} slice 7"]
    )


def test_a_stream_is_not_looked_through(tmp_path):
    with pytest.raises(UserError, match="a stream is not read through"):
        diagnose(config(table_of(tmp_path, n=[1]), stream=True))


def test_a_member_of_json_beside_an_image_of_a_tar_is_its_caption(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(2):
            for suffix, content in (("png", png(i)), ("json", json.dumps({"caption": f"thing {i}"}).encode())):
                entry = tarfile.TarInfo(f"{i}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    data = config(tmp_path / "a.tar", stream=True, image_column="png", caption_column="json.caption")
    images = EncodedImages(list(Stream(data, whole=True).shard(0)), data, None)
    assert captions(images) == [["thing 0"], ["thing 1"]]
    data = data.replace(caption_column="json")
    with pytest.raises(UserError, match=r"structures of caption and no text.*COLUMN\.caption"):
        captions(EncodedImages(list(Stream(data, whole=True).shard(0)), data, None))
