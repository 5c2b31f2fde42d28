"""Images, each with texts beside it, as a picture."""

from PIL import Image

from attndiff.data.subset import Subset
from attndiff.metrics.near_copies import as_image
from attndiff.viewing import captioned_sheet, window_of

SHOWN = 16  # images at most


def captions_beside(images: Subset, texts: dict[str, list[str]]) -> Image.Image:
    """The first images with their texts, one an image and kind."""
    first, data = Subset(images, range(min(SHOWN, len(images)))), images.describe()
    shown = {kind: each[: len(first)] for kind, each in texts.items()}
    return captioned_sheet([as_image(one, data) for one in first.tensor()], shown, window=window_of(data))
