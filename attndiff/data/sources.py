"""Image sets: what a training run or an evaluation reads, whatever the data is stored in."""

import hashlib
import json
import logging
import sys
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from attndiff.data.buckets import Shape, bucket_shapes
from attndiff.data.config import DataConfig
from attndiff.data.pixels.normalize import Normalizer, to_signed
from attndiff.data.rows import class_order, clean_captions, filter_columns, held_out, is_kept, require_column
from attndiff.data.tables import ImageTable, MissingPart, open_table
from attndiff.errors import UserError

logger = logging.getLogger(__name__)

# Without a terminal, a line of progress every ten seconds is enough.
QUIET = 0.2 if sys.stderr.isatty() else 10

# Decoded images are kept in memory up to this much, so that each is decoded once; larger sets are decoded every time.
CACHE_BYTES = 1 << 30
# More unreadable images than this are a wrong folder, not a few bad files.
MAX_BAD_SHARE = 0.5


def make_normalizer(config: DataConfig) -> Normalizer:
    """The normaliser that a configuration describes."""
    shapes = config.max_aspect and bucket_shapes(config.size, config.max_aspect, config.bucket_multiple)
    return Normalizer(config.size, config.channels, config.background, config.resize, shapes)


def open_table_of(config: DataConfig) -> ImageTable:
    """The table that holds a configuration's rows, before filters; raises `UserError`."""
    path, part = config.path, config.split
    if part == "validation" and isinstance(config.validation, str):
        path = config.validation
    elif part == "validation" and config.validation is not None:
        part = "train"
    return open_table(path, part, config.image_column, whole=config.split == "validation" and path != config.path)


def select_rows(table: ImageTable, config: DataConfig) -> tuple[list[int], list[int]]:
    """Rows that pass the filters, and of these the ones in the part asked for; raises `UserError` if there are none."""
    columns = filter_columns(config.where, config.exclude)
    for column in columns:
        require_column("where, exclude", column, table.columns, table.origin)
    values = {column: table.column(column) for column in columns}
    passing = [
        row
        for row in range(len(table))
        if is_kept({column: values[column][row] for column in columns}, config.where, config.exclude)
    ]
    if not passing:
        raise UserError(f"{table.origin}: no row is left by where={config.where} and exclude={config.exclude}")
    if config.validation is None or isinstance(config.validation, str):
        return passing, passing
    families = table.column("family") if "family" in table.columns else table.names
    held = held_out([str(families[row]) for row in passing], config.validation)
    wanted = config.split == "validation"
    chosen = [row for row, is_held in zip(passing, held, strict=True) if is_held == wanted]
    if not chosen:
        raise UserError(f"{table.origin}: validation={config.validation} leaves no image to train on, make it smaller")
    return passing, chosen


def captioned(table: ImageTable, rows: list[int], column: str | None) -> tuple[list[int], list[tuple[str, str]]]:
    """The rows that have a caption, and name and reason of the others; in a table an empty cell is no condition."""
    if column is None or table.root is None or column not in table.columns:
        return rows, []
    values = table.column(column)
    kept = [row for row in rows if values[row] is not None]
    silent = [(table.names[row], f"has no caption ({column!r} is missing)") for row in rows if values[row] is None]
    if not kept:
        raise UserError(f"{table.root / silent[0][0]}: {silent[0][1]}, like all {len(silent)} images; write one")
    return kept, silent


def read_captions(table: ImageTable, rows: list[int], column: str) -> list[list[str]]:
    """Captions of rows that have one; raises `UserError` if the column is missing or says nothing."""
    require_column("caption_column", column, table.columns, table.origin)
    values = table.column(column)
    captions = [clean_captions(values[row]) for row in rows]
    if not any(any(texts) for texts in captions):
        raise UserError(f"{table.origin}: every caption in column {column!r} is empty, name another caption_column")
    return captions


def read_labels(
    table: ImageTable, passing: list[int], rows: list[int], column: str, class_names: list[str] | None
) -> tuple[list[int], list[str]]:
    """Class numbers of the rows and the names of the classes, which all passing rows decide unless they are given."""
    require_column("label_column", column, table.columns, table.origin)
    values = table.column(column)
    for row in passing:
        if values[row] is None or values[row] == "":
            raise UserError(f"{table.origin} {table.names[row]}: has no class in column {column!r}, give it one")
    if class_names is None:
        present = {str(values[row]) for row in passing}
        given = getattr(table.rows.features[column], "names", None)
        class_names = [name for name in given if name in present] if given else class_order(present)
    numbers = {name: number for number, name in enumerate(class_names)}
    for row in rows:
        if str(values[row]) not in numbers:
            raise UserError(f"{table.origin} {table.names[row]}: class {values[row]!r} is not among those trained on")
    return [numbers[str(values[row])] for row in rows], class_names


