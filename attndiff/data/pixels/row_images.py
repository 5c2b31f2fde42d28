"""All that a row shows, cut alike: its image, other images of it, masks."""

from collections.abc import Callable, Iterable

import numpy as np

from attndiff.data.buckets import bucket_shapes
from attndiff.data.columns import IMAGE, Column
from attndiff.data.config import DataConfig
from attndiff.data.geometry import Geometry
from attndiff.data.pixels.decode import decode
from attndiff.data.pixels.decoded import NUMBERS
from attndiff.data.pixels.normalize import Normalized, Normalizer, Source
from attndiff.data.pixels.values import ValueRange


def make_normalizer(config: DataConfig) -> Normalizer:
    """The normaliser that a configuration describes."""
    shapes = config.max_aspect and bucket_shapes(config.size, config.max_aspect, config.bucket_multiple)
    value_range = config.value_range and ValueRange(*config.value_range, config.units)
    return Normalizer(config.size, config.channels, config.background, config.resize, shapes, value_range, config.ink)


def read_planar(normalizer: Normalizer, column: Column, source: Source, geometry: Geometry, name: str) -> np.ndarray:
    """One planar column of a row, at its own depth.

    Args:
        normalizer: Decides what images become.
        column: An image, or a mask, whose numbers are never mixed.
        source: The file's content, its path, or the numbers of a slice.
        geometry: Of the row's image.
        name: What messages call the row.

    Returns:
        ``(C, H, W)`` of an image, uint8, uint16 or float32; ``(H, W)`` of a mask, uint8 or uint16.

    Raises:
        UserError: If it cannot be read, or is of other proportions than the row's image.
    """
    name = name if column == IMAGE else f"{name} ({column.name})"
    if column.kind == "image":
        return normalizer.normalize(source, name, geometry).levels
    numbers = decode(source, NUMBERS, name).pixels
    cut = geometry.of(numbers.shape[:2], name).apply(numbers, "nearest")[..., 0]
    return np.ascontiguousarray(cut.astype(numbers.dtype))


def read_row(
    normalizer: Normalizer, columns: Iterable[Column], source: Callable[[str | None], Source], name: str
) -> tuple[Normalized, list[np.ndarray]]:
    """The image of a row, and what each of its further planar columns becomes.

    Args:
        normalizer: Decides what images become.
        columns: All of the row.
        source: Gives the encoded image in a column, for None the image itself.
        name: What messages call the row.

    Raises:
        UserError: If one cannot be read.
    """
    image = normalizer.normalize(source(None), name)
    further = [column for column in columns if column.is_planar and column != IMAGE]
    return image, [read_planar(normalizer, column, source(column.name), image.geometry, name) for column in further]


def to_value(normalizer: Normalizer, levels: np.ndarray, column: Column) -> np.ndarray:
    """What a `Row` gives of what was read: float32 in [-1, 1] of an image, int64 of a mask."""
    return normalizer.tensor(levels) if column.kind == "image" else levels.astype(np.int64)
