"""Inputs that people reported to other projects, each with the value that it has to become or the sentence for it."""

import base64
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from attndiff.apps.cli import main
from attndiff.data import image_set
from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose
from attndiff.data.image_set import ImageSet
from attndiff.data.parts import open_parts
from attndiff.data.pixels.normalize import Normalized, Normalizer
from attndiff.data.streams.encoded import EncodedImages
from attndiff.data.tables.names import printable
from attndiff.data.tables.shards import open_stream
from attndiff.errors import UserError

SIZE = 4


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(*colour: int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (SIZE, SIZE), colour)


def put(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(plain(number, 0, 7)))
    return path


def config(path, **options) -> DataConfig:
    return DataConfig(path=str(path), size=SIZE, **options)


def names(images: ImageSet) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def captions(path, **options) -> dict[str, str]:
    images = ImageSet(config(path, caption_column="text", **options))
    return {images.name(i): images[i]["caption"][0] for i in range(len(images))}


def tiff(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(depth: int, kind: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of four equal rows, of a bit depth and colour type, with chunks before its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = (b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, depth, kind, 0, 0, 0))
    body = (b"IDAT", zlib.compress((b"\0" + row) * SIZE))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (header, *chunks, body, (b"IEND", b"")))


def read(data: bytes, channels="RGB") -> Normalized:
    return Normalizer(SIZE, channels).normalize(data, "x")


def first_row(data: bytes, channels="RGB") -> list[list[int]]:
    return read(data, channels).levels[:, 0].tolist()


# What stands in a folder.


# nao1215/filesql#881, MemPalace/mempalace#2221
def test_pipes_and_sockets_are_named_and_never_opened(tmp_path, monkeypatch):
    put(tmp_path / "a.png"), (tmp_path / "a.txt").write_text("a")
    for name in ("b.png", "a.caption", "metadata.csv", "c.parquet"):
        os.mkfifo(tmp_path / name)
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("d.png")
        script = (
            "import sys; from attndiff.data.doctor import *; print(diagnose(DataConfig(**eval(sys.argv[1]))).to_json())"
        )
        options = repr({"path": str(tmp_path), "size": SIZE, "caption_column": "text"})
        # In another process, as one that waits for a pipe cannot be got back.
        ran = subprocess.run([sys.executable, "-c", script, options], capture_output=True, timeout=60, check=True)
    report = json.loads(ran.stdout)
    assert report["usable"] == 1 and [name for name, _ in report["dropped"]] == [
        *("a.caption", "b.png", "c.parquet", "d.png", "metadata.csv")
    ]
    assert {reason for _, reason in report["dropped"]} == {"no file but a pipe, a socket or a device"}


def test_pipes_are_no_shards_of_a_stream(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="there are none here"):
        open_stream(str(tmp_path), "train", ["image"])


# python/cpython#109187, Aider-AI/aider#5223
def test_links_in_a_circle_and_to_nowhere_are_named(tmp_path):
    put(tmp_path / "a.png")
    for name, target in (("b.png", "b.png"), ("c", "d"), ("d", "c"), ("e.png", "gone.png")):
        os.symlink(target, tmp_path / name)
    images = ImageSet(config(tmp_path))
    assert names(images) == ["a.png"]
    assert images.skipped == [(name, "a link that leads nowhere") for name in ("b.png", "c", "d", "e.png")]


# pytorch/vision#4925, huggingface/pytorch-image-models#957
def test_class_folders_without_anything_are_named(tmp_path):
    put(tmp_path / "cat" / "a.png"), (tmp_path / "dog").mkdir(), (tmp_path / ".cache").mkdir()
    images = ImageSet(config(tmp_path, label_column="label"))
    assert images.class_names == ["cat"] and images.skipped == [("dog", "an empty folder")]


# huggingface/datasets#3705, axolotl-ai-cloud/axolotl#958
@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "table.feather", "sheet.xlsx"])
def test_tables_of_other_kinds_are_to_be_saved_as_parquet(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name}: \.\w+ files are not read, save it as parquet"):
        ImageSet(config(tmp_path))


