"""The mark in the file of a picture that this program drew, by which it knows such a picture again among data."""

import io
from pathlib import Path

import tifffile
from PIL import Image, PngImagePlugin

SOFTWARE = "attndiff"
EXIF_SOFTWARE = 305  # in a TIFF, too
TIFF_STARTS = (b"II", b"MM")
# How Pillow writes without loss, the colour of transparent pixels included, by suffix.
LOSSLESS = {".png": {}, ".webp": {"lossless": True, "exact": True}, ".tif": {}}
START = 1 << 14  # bytes that hold the mark, but for a WebP, which has it at its end


def save_picture(image: Image.Image, path: str | Path) -> None:
    """Write a picture with the mark, in the format that its name says; formats without room for it have none.

    Nothing is lost in those of `LOSSLESS`.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_text("Software", SOFTWARE)
        image.save(path, pnginfo=text)
        return
    exif = Image.Exif()
    exif[EXIF_SOFTWARE] = SOFTWARE
    image.save(path, exif=exif, **LOSSLESS.get(suffix, {}))


def is_drawn(source: bytes | Path) -> bool:
    """Whether an image file, given by its content or path, has the mark; not if it cannot be read."""
    try:
        content = _start(source) if isinstance(source, Path) else source
        return SOFTWARE.encode() in content and _software(source, content) == SOFTWARE
    # Readers meet broken files with errors of every kind; decoding them says what is wrong.
    except Exception:
        return False


def _start(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        start = file.read(START)
        return start + file.read() if start.startswith(b"RIFF") else start


def _software(source: bytes | Path, content: bytes) -> str | None:
    """What wrote an image, as its file says; its pixels are not decoded."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if content.startswith(TIFF_STARTS):  # of more bands than Pillow opens
        with tifffile.TiffFile(file) as tiff:
            return tiff.pages.first.tags.valueof(EXIF_SOFTWARE)
    with Image.open(file) as image:
        return image.info.get("Software") or image.getexif().get(EXIF_SOFTWARE)
