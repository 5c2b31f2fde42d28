"""Image sets: what a training run or an evaluation reads, whatever the data is stored in."""

import hashlib
import json
import logging
from typing import Any

import numpy as np

from attndiff.data.cells import captioned, read_captions, read_labels
from attndiff.data.columns import CAPTION, LABEL
from attndiff.data.config import DataConfig
from attndiff.data.geometry import Shape
from attndiff.data.pixels.row_images import make_normalizer, to_value
from attndiff.data.pixels.values import ValueRange, common_range
from attndiff.data.reading.at_once import DecodedAtOnce
from attndiff.data.reading.at_visit import DecodedAtVisit
from attndiff.data.reading.decoded_rows import DecodedRows
from attndiff.data.reading.encoded import EncodedRows
from attndiff.data.reading.readers import Readers
from attndiff.data.rows import Rows
from attndiff.data.select import Tables, select_rows
from attndiff.data.tables.names import printable
from attndiff.data.tables.splits import MissingPart
from attndiff.errors import UserError

logger = logging.getLogger(__name__)

# Sets of up to this much, encoded and decoded, are decoded before the first step and kept in memory.
CACHE_BYTES = 1 << 30
# More unreadable images than this are a wrong folder, not a few bad files.
MAX_BAD_SHARE = 0.5


class ImageSet(Rows):
    """Images of one kind of tensor with what is known about them, picklable for loader workers.

    What the rows show is decoded when the set is opened, so that bad rows are known, and the same, on every process and
    in every run; where it is too much for that, at the first visit, see `attndiff.data.reading`. For data that are not
    even listed there are streams, `attndiff.data.streams`.

    Args:
        config: What to read and how.
        class_names: Names and order of the classes, as of the set trained on; None: those found.
        tables: Where data that is read already is kept.
        readers: The processes that read the same together; None: this one alone, which keeps nothing on the disk.

    Attributes:
        origin: What messages call the data.
        ranges: What levels stand for, as far as files or settings say it, in any of the images.

    Raises:
        UserError: The data cannot be used.
    """

    def __init__(
        self,
        config: DataConfig,
        class_names: list[str] | None = None,
        tables: Tables | None = None,
        readers: Readers | None = None,
    ):
        self.normalizer, self.columns = make_normalizer(config), config.row_columns()
        table = (tables or Tables()).of(config)
        passing, rows = select_rows(table, config)
        rows, silent = captioned(table, rows, config.caption_column)
        if silent and config.on_error == "raise":
            raise UserError(f"{table.root / silent[0][0]}: {silent[0][1]}, write one")
        if silent:
            logger.warning("%s: %d images skipped, first %s: %s", table.origin, len(silent), *map(printable, silent[0]))
        values: dict[str, list] = {}
        if config.caption_column:
            values[CAPTION.name] = read_captions(table, rows, config.caption_column)
        if config.label_column:
            values[LABEL.name], self.class_names = read_labels(table, passing, rows, config.label_column, class_names)
        self.origin, self._left_out = table.origin, [*table.left_out, *silent]
        encoded = EncodedRows(table, rows, self.normalizer, self.columns)
        self._pixels = _decoded(encoded, config.on_error, readers or Readers())
        self._note_bad(len(rows))
        self.ranges: set[ValueRange | None] = self._pixels.ranges
        common_range(self.ranges, self.origin)
        good = self._pixels.good
        self._rows, self._names = [rows[i] for i in good], [table.names[rows[i]] for i in good]
        self._values = {name: [column[i] for i in good] for name, column in values.items()}
        self._details = table.bare()
        self.fingerprint = self._fingerprint()

    def _note_bad(self, rows: int) -> None:
        """Say which rows cannot be read; raises `UserError` if they are too many."""
        bad = self._pixels.bad
        if len(bad) > MAX_BAD_SHARE * rows:
            name, reason = bad[0]
            raise UserError(f"{self.origin}: {len(bad)} of {rows} images are bad, first {name}: {reason}")
        if bad:
            first = map(printable, bad[0])
            logger.warning("%s: %d of %d images skipped, first %s: %s", self.origin, len(bad), rows, *first)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name of each image that was left out, and why; of large data also of those found bad at their visit."""
        return [*self._left_out, *self._pixels.bad, *self._pixels.found_later]

    def _fingerprint(self) -> str:
        """Hash of pixels (of large data, of files), names, captions and classes."""
        captions = self._values.get(CAPTION.name, [[]] * len(self))
        labels = self._values.get(LABEL.name, [None] * len(self))
        known = json.dumps([list(row) for row in zip(self._names, captions, labels, strict=True)])
        return hashlib.sha256(self._pixels.digest + known.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_kept(self) -> bool:
        """Whether what the rows show is held in memory, decoded."""
        return self._pixels.is_kept

    def load(self, i: int, name: str) -> Any:
        """The value of a column; of a row that has turned out bad, that of the row that stands for it.

        Whether it is bad is known from when something that it shows has been loaded.
        """
        column = self.column(name)
        if column.is_planar:
            return to_value(self.normalizer, self._pixels.levels(i, name), column)
        return self._values[name][self._pixels.stand_in(i)]

    def by_shape(self) -> dict[Shape, np.ndarray]:
        found = {shape: np.flatnonzero(self._pixels.buckets == i) for i, shape in enumerate(self.normalizer.shapes)}
        return {shape: images for shape, images in found.items() if len(images)}

    def name(self, i: int) -> str:
        """File name of an image, or the number of its row."""
        return self._names[i]

    def cells(self, i: int) -> dict:
        stored = self._details.rows
        return stored[self._rows[i]] if stored.column_names else {}  # of no columns, it has no rows either

    def texts(self) -> dict[str, list[str]]:
        table = self._details
        kinds = {name: str(getattr(table.rows.features[name], "dtype", "")) for name in table.columns}
        said = [name for name, kind in kinds.items() if kind in ("string", "large_string", "bool") or "int" in kind]
        columns = {name: table.column(name) for name in said}
        return {name: [str(values[row]) for row in self._rows] for name, values in columns.items()}

    def describe(self) -> dict:
        known = common_range(self.ranges, self.origin)
        return self.normalizer.describe(self._pixels.bit_depth, self.class_names, known)


def _decoded(encoded: EncodedRows, on_error: str, readers: Readers) -> DecodedRows:
    """What rows show, read in the way that their amount asks for."""
    if max(encoded.decoded_bytes(), encoded.encoded_bytes()) <= CACHE_BYTES:
        return DecodedAtOnce(encoded, on_error, CACHE_BYTES, readers)
    return DecodedAtVisit(encoded, on_error, readers)


def open_validation(
    config: DataConfig,
    class_names: list[str] | None = None,
    tables: Tables | None = None,
    readers: Readers | None = None,
) -> ImageSet | None:
    """The held-out images that belong to a configuration, with the classes of the training set, or None."""
    try:
        return ImageSet(config.replace(split="validation"), class_names, tables, readers)
    except MissingPart:
        if config.validation is not None:
            raise
        return None
