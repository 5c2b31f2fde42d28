"""Image sets: what a training run or an evaluation reads, whatever the data is stored in."""

import hashlib
import json
import logging
import sys
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from attndiff.data.cells import captioned, read_captions, read_labels
from attndiff.data.columns import CAPTION, IMAGE, LABEL
from attndiff.data.config import DataConfig
from attndiff.data.geometry import Shape
from attndiff.data.kept import KeptArrays
from attndiff.data.pixels.row_images import make_normalizer, read_planar, read_row, to_value
from attndiff.data.rows import Rows
from attndiff.data.select import Tables, select_rows
from attndiff.data.tables.names import printable
from attndiff.data.tables.splits import MissingPart
from attndiff.data.tables.table import ImageTable
from attndiff.errors import UserError

logger = logging.getLogger(__name__)

# Without a terminal, a line of progress every ten seconds is enough.
QUIET = 0.2 if sys.stderr.isatty() else 10

# What was read is kept in memory up to this much, so that it is decoded once; larger sets are decoded every time.
CACHE_BYTES = 1 << 30
# More unreadable images than this are a wrong folder, not a few bad files.
MAX_BAD_SHARE = 0.5


class ImageSet(Rows):
    """Images of one kind of tensor with what is known about them, picklable for loader workers.

    All that a row shows is decoded once when the set is opened, so that bad rows are known, and the same, on every
    process and in every run. For data too large for that there are streams, `attndiff.data.streams`.

    Args:
        config: What to read and how.
        class_names: Names and order of the classes, as of the set trained on; None: those found.
        tables: Where data that is read already is kept.

    Attributes:
        origin: What messages call the data.
        skipped: Name of each image that was left out, and why.

    Raises:
        UserError: The data cannot be used.
    """

    def __init__(self, config: DataConfig, class_names: list[str] | None = None, tables: Tables | None = None):
        self.normalizer, self.columns = make_normalizer(config), config.row_columns()
        self._planar = [column for column in self.columns if column.is_planar]
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
        self.origin, self.skipped = table.origin, [*table.left_out, *silent]
        good = self._read_all(table, rows, config.on_error)
        self._rows, self._names = [rows[i] for i in good], [table.names[rows[i]] for i in good]
        self._values = {name: [column[i] for i in good] for name, column in values.items()}
        # Encoded images are let go of where the decoded ones are kept.
        self._details, self._table = table.bare(), None if self.is_kept else table
        self.fingerprint = self._fingerprint()

    def _read_all(self, table: ImageTable, rows: list[int], on_error: str) -> list[int]:
        """Positions in `rows` of those that can be read; keeps what they show if the set is small."""
        good, bad, depths, digest, shapes = [], [], {8}, hashlib.sha256(), self.normalizer.shapes
        self._kept, self._sizes, buckets = KeptArrays(CACHE_BYTES), [], []
        for position, row in enumerate(tqdm(rows, "Reading images", delay=2, leave=False, mininterval=QUIET)):
            try:
                image, further = read_row(self.normalizer, self.columns, partial(table.image, row), table.names[row])
            except UserError as error:
                if on_error == "raise":
                    raise
                bad.append((table.names[row], str(error).removeprefix(f"{table.names[row]}: ")))
                continue
            good.append(position)
            self._sizes.append(image.geometry.size)
            buckets.append(shapes.index(image.geometry.shape))
            depths.add(image.levels.itemsize * 8)
            for levels in (image.levels, *further):
                digest.update(levels)
                self._kept.append(levels)
        self._kept.close()
        self._buckets = np.array(buckets)  # numbers of their shapes
        self._bit_depth, self._digest = max(depths), digest.digest()
        self._note_bad(bad, len(rows))
        return good

    def _note_bad(self, bad: list[tuple[str, str]], rows: int) -> None:
        """Say which rows cannot be read; raises `UserError` if they are too many."""
        if len(bad) > MAX_BAD_SHARE * rows:
            name, reason = bad[0]
            raise UserError(f"{self.origin}: {len(bad)} of {rows} images are bad, first {name}: {reason}")
        if bad:
            first = map(printable, bad[0])
            logger.warning("%s: %d of %d images skipped, first %s: %s", self.origin, len(bad), rows, *first)
        self.skipped += bad

    def _fingerprint(self) -> str:
        """Hash of pixels, names, captions and classes."""
        captions = self._values.get(CAPTION.name, [[]] * len(self))
        labels = self._values.get(LABEL.name, [None] * len(self))
        known = json.dumps([list(row) for row in zip(self._names, captions, labels, strict=True)])
        return hashlib.sha256(self._digest + known.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_kept(self) -> bool:
        """Whether what the rows show is held in memory, decoded."""
        return self._kept.fits

    def load(self, i: int, name: str) -> Any:
        column = self.column(name)
        if not column.is_planar:
            return self._values[name][i]
        if self.is_kept:
            return to_value(self._kept[i * len(self._planar) + self._planar.index(column)], column)
        source = self._table.image(self._rows[i], None if column == IMAGE else column.name)
        geometry = self.normalizer.geometry(self._sizes[i])
        return to_value(read_planar(self.normalizer, column, source, geometry, self.name(i)), column)

    def by_shape(self) -> dict[Shape, np.ndarray]:
        found = {shape: np.flatnonzero(self._buckets == i) for i, shape in enumerate(self.normalizer.shapes)}
        return {shape: images for shape, images in found.items() if len(images)}

    def name(self, i: int) -> str:
        """File name of an image, or the number of its row."""
        return self._names[i]

    def cells(self, i: int) -> dict:
        return self._details.rows[self._rows[i]]

    def texts(self) -> dict[str, list[str]]:
        table = self._details
        kinds = {name: str(getattr(table.rows.features[name], "dtype", "")) for name in table.columns}
        said = [name for name, kind in kinds.items() if kind in ("string", "large_string", "bool") or "int" in kind]
        columns = {name: table.column(name) for name in said}
        return {name: [str(values[row]) for row in self._rows] for name, values in columns.items()}

    def describe(self) -> dict:
        return self.normalizer.describe(self._bit_depth, self.class_names)


def open_validation(
    config: DataConfig, class_names: list[str] | None = None, tables: Tables | None = None
) -> ImageSet | None:
    """The held-out images that belong to a configuration, with the classes of the training set, or None."""
    try:
        return ImageSet(config.replace(split="validation"), class_names, tables)
    except MissingPart:
        if config.validation is not None:
            raise
        return None
