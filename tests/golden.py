"""Awkward image files, made in memory, each with the tensor it must become or the reason it must be refused for."""

import io
import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
import tifffile
from PIL import Image

SIZE = 4
BYTES = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
WORDS = np.random.default_rng(1).integers(0, 65536, (SIZE, SIZE, 5), dtype=np.uint16)
RGB, GREY = BYTES[..., :3], BYTES[..., 0]
ALPHA = np.array([0, 64, 128, 255] * SIZE, np.uint8).reshape(SIZE, SIZE)


@dataclass
class Case:
    """A file, the normaliser's options, and either levels ``(C, H, W)`` or a pattern of the refusal."""

    name: str
    data: bytes
    levels: np.ndarray | None = None
    refusal: str | None = None
    options: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def encode(image, form="PNG", **options) -> bytes:
    """A file's content, of an array or an opened image."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def tiff(array, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def first(array) -> np.ndarray:
    """Channels first, with one channel for a greyscale array."""
    return array.transpose(2, 0, 1) if array.ndim == 3 else array[None]


def grey3(array) -> np.ndarray:
    return np.stack([array] * 3)


def over(colour, alpha, background) -> np.ndarray:
    """8-bit colour ``(H, W, C)`` over a background, exactly, then rounded."""
    opacity = alpha[..., None].astype(np.float64) / 255
    return first(np.rint(colour * opacity + np.asarray(background) * (1 - opacity)).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A small file that claims to be a large image."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def palette_image(transparency=None) -> tuple[bytes, np.ndarray]:
    """A palette image of three colours, one of them transparent if asked, and its indices."""
    indices = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) % 3
    image = Image.frombytes("P", (SIZE, SIZE), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    return encode(image, **({} if transparency is None else {"transparency": transparency})), indices


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]], np.uint8)
# What a viewer does for each EXIF orientation, as indices of the stored array.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def eight_bit() -> list[Case]:
    """Modes of 8 bits and fewer."""
    rgba = np.concatenate([RGB, ALPHA[..., None]], axis=-1)
    grey_alpha = np.stack([GREY, ALPHA], axis=-1)
    kept = np.where(ALPHA[..., None] == 0, 255, RGB).astype(np.uint8)
    colours, indices = palette_image()
    transparent, _ = palette_image(transparency=1)
    bits = np.array([[0, 255] * 2] * SIZE, np.uint8)
    luma = np.rint(RGB @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    cmyk = np.dstack([RGB, np.zeros_like(ALPHA)])
    cmyk_file = encode(Image.fromarray(cmyk, "CMYK"), "TIFF")
    palette_file = encode(Image.fromarray(GREY).convert("P"), "TIFF")
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    opaque = np.dstack([RGB, np.full_like(ALPHA, 255)])
    keyed = np.stack([np.where(GREY[0, 0] == GREY, 255, GREY)] * 3)
    keep_alpha = {"channels": "RGBA"}
    return [
        Case("rgb.png", encode(RGB), first(RGB)),
        Case("rgb.webp", encode(RGB, "WEBP", lossless=True), first(RGB)),
        Case("rgb.bmp", encode(RGB, "BMP"), first(RGB)),
        Case("grey.png", encode(GREY), grey3(GREY), notes=("greyscale repeated to RGB",)),
        Case("grey_kept.png", encode(GREY), first(GREY), options={"channels": "L"}),
        Case("luma.png", encode(RGB), first(luma), options={"channels": "L"}, notes=("colour reduced to greyscale",)),
        Case("palette.png", colours, first(PALETTE[indices]), notes=("palette expanded",)),
        Case(
            "palette_transparent.png",
            transparent,
            first(np.where(indices[..., None] == 1, 255, PALETTE[indices]).astype(np.uint8)),
            notes=("palette expanded", "alpha composited over white"),
        ),
        Case(
            "grey_keyed.png", encode(GREY, transparency=int(GREY[0, 0])), keyed, notes=("alpha composited over white",)
        ),
        Case("la.png", encode(grey_alpha), grey3(over(GREY[..., None], ALPHA, [255])[0])),
        Case("la_kept.png", encode(grey_alpha), first(np.stack([kept_grey(), ALPHA], -1)), options={"channels": "LA"}),
        Case("rgba.png", encode(rgba), over(RGB, ALPHA, [255] * 3), notes=("alpha composited over white",)),
        Case("rgba_on_teal.png", encode(rgba), over(RGB, ALPHA, [0, 128, 128]), options={"background": "#008080"}),
        Case("rgba_kept.png", encode(rgba), first(np.concatenate([kept, ALPHA[..., None]], -1)), options=keep_alpha),
        Case("opaque_kept.png", encode(RGB), first(opaque), options=keep_alpha),
        Case("cmyk.tif", cmyk_file, first(255 - RGB), notes=("CMYK converted to RGB",)),
        Case("cmyk_bands.tif", cmyk_file, first(cmyk), options={"channels": 4}),
        Case("palette_bands.tif", palette_file, refusal="PALETTE", options={"channels": 3}),
        Case("one_bit.png", encode(Image.fromarray(bits).convert("1")), grey3(bits)),
        Case("three_bands.png", encode(RGB), first(RGB), options={"channels": 3}),
        Case(
            "animated.png",
            encode(frames[0], save_all=True, append_images=frames[1:]),
            first(RGB),
            notes=("first frame of an animation kept",),
        ),
        Case(
            "animated.webp",
            encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True),
            first(RGB),
            notes=("first frame of an animation kept",),
        ),
    ]


def kept_grey() -> np.ndarray:
    """Greyscale with the colour of transparent pixels set to white."""
    return np.where(ALPHA == 0, 255, GREY).astype(np.uint8)


def deep() -> list[Case]:
    """16-bit, floating point, and bands of any number."""
    ramp = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    floats = (WORDS[..., :3] / 65535).astype(np.float32)
    contiguous = {"photometric": "minisblack", "planarconfig": "contig"}
    alpha16 = np.where(ALPHA[..., None] > 0, np.uint16(65535), np.uint16(0))
    deep_rgba = np.concatenate([WORDS[..., :3], alpha16], axis=-1)
    deep_white = np.where(alpha16 > 0, WORDS[..., :3], 65535).astype(np.uint16)
    five = {"channels": 5}
    return [
        Case("ramp16.png", encode(ramp), grey3(ramp), notes=("16-bit scaled", "greyscale repeated to RGB")),
        Case("ramp16.tif", encode(ramp, "TIFF"), first(ramp), options={"channels": "L"}),
        Case("ramp16_big_endian.tif", tiff(ramp, byteorder=">"), first(ramp), options={"channels": 1}),
        Case("rgb16.tif", tiff(WORDS[..., :3], photometric="rgb"), first(WORDS[..., :3]), notes=("16-bit scaled",)),
        Case("rgba16.tif", tiff(deep_rgba, photometric="rgb", extrasamples=["unassalpha"]), first(deep_white)),
        Case("rgb32.tif", tiff(floats, photometric="rgb"), first(floats)),
        Case("grey32.tif", encode(floats[..., 0], "TIFF"), first(floats[..., 0]), options={"channels": "L"}),
        Case("out_of_range.tif", tiff(floats[..., 0] * 300), refusal="floating point values from .* scale them"),
        Case("not_finite.tif", tiff(np.full((4, 4), np.nan, np.float32)), refusal="floating point values"),
        Case("integer32.tif", tiff(np.ones((4, 4), np.int32)), refusal="32-bit"),
        Case("bands_last.tif", tiff(WORDS, **contiguous), first(WORDS), options=five, notes=("16-bit scaled",)),
        Case("bands_first.tif", tiff(first(WORDS), photometric="minisblack"), first(WORDS), options=five),
        Case(
            "bands_planar.tif",
            tiff(first(WORDS), photometric="minisblack", planarconfig="separate"),
            first(WORDS),
            options=five,
        ),
        Case("bands_as_rows.tif", tiff(WORDS, photometric="minisblack"), first(WORDS), options=five),
        Case("bands8.tif", tiff(BYTES[..., :2], **contiguous), first(BYTES[..., :2]), options={"channels": 2}),
        Case("five_bands_as_rgb.tif", tiff(WORDS, **contiguous), refusal="has 5 bands.*set channels=5"),
        Case("five_bands_as_four.tif", tiff(WORDS, **contiguous), refusal="has 5 bands", options={"channels": 4}),
        Case("rgb_as_five.png", encode(RGB), refusal="has 3 bands.*channels=5", options=five),
        Case(
            "turned16.tif",
            tiff(ramp, extratags=[(274, "H", 1, 6, True)]),
            first(np.rot90(ramp, -1)),
            options={"channels": "L"},
        ),
        Case(
            "turned5.tif",
            tiff(WORDS, extratags=[(274, "H", 1, 7, True)], **contiguous),
            first(UPRIGHT[7](WORDS)),
            options=five,
        ),
    ]


def shapes() -> list[Case]:
    """Sizes other than that of the tensor."""
    big = np.kron(RGB, np.ones((2, 2, 1), np.uint8))
    blocks = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    means = blocks.reshape(4, 2, 4, 2, 3).mean((1, 3))
    tall = np.concatenate([np.zeros((3, 4, 3), np.uint8), RGB, np.zeros((3, 4, 3), np.uint8)])
    pixel = np.array([[[7, 8, 9]]], np.uint8)
    line = np.zeros((4000, 1, 3), np.uint8)
    line[1999] = 200  # the middle pixel: half of 3999, rounded down
    # A hidden red beside an opaque blue: premultiplied averaging leaves pure blue of half the opacity.
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[:, ::2], hidden[:, 1::2] = [255, 0, 0, 0], [0, 0, 255, 255]
    blue = np.stack([np.full((4, 4), value, np.uint8) for value in (0, 0, 255, 128)])
    return [
        Case("nearest.png", encode(big), first(RGB), options={"resize": "nearest"}, notes=("resized down",)),
        Case("area.png", encode(blocks), first(np.rint(means).astype(np.uint8)), options={"resize": "area"}),
        Case("tall.png", encode(tall), first(RGB), notes=("cropped to a square",)),
        Case("wide.png", encode(tall.swapaxes(0, 1)), first(RGB.swapaxes(0, 1)), notes=("cropped to a square",)),
        Case("pixel.png", encode(pixel), first(np.tile(pixel, (4, 4, 1))), notes=("resized up",)),
        Case("line.png", encode(line), np.full((3, 4, 4), 200, np.uint8), options={"resize": "nearest"}),
        Case("hidden_red.png", encode(hidden), blue, options={"resize": "area", "channels": "RGBA"}),
    ]


def exif(orientation: int) -> Case:
    tags = Image.Exif()
    tags[274] = orientation
    notes = () if orientation == 1 else ("rotated or mirrored as its EXIF says",)
    return Case(f"exif{orientation}.png", encode(RGB, exif=tags), first(UPRIGHT[orientation](RGB)), notes=notes)


def broken() -> list[Case]:
    """What must be refused, and what only looks broken."""
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    corrupt_exif = encode(RGB, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    return [
        Case("corrupt_exif.png", corrupt_exif, first(RGB), notes=("unreadable EXIF ignored",)),
        Case("empty.png", b"", refusal="is empty"),
        Case("truncated.png", encode(noise)[:4000], refusal="cannot be read"),
        Case("truncated.jpg", encode(noise, "JPEG")[:1500], refusal="truncated"),
        Case(
            "truncated.tif", tiff(WORDS, photometric="minisblack", planarconfig="contig")[:60], refusal="cannot be read"
        ),
        Case("page.jpg", b"\n<!DOCTYPE html><html><body>404</body></html>", refusal="HTML"),
        Case("drawing.png", b'<?xml version="1.0"?><svg xmlns="x"/>', refusal="SVG"),
        Case("noise.png", bytes(range(256)) * 4, refusal="not an image"),
        Case("bomb.png", png_header(12_000, 12_000), refusal="12000x12000 is more than 64 megapixels"),
        Case("large_bomb.png", png_header(60_000, 60_000), refusal="megapixels"),
    ]


def cases() -> list[Case]:
    """The whole set."""
    return [*eight_bit(), *deep(), *shapes(), *map(exif, range(1, 9)), *broken()]
