"""A data set as a table, one row an image not yet decoded."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from attndiff.data.pixels.slices import is_volume, read_slices, slice_of, slice_of_file
from attndiff.data.pixels.values import Values
from attndiff.data.tables.metadata import safe_relative
from attndiff.drawn import is_drawn
from attndiff.errors import UserError
from attndiff.progress import progress

DRAWN = "drawn by attndiff (data.learn_drawn=true takes it)"


@dataclass
class ImageTable:
    """A table with one row an image, and where the images' bytes are.

    Args:
        rows: A `datasets.Dataset`, images not decoded.
        origin: What messages call the data.
        image_column: Column of the images; None where `file_name` is a path under `root`.
        root: Folder of the images, or None.
        left_out: Files of a folder that are not rows, with the reason.
        further: Other columns of images.
        of_part: Rows of the part that was asked for, where a column says so; None: all.
        drawn: Rows whose images this program drew.
        places: Where volumes are among the images in the column: of each row the one that it is stored in, and which
            slice of its volume it is, None of an image. None: no row is a slice.
    """

    rows: object
    origin: str
    image_column: str | None = None
    root: Path | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    further: tuple[str, ...] = ()
    of_part: list[int] | None = None
    drawn: frozenset[int] = frozenset()
    places: list[tuple[int, int | None]] | None = None
    _volume: tuple[int, list[Values]] | None = field(default=None, init=False, repr=False)  # the last one, by its row

    def __len__(self) -> int:
        return len(self.rows if self.places is None else self.places)

    @cached_property
    def details(self):
        """The rows without their images."""
        if self.image_column is None:
            return self.rows
        details = self.rows.remove_columns([self.image_column, *self.further])
        return details if self.places is None else _taken(details, self.places)

    @property
    def columns(self) -> list[str]:
        """Columns other than the images'."""
        return self.details.column_names

    def column(self, name: str) -> list:
        """All values of a column; classes by name."""
        values = self.details.data.column(name).to_pylist()
        names = getattr(self.details.features[name], "names", None)
        if names is None:
            return values
        return [names[value] if value is not None and value >= 0 else None for value in values]

    @cached_property
    def names(self) -> list[str]:
        """A name for every row: its file's, or the number of the row that is stored, and which slice of it."""
        return [file if of is None else f"{file} slice {of}" for file, of in zip(self._files, self._slices)]

    @cached_property
    def families(self) -> list[str]:
        """What each row belongs to that is never divided: what a column says, else its file, a whole volume."""
        said = self.column("family") if "family" in self.columns else [None] * len(self)
        return [str(file if of is None else of) for file, of in zip(self._files, said, strict=True)]

    @cached_property
    def _files(self) -> list[str]:
        """What the image of each row is stored in."""
        if self.image_column is None:
            return self.column("file_name")
        images = self.rows.data.column(self.image_column)
        stored = pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0
        paths = pc.struct_field(images, "path").to_pylist() if stored else [None] * len(self.rows)
        files = [path or f"row {row}" for row, path in enumerate(paths)]
        return files if self.places is None else [files[row] for row, _ in self.places]

    @cached_property
    def _slices(self) -> list[int | None]:
        """Which slice of a volume each row is; None where the file is no volume, or nobody says which."""
        if self.image_column is not None:
            return [None] * len(self) if self.places is None else [index for _, index in self.places]
        said = self.column("slice") if "slice" in self.columns else [None] * len(self)
        of_volumes = (value if is_volume(file) else None for file, value in zip(self._files, said, strict=True))
        return [int(value) if str(value).isdecimal() else None for value in of_volumes]

    def image(self, row: int, column: str | None = None) -> bytes | Path | Values:
        """An encoded image of a row, or the numbers of a slice: the image, or that in another column.

        Raises:
            UserError: There is none.
        """
        index = self._slices[row] if column is None else None
        if index is None:
            return self.stored(row, column)
        if self.image_column is None:
            return slice_of_file(self.root / self._files[row], index)
        stored = self.places[row][0]
        if self._volume is None or self._volume[0] != stored:  # slices are asked for one after the other
            self._volume = stored, read_slices(self.stored(row), self._files[row])
        return slice_of(self._volume[1], index, self.names[row])

    def stored(self, row: int, column: str | None = None) -> bytes | Path:
        """What is stored of an image, all slices of a volume; arguments and errors as of `image`."""
        if self.image_column is None:
            return self.root / (self._files[row] if column is None else self._path(row, column))
        # Past the formatting of `datasets`, which costs more than decoding a small image.
        place = row if self.places is None else self.places[row][0]
        cell = self.rows.data.column(column or self.image_column)[place].as_py()
        return encoded_image(cell, f"{self.origin} {self.names[row]}" + (f" ({column})" if column else ""))

    def encoded_bytes(self, rows: list[int]) -> int:
        """About how much is stored of some rows' images; 0 where they lie elsewhere."""
        if self.image_column is None:
            return sum(os.path.getsize(path) for row in rows if os.path.isfile(path := self.root / self._files[row]))
        stored = sum(self.rows.data.column(name).nbytes for name in (self.image_column, *self.further))
        return stored * len(rows) // max(1, len(self))

    def _path(self, row: int, column: str) -> str:
        """The path, in the folder, that a cell holds."""
        path = self.rows.data.column(column)[row].as_py()
        if not isinstance(path, str) or not path:
            raise UserError(f"{self.names[row]}: has no {column}, name a file in that column")
        return safe_relative(path, f"{self.origin} {self.names[row]}")

    def with_images(self, columns: Iterable[str]) -> "ImageTable":
        """The table with further columns that hold images; raises `UserError` if it has none of a name."""
        rows, names = self.rows, tuple(columns)
        for name in names:
            require_column("columns", name, self.columns, self.origin)
            if type(rows.features[name]).__name__ == "Image":
                rows = rows.cast_column(name, type(rows.features[name])(decode=False))
        return replace(self, rows=rows, further=names)

    def undrawn(self) -> "ImageTable":
        """The table without drawn images, which are left out by name; raises `UserError` if there are no others."""
        rows = range(len(self)) if self.of_part is None else self.of_part
        drawn = [row for row in rows if row in self.drawn]
        if not drawn:
            return self
        if len(drawn) == len(rows):
            raise UserError(all_drawn(self.origin, self.names[drawn[0]]))
        left_out = [*self.left_out, *((self.names[row], DRAWN) for row in drawn)]
        return replace(self, of_part=[row for row in rows if row not in self.drawn], left_out=left_out)

    def bare(self) -> "ImageTable":
        """The table without its images."""
        return ImageTable(self.details, self.origin, root=self.root)