# markfasheh/duperemove#353, ogham/exa#156
def test_names_cannot_command_the_terminal_nor_break_lines(tmp_path, capsys, caplog):
    odd = ["\x1b[31mred.png", "new\nline.png", "tab\t.png", "c1\x9f.png", 'it\'s "x" %s {}.png', "-rf.png", "名.png"]
    for name in odd:
        put(tmp_path / name)
    (tmp_path / "\x07bell.md").touch(), (tmp_path / "\rbad.png").write_bytes(b"x")
    assert names(ImageSet(config(tmp_path))) == sorted(odd)
    report = diagnose(config(tmp_path)).to_text()
    assert all(c.isprintable() for c in report.replace("\n", "")) and r"new\nline.png" in report
    said = [*open_parts(config(tmp_path))[2], caplog.text.replace("\n", "")]
    assert all(note.isprintable() for note in said) and r"\x07bell.md" in said[-2]
    assert r"\x07bell.md" in report and "名.png" in report and printable("c1\x9f") == r"c1\x9f"
    with pytest.raises(SystemExit):
        main(["doctor", str(tmp_path / "\x1b[2Jgone")])
    assert "\x1b" not in capsys.readouterr().err


# Images.


# git-lfs/git-lfs#4240, jinnovation/rainy-image-dataset#2
def test_a_pointer_of_git_lfs_is_called_one(tmp_path):
    put(tmp_path / "a.png"), put(tmp_path / "b.png", 1)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12\n"
    (tmp_path / "c.png").write_text(pointer)
    (name, reason), *_ = ImageSet(config(tmp_path)).skipped
    assert name == "c.png" and "a pointer of Git LFS" in reason and "git lfs pull" in reason
    (tmp_path / "a.txt").write_text(pointer), (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=r"a\.txt: a pointer of Git LFS"):
        captions(tmp_path)
    (tmp_path / "set" / "d.parquet").write_text(pointer)
    for opening in (lambda path: ImageSet(config(path)), lambda path: open_stream(str(path), "train", ["image"])):
        with pytest.raises(UserError, match=r"d\.parquet: a pointer of Git LFS"):
            opening(tmp_path / "set")


# nianticlabs/monodepth2#440
def test_a_file_that_vanishes_after_it_was_listed_is_named(tmp_path, monkeypatch):
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        put(tmp_path / name, number)
    passing = image_set.select_rows

    def vanishing(*arguments):
        (tmp_path / "b.png").unlink(missing_ok=True)
        return passing(*arguments)

    monkeypatch.setattr(image_set, "select_rows", vanishing)
    images = ImageSet(config(tmp_path))
    ((name, reason),) = images.skipped
    assert names(images) == ["a.png", "c.png"] and name == "b.png" and "No such file" in reason


