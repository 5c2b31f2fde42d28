"""Rows of a stream, held in memory as they were encoded."""

import logging
from typing import Any

import numpy as np

from attndiff.data.cells import class_name, clean_captions, is_number, stored_column, value_in
from attndiff.data.columns import CAPTION, IMAGE, LABEL, Column
from attndiff.data.config import DataConfig
from attndiff.data.geometry import Shape
from attndiff.data.image_set import MAX_BAD_SHARE
from attndiff.data.pixels.normalize import Normalized
from attndiff.data.pixels.row_images import make_normalizer, read_planar, to_value
from attndiff.data.pixels.values import ValueRange, common_range
from attndiff.data.rows import Rows
from attndiff.data.tables.table import encoded_image
from attndiff.errors import UserError

logger = logging.getLogger(__name__)

NamedRow = tuple[str, dict]


class EncodedImages(Rows):
    """Rows held in memory as they were encoded, decoded whenever they are asked for.

    Args:
        rows: Name and columns of each.
        config: What to read and how.
        class_names: Names and order of the classes, or None.
        bit_depth: Of the deepest image of the data.
        ranges: What levels stand for in any image of the data; images of others cannot be read. None: in all.
    """

    def __init__(
        self,
        rows: list[NamedRow],
        config: DataConfig,
        class_names: list[str] | None,
        bit_depth: int = 8,
        ranges: set[ValueRange | None] | None = None,
    ):
        self.rows, self.config, self.class_names = rows, config, class_names
        self.bit_depth, self.ranges = bit_depth, ranges
        self.normalizer, self.columns = make_normalizer(config), config.row_columns()

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: list[NamedRow]) -> "EncodedImages":
        """Other rows of the same data."""
        return EncodedImages(rows, self.config, self.class_names, self.bit_depth, self.ranges)

    def image(self, i: int) -> Normalized:
        """The image of a row; raises `UserError` if it cannot be read, or its levels stand for something else."""
        name, row = self.rows[i]
        image = self.normalizer.normalize(encoded_image(row[self.config.image_column], name), name)
        if self.ranges is not None and image.stands_for not in self.ranges:
            told = image.stands_for or "none"
            raise UserError(f"{name}: states the value range {told}, unlike the first images: set data.value_range")
        return image

    def levels(self, i: int, column: Column) -> np.ndarray:
        """What a planar column shows, at its own depth; raises `UserError` if it cannot be read."""
        (name, row), image = self.rows[i], self.image(i)
        if column == IMAGE:
            return image.levels
        source = encoded_image(row[column.name], f"{name} ({column.name})")
        return read_planar(self.normalizer, column, source, image.geometry, name)

    def load(self, i: int, name: str) -> Any:
        column = self.column(name)
        if column.is_planar:
            return to_value(self.normalizer, self.levels(i, column), column)
        return self._captions(i) if column == CAPTION else self._label(i)

    def _captions(self, i: int) -> list[str]:
        name, row = self.rows[i]
        column = self.config.caption_column
        stored = stored_column(column, row)
        return clean_captions(value_in(row[stored], column, stored), f"{name}: column {column!r}")

    def _label(self, i: int) -> int:
        """Number of a row's class in `class_names`; raises `UserError` if it has none of them."""
        name, row = self.rows[i]
        value = row[self.config.label_column]
        called = class_name(value, f"{name}: column {self.config.label_column!r}")
        if called in self.class_names:
            return self.class_names.index(called)
        # A number is one of the names where these are numbers too, and else a place among them.
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        numbered = whole and not any(map(is_number, self.class_names))
        if not numbered or not 0 <= value < len(self.class_names):
            raise UserError(f"{name}: class {value!r} is not one of the {len(self.class_names)} classes named")
        return int(value)

    def by_shape(self) -> dict[Shape, np.ndarray]:
        return {(self.config.size, self.config.size): np.arange(len(self))}

    def name(self, i: int) -> str:
        """Shard and row of an image."""
        return self.rows[i][0]

    def cells(self, i: int) -> dict:
        images = (self.config.image_column, *self.config.columns)
        return {key: value for key, value in self.rows[i][1].items() if key not in images}

    def describe(self) -> dict:
        known = common_range(self.ranges or (), self.config.path)
        return self.normalizer.describe(self.bit_depth, self.class_names, known)


def readable(images: EncodedImages, origin: str) -> EncodedImages:
    """Those of the images that can be read; raises `UserError` if too many cannot, or one has no class of the data."""
    if not images.rows:
        filters = f" that where={images.config.where} and exclude={images.config.exclude} leave"
        raise UserError(f"{origin}: its first shards hold no row{filters if images.config.where else ''}")
    good, bad, depths, ranges = [], [], {8}, set()
    further = [column for column in images.columns if column.is_planar and column != IMAGE]
    for i, row in enumerate(images.rows):
        try:
            image = images.image(i)
            for column in further:
                images.levels(i, column)
        except UserError as error:
            if images.config.on_error == "raise":
                raise
            bad.append(str(error))
            continue
        if LABEL in images.columns:
            images.load(i, LABEL.name)
        depths.add(image.levels.itemsize * 8)
        ranges.add(image.stands_for)
        good.append(row)
    if bad:
        logger.warning("%s: %d of the first %d images skipped, first %s", origin, len(bad), len(images), bad[0])
    if len(bad) > MAX_BAD_SHARE * len(images):
        raise UserError(f"{origin}: {len(bad)} of the first {len(images)} images are bad, first {bad[0]}")
    common_range(ranges, origin)
    return EncodedImages(good, images.config, images.class_names, max(depths), ranges)