def _taken(details, places: list[tuple[int, int | None]]):
    """A `datasets.Dataset` with the rows at these places, and which slice each is, in a column "slice"."""
    from datasets import Dataset, DatasetInfo, Features, Value

    rows, slices = [row for row, _ in places], pa.array([index for _, index in places], pa.int64())
    columns = {name: details.data.column(name).take(rows) for name in details.column_names}
    features = Features({"slice": Value("int64"), **details.features})
    return Dataset(pa.table({"slice": slices, **columns}), info=DatasetInfo(features=features))


def drawn_rows(table: ImageTable) -> frozenset[int]:
    """Rows whose images have the mark of this program."""

    def is_marked(row: int) -> bool:
        try:
            return is_drawn(table.stored(row))
        except UserError:  # said when it is read
            return False

    return frozenset(filter(is_marked, progress(range(len(table)), "Looking for drawn images")))


def all_drawn(origin: str, example: str) -> str:
    """The sentence that refuses data of nothing else."""
    return (
        f"{origin}: attndiff itself drew all images, such as {example}; set data.learn_drawn=true to learn from them, "
        "or name other data"
    )


def encoded_image(value: object, name: str) -> bytes | Path:
    """The encoded image in a cell; a path only where `datasets` itself has put the file.

    Raises:
        UserError: The cell holds no image, or a path to somewhere else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("bytes") is not None:
        return value["bytes"]
    path = value.get("path") if isinstance(value, dict) else None
    if path and path.startswith("hf://"):
        from datasets.utils.file_utils import xopen

        with xopen(path, "rb") as file:
            return file.read()
    if path:
        from datasets import config
        from huggingface_hub.constants import HF_HUB_CACHE

        if any(Path(path).is_relative_to(root) for root in (config.HF_DATASETS_CACHE, HF_HUB_CACHE)):
            return Path(path)
    raise UserError(f"{name}: holds no image but {type(value).__name__}, store the encoded image in the column")


def require_column(argument: str, column: str, columns: Iterable[str], where: str) -> None:
    """Raise `UserError` with the nearest names if a data set has no such column."""
    columns = list(columns)
    if column not in columns:
        near = get_close_matches(column, columns, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"{where}: has no column {column!r} ({argument}); {hint}it has {', '.join(columns) or 'none'}")