# python-pillow/Pillow#1950, python-pillow/Pillow#4852, hMatoba/Piexif#55
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_broken_exif_is_noted_and_leaves_the_pixels(form):
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*" + bytes(60_000), b"Exif\0\0no header"):
        image = read(encode(plain(100, 100, 100), form, exif=exif))
        assert image.levels.min() == image.levels.max() == 100 and image.notes.count("unreadable EXIF ignored") <= 1
    assert read(encode(plain(1, 2, 3), form, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")).notes == [
        "unreadable EXIF ignored"
    ]


# ultralytics/yolov5#2446, serengil/deepface#1515
@pytest.mark.parametrize("suffix", ["jpg", "mpo"])
def test_photos_of_several_pictures_are_their_first_and_no_animation(tmp_path, suffix):
    several = encode(plain(10, 20, 30), "MPO", save_all=True, append_images=[plain(200, 0, 0)], quality=100)
    put(tmp_path / "0.png"), (tmp_path / f"1.{suffix}").write_bytes(several)
    report = diagnose(config(tmp_path))
    assert report.usable == 2 and report.altered == {"first of several pictures kept": [f"1.{suffix}"]}
    np.testing.assert_allclose(np.array(first_row(several))[:, 0], [10, 20, 30], atol=2)


# opencv/opencv#27074, python-pillow/Pillow#4243
def test_the_still_picture_of_an_animated_png_is_what_is_read():
    moving = {"save_all": True, "append_images": [plain(50, 0, 0), plain(0, 50, 0)], "default_image": True}
    image = read(encode(plain(9, 9, 9), **moving))
    assert image.levels.max() == image.levels.min() == 9 and image.notes == ["first frame of an animation kept"]


# python-pillow/Pillow#3744, etemesi254/zune-image#58
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_transparent_grey_of_a_png_of_few_bits_is_transparent(depth):
    row = {1: b"\x50", 2: b"\x1b", 4: b"\x05\x5a"}[depth]
    values = {1: [0, 1, 0, 1], 2: [0, 1, 2, 3], 4: [0, 5, 5, 10]}[depth]
    for key in {0, 1, values[1], values[3]}:
        alpha = first_row(png(depth, 0, row, (b"tRNS", struct.pack(">H", key))), "LA")[1]
        assert alpha == [0 if value == key else 255 for value in values]


# python-pillow/Pillow#3744, python-pillow/Pillow#2574
def test_the_transparent_grey_of_a_16_bit_png_is_transparent():
    data = png(16, 0, struct.pack(">4H", 100, 200, 256, 65535), (b"tRNS", struct.pack(">H", 100)))
    assert first_row(data, "LA") == [[65535, 200, 256, 65535], [0, 65535, 65535, 65535]]
    assert first_row(data, "L") == [[65535, 200, 256, 65535]] and "alpha composited over white" in read(data).notes
    assert first_row(data, 1) == [[100, 200, 256, 65535]]


# python-pillow/Pillow#3150
def test_the_transparent_colour_of_a_16_bit_png_is_transparent():
    row = struct.pack(">12H", 258, 772, 1286, 65535, 0, 0, 0, 65535, 0, 0, 0, 65535)
    data = png(16, 2, row, (b"tRNS", struct.pack(">3H", 258, 772, 1286)))
    assert first_row(data, "RGBA")[3] == [0, 255, 255, 255]


# mypaint/mypaint#129, d2phap/ImageGlass#377
def test_a_gamma_that_is_not_that_of_srgb_is_noted():
    row = bytes([50, 100, 150]) * SIZE

    def of_gamma(gamma: int, *more: tuple[bytes, bytes]) -> Normalized:
        return read(png(8, 2, row, (b"gAMA", struct.pack(">I", gamma)), *more))

    assert of_gamma(100_000).notes == ["gamma of 1 not applied"]
    assert of_gamma(45_455).notes == of_gamma(100_000, (b"sRGB", b"\0")).notes == []
    assert of_gamma(100_000).levels[:, 0, 0].tolist() == [50, 100, 150]


# Kozea/WeasyPrint#2179, python-pillow/Pillow#4860
def test_the_inverted_cmyk_of_adobe_is_read_as_it_looks():
    data = encode(plain(0, 255, 255, 0, mode="CMYK"), "JPEG", quality=100)
    image = read(data)
    assert b"Adobe" in data and image.levels[:, 0, 0].tolist() == [255, 0, 0]
    assert image.notes == ["CMYK converted to RGB"] and read(data, 4).levels[:, 0, 0].tolist() == [0, 255, 255, 0]


# ImageMagick/ImageMagick#4105, python-pillow/Pillow#8834
def test_lab_becomes_rgb_with_a_note():
    image = read(encode(plain(138, 208, 195, mode="LAB"), "TIFF"))
    np.testing.assert_allclose(image.levels[:, 0, 0], [255, 0, 0], atol=12)
    assert image.notes == ["LAB converted to RGB"]


# geosolutions-it/imageio-ext#164, developmentseed/deck.gl-raster#187
def test_a_fourth_band_that_is_no_alpha_is_noted_and_kept_where_asked_for():
    bands = np.arange(SIZE * SIZE * 4, dtype=np.uint8).reshape(SIZE, SIZE, 4)
    data = tiff(bands, photometric="rgb", extrasamples=["unspecified"])
    image = read(data)
    np.testing.assert_array_equal(image.levels, bands[..., :3].transpose(2, 0, 1))
    assert image.notes == ["1 band of no stated meaning left out"]
    np.testing.assert_array_equal(read(data, 4).levels, bands.transpose(2, 0, 1))
    alpha = tiff(np.full((SIZE, SIZE, 4), 255, np.uint8), photometric="rgb", extrasamples=["unassalpha"])
    assert read(alpha).notes == []


# python-pillow/Pillow#5114, python-pillow/Pillow#3984
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_of_every_width_are_read(dtype):
    values = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE).astype(dtype)
    for channels in ("L", 1):
        np.testing.assert_array_equal(read(tiff(values), channels).levels[0], values.astype(np.float32))


# python-pillow/Pillow#4819
@pytest.mark.parametrize(("dtype", "words"), [("int8", "8-bit int8"), ("int16", "16-bit int16")])
def test_signed_numbers_are_refused_as_what_they_are(dtype, words):
    for channels in ("L", "RGB", 1):
        with pytest.raises(UserError, match=f"{words} has no set range"):
            read(tiff(np.full((SIZE, SIZE), -5, dtype)), channels)


