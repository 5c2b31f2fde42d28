"""Colour profiles: what a photograph's numbers mean, converted to sRGB by LittleCMS."""

import io
from functools import lru_cache

from PIL import Image, ImageCms

CONVERTED = "colour profile converted to sRGB"
IGNORED = "unreadable colour profile ignored"


def to_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """A photograph in sRGB: RGB and CMYK by their profile, everything else, and sRGB itself, as it is.

    Args:
        image: As it was opened, loaded.
        notes: Are added to.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "P"):
        return image
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    try:
        transform = _transform(profile, "CMYK" if image.mode == "CMYK" else "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append(IGNORED)
        return image
    if transform is None:
        return image
    notes.append(CONVERTED)
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    converted = transform.apply(image.convert("RGB") if alpha else image)
    if alpha:
        converted.putalpha(alpha)
    elif "transparency" in image.info and image.mode == "RGB":
        converted = _with_transparent_colour(image, converted)
    return converted


def _with_transparent_colour(image: Image.Image, converted: Image.Image) -> Image.Image:
    """The transparent colour is one of those that are stored, not of those that they become."""
    converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


@lru_cache(16)  # the images of a set have few profiles, and a transform costs more than a small image
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if it is sRGB."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(opened).casefold():
        return None
    return ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