class ImageSet:
    """Images of one kind of tensor with what is known about them, picklable for loader workers.

    Every image is decoded once when the set is opened, so that the bad ones are known, and the same, on every process
    and in every run. For data too large for that there are streams, `attndiff.data.streams`.

    Args:
        config: What to read and how.
        class_names: Names and order of the classes, as of the set trained on; None: those found.

    Raises:
        UserError: The data cannot be used.
    """

    def __init__(self, config: DataConfig, class_names: list[str] | None = None):
        self.normalizer = make_normalizer(config)
        self.table = open_table_of(config)
        passing, rows = select_rows(self.table, config)
        rows, silent = captioned(self.table, rows, config.caption_column)
        if silent and config.on_error == "raise":
            raise UserError(f"{self.table.root / silent[0][0]}: {silent[0][1]}, write one")
        if silent:
            logger.warning("%s: %d images skipped, first %s: %s", self.table.origin, len(silent), *silent[0])
        captions = read_captions(self.table, rows, config.caption_column) if config.caption_column else [[]] * len(rows)
        labels: list[int | None] = [None] * len(rows)
        self.class_names = None
        if config.label_column:
            labels, self.class_names = read_labels(self.table, passing, rows, config.label_column, class_names)
        self.skipped = [*self.table.left_out, *silent]
        good = self._decode_all(rows, config.on_error)
        self._rows = [rows[i] for i in good]
        self._captions = [captions[i] for i in good]
        self._labels = [labels[i] for i in good]
        known = json.dumps([[self.name(i), self._captions[i], self._labels[i]] for i in range(len(self))])
        self.fingerprint = hashlib.sha256(self._digest + known.encode()).hexdigest()

    def _decode_all(self, rows: list[int], on_error: str) -> list[int]:
        """Positions in `rows` of the images that can be read; keeps them decoded if the set is small."""
        good, kept, kept_bytes, depths, digest = [], [], 0, {8}, hashlib.sha256()
        buckets: list[int] = []
        bad: list[tuple[str, str]] = []
        for position, row in enumerate(tqdm(rows, "Reading images", delay=2, leave=False, mininterval=QUIET)):
            try:
                levels = self.normalizer.normalize(self.table.image(row), self.table.names[row]).levels
            except UserError as error:
                if on_error == "raise":
                    raise
                bad.append((self.table.names[row], str(error).removeprefix(f"{self.table.names[row]}: ")))
                continue
            good.append(position)
            buckets.append(self.normalizer.shapes.index(levels.shape[1:]))
            digest.update(levels)
            depths.add(levels.itemsize * 8)
            kept_bytes += levels.nbytes
            if kept_bytes <= CACHE_BYTES:
                kept.append(levels)
        if len(bad) > MAX_BAD_SHARE * len(rows):
            name, reason = bad[0]
            raise UserError(f"{self.table.origin}: {len(bad)} of {len(rows)} images are bad, first {name}: {reason}")
        if bad:
            logger.warning("%s: %d of %d images skipped, first %s: %s", self.table.origin, len(bad), len(rows), *bad[0])
        self.skipped += bad
        self._buckets = np.array(buckets)  # numbers of their shapes
        self._bit_depth, self._digest = max(depths), digest.digest()
        self._cache = kept if kept_bytes <= CACHE_BYTES else None
        return good

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, i: int) -> np.ndarray:
        """Image ``(C, H, W)`` float32 in [-1, 1]."""
        if self._cache is not None:
            return to_signed(self._cache[i])
        return self.normalizer(self.table.image(self._rows[i]), self.name(i))

    def by_shape(self) -> dict[Shape, np.ndarray]:
        """Which images have each height and width that occurs, from the widest to the tallest."""
        found = {shape: np.flatnonzero(self._buckets == i) for i, shape in enumerate(self.normalizer.shapes)}
        return {shape: images for shape, images in found.items() if len(images)}

    def captions(self, i: int) -> list[str]:
        """Captions of an image; none if no column was named, an empty one where the cell is empty."""
        return self._captions[i]

    def label(self, i: int) -> int | None:
        """Number of an image's class in `class_names`."""
        return self._labels[i]

    def name(self, i: int) -> str:
        """File name of an image, or the number of its row."""
        return self.table.names[self._rows[i]]

    def row(self, i: int) -> dict:
        """All columns of an image's row but the image."""
        return self.table.details[self._rows[i]]

    def texts(self) -> dict[str, list[str]]:
        """What each column of texts, whole numbers or truth values says of every image, as text, by column."""
        kinds = {name: str(getattr(self.table.rows.features[name], "dtype", "")) for name in self.table.columns}
        said = [name for name, kind in kinds.items() if kind in ("string", "large_string", "bool") or "int" in kind]
        columns = {name: self.table.column(name) for name in said}
        return {name: [str(values[row]) for row in self._rows] for name, values in columns.items()}

    def describe(self) -> dict:
        """What a pipeline keeps about its data, see `Normalizer.describe`."""
        return self.normalizer.describe(self._bit_depth, self.class_names)


def open_images(config: DataConfig, class_names: list[str] | None = None) -> ImageSet:
    """Open the images that a configuration describes; see `ImageSet`."""
    return ImageSet(config, class_names)


def open_validation(config: DataConfig, class_names: list[str] | None = None) -> ImageSet | None:
    """The held-out images that belong to a configuration, with the classes of the training set, or None."""
    try:
        return ImageSet(replace(config, split="validation"), class_names)
    except MissingPart:
        if config.validation is not None:
            raise
        return None