# python-pillow/Pillow#1602, chaiNNer-org/chaiNNer#409
def test_grey_that_is_multiplied_by_its_alpha_is_divided_by_it():
    data = tiff(np.full((SIZE, SIZE, 2), 64, np.uint8), photometric="minisblack", extrasamples=["assocalpha"])
    assert read(data, "LA").levels[:, 0, 0].tolist() == [255, 64]


# mantidproject/mantidimaging#1093, pytroll/satpy#2696
@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN or infinity"), (3, "from 0.5 to 3")])
def test_an_alpha_that_is_no_share_is_refused(value, words):
    pixels = np.full((SIZE, SIZE, 4), 0.5, np.float32)
    pixels[0, 0, 3] = value
    for data in (npy(pixels), tiff(pixels, photometric="rgb", extrasamples=["unassalpha"])):
        for channels in ("RGB", "RGBA"):
            with pytest.raises(UserError, match=words):
                read(data, channels)


# photoprism/photoprism#3342, SixLabors/ImageSharp.Web#259
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_every_format_is_turned_upright_and_says_so(form):
    wide = Image.new("RGB", (SIZE * 2, SIZE), (255, 0, 0))
    wide.paste((0, 0, 255), (SIZE, 0, SIZE * 2, SIZE))
    exif = Image.Exif()
    exif[274] = 6  # its right side is below
    image = read(encode(wide, form, exif=exif, **({"lossless": True} if form == "WEBP" else {})))
    assert image.geometry.size == (SIZE * 2, SIZE) and "rotated or mirrored as its EXIF says" in image.notes
    assert image.levels[0, 0, 0] > 200 and image.levels[2, -1, 0] > 200


# Lightning-AI/litData#660, tensorflow/tensorflow#9786
@pytest.mark.parametrize(("suffix", "form"), [("png", "JPEG"), ("jpg", "PNG"), ("jpg", "WEBP"), ("bmp", "GIF")])
def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path, suffix, form):
    (tmp_path / f"0.{suffix}").write_bytes(encode(plain(100, 100, 100), form))
    image = ImageSet(config(tmp_path))[0]["image"]
    np.testing.assert_allclose(image, 100 / 127.5 - 1, atol=0.02)


# cleanlab/cleanvision#250, kohya-ss/sd-scripts#1008
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20_000, 2)])
def test_images_of_a_pixel_and_of_extreme_proportions_are_read(tmp_path, size):
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "0.png")
    for options in ({"size": 16}, {"size": 32, "max_aspect": 2.0}):
        image = ImageSet(DataConfig(path=str(tmp_path), **options))[0]["image"]
        np.testing.assert_allclose(image[:, 0, 0], np.array([9, 8, 7]) / 127.5 - 1, atol=1e-5)


# Captions.


# AUTOMATIC1111/stable-diffusion-webui#3657
@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_captions_and_metadata_in_utf_16_are_read(tmp_path, order):
    put(tmp_path / "a" / "0.png"), put(tmp_path / "b" / "0.png")
    (tmp_path / "a" / "0.txt").write_bytes("\ufeffun café\r\n".encode(order))
    (tmp_path / "b" / "metadata.csv").write_bytes("\ufefffile_name\ttext\r\n0.png\tun café\r\n".encode(order))
    assert captions(tmp_path / "a") == captions(tmp_path / "b") == {"0.png": "un café"}


# ostris/ai-toolkit#113, kijai/ComfyUI-FluxTrainer#62
def test_captions_of_windows_are_refused_with_the_place(tmp_path):
    put(tmp_path / "0.png"), (tmp_path / "0.txt").write_bytes(b"a toy\r\na dog\x92s ball")
    with pytest.raises(UserError, match=r"0\.txt: is not UTF-8 text \(byte 0x92 in line 2\), save it as UTF-8"):
        captions(tmp_path)


# kohya-ss/musubi-tuner#834, kohya-ss/sd-scripts#1155
def test_captions_of_several_lines_are_kept_whole(tmp_path):
    put(tmp_path / "0.png"), (tmp_path / "0.txt").write_bytes(b"(red:1.2), [blue]\r\n\r\nA second paragraph.\r")
    assert captions(tmp_path) == {"0.png": "(red:1.2), [blue]\n\nA second paragraph."}


