"""Volumes among the images of a table: each of their slices is a row."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from attndiff.data.pixels.slices import SIGNATURE_END, begins_volume, read_slices
from attndiff.data.tables.table import ImageTable
from attndiff.errors import UserError
from attndiff.progress import progress


def sliced(table: ImageTable) -> ImageTable:
    """A table of encoded images in which a volume has a row for each slice, or the one that a column "slice" names."""
    volumes = _volumes(table)
    if not volumes:
        return table
    said = table.column("slice") if "slice" in table.columns else [None] * len(table)
    slices = {row: _slices(table, row, said[row]) for row in progress(volumes, "Counting slices")}
    places = [(row, index) for row in range(len(table)) for index in slices.get(row, [None])]
    drawn = frozenset(i for i, (row, _) in enumerate(places) if row in table.drawn)
    return replace(table, places=places, drawn=drawn)


def _volumes(table: ImageTable) -> list[int]:
    """Rows whose images begin as files do that may hold several slices."""
    images = table.rows.data.column(table.image_column)
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pc.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        return []
    starts = pc.binary_slice(images, 0, SIGNATURE_END).to_pylist()
    return [row for row, start in enumerate(starts) if start is not None and begins_volume(start)]


def _slices(table: ImageTable, row: int, said: object) -> Sequence[int | None]:
    """The slices of a row's image; one alone, or one that cannot be read, which decoding it will say, is an image."""
    if str(said).isdecimal():
        return [int(said)]
    try:
        count = len(read_slices(table.stored(row), table.names[row]))
    except UserError:
        return [None]
    return range(count) if count > 1 else [None]