# arsenetar/dupeguru#1319
def test_a_caption_is_not_that_of_an_image_whose_name_differs_in_case(tmp_path):
    for number, name in enumerate(("5c.png", "5C.png", "6D.PNG")):
        put(tmp_path / name, number)
    if len(os.listdir(tmp_path)) < 3:
        pytest.skip("names that differ in case are one file here")
    (tmp_path / "5c.txt").write_text("low"), (tmp_path / "6d.txt").write_text("six")
    assert captions(tmp_path) == {"5c.png": "low", "6D.PNG": "six"}
    (tmp_path / "5C.txt").write_text("up")
    assert captions(tmp_path) == {"5C.png": "up", "5c.png": "low", "6D.PNG": "six"}


# Tables.


# mechatroner/vscode_rainbow_csv#108, mholt/PapaParse#951
@pytest.mark.parametrize("delimiter", [";", ",", "|"])
def test_the_line_that_tells_a_spreadsheet_the_delimiter_is_no_header(tmp_path, delimiter):
    put(tmp_path / "0.png"), put(tmp_path / "1.png", 1)
    text = f"sep={delimiter}\r\nfile_name;text\r\n0.png;a\r\n1.png;b\r\n".replace(";", delimiter)
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert captions(tmp_path) == {"0.png": "a", "1.png": "b"}
    (tmp_path / "metadata.csv").write_text(text + f'1.png{delimiter}"b')
    with pytest.raises(UserError, match="begins on line 5 is no CSV"):
        captions(tmp_path)


# openai/evals#259, konklone/json#64
def test_one_json_list_is_not_json_lines(tmp_path):
    put(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps([{"file_name": "0.png", "text": "a"}], indent=1))
    with pytest.raises(UserError, match="holds one JSON list; write each of its objects on a line of its own"):
        captions(tmp_path)


# pandas-dev/pandas#28335, calpaterson/csvbase#11
def test_whole_numbers_that_became_floats_are_classes_in_their_order(tmp_path):
    images = [encode(plain(i, 0, 0)) for i in range(12)]
    pq.write_table(pa.table({"image": images, "label": [float(i) for i in range(12)]}), tmp_path / "a.parquet")
    whole = ImageSet(config(tmp_path / "a.parquet", label_column="label"))
    assert whole.class_names == [str(i) for i in range(12)] and [row["label"] for row in whole] == list(range(12))
    stream = EncodedImages([("row 0", {"label": 1.0})], config("x", label_column="label"), ["cat", "dog"])
    assert stream.load(0, "label") == 1


# Eventual-Inc/Daft#5089, pixeltable/pixeltable#1186
@pytest.mark.parametrize("cell", ["a.png", base64.b64encode(encode(plain(1, 2, 3))).decode(), [[[1, 2, 3]]]])
def test_a_column_that_holds_no_encoded_images_is_named(tmp_path, cell):
    put(tmp_path / "a.png")
    pq.write_table(pa.table({"image": [cell]}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"row 0: holds no image but (str|list), store the encoded"):
        ImageSet(config(tmp_path / "d.parquet", on_error="raise"))


def write_tar(path: Path, *names: str) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            content = encode(plain(1, 2, 3)) if name.lower().endswith("png") else b"caption"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


# huggingface/datasets#7732, huggingface/datasets#7144
@pytest.mark.usefixtures("cache")
def test_endings_of_a_tar_are_columns_as_they_are_written(tmp_path):
    upper = write_tar(tmp_path / "a.tar", "x/0.PNG", "x/0.TXT", "y.1/0.PNG", "y.1/0.TXT")
    assert [row["TXT"] for row in open_stream(upper, "train", ["PNG"])] == ["caption"] * 2
    with pytest.raises(UserError, match=r"has no column 'png'.*it has PNG, TXT"):
        open_stream(upper, "train", ["png"])
    dotted = write_tar(tmp_path / "b.tar", "22.05.png", "22.05.txt", "22.06.png", "22.06.txt")
    with pytest.raises(UserError, match=r"has no column 'png'.*it has .*05\.png"):
        open_stream(dotted, "train", ["png"])


# webdataset/webdataset#11
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("order", [("0.png", "1.png", "0.txt", "1.txt"), ("0.png", "0.txt", "1.png", "2.txt")])
def test_a_tar_out_of_order_says_what_order_is_needed(tmp_path, order):
    with pytest.raises(UserError, match="the files of each image stand together and have the same endings"):
        open_stream(write_tar(tmp_path / "a.tar", *order), "train", ["png"])
