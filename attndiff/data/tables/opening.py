"""Folders, parquet files and Hub datasets as tables."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from attndiff.data.tables.folder import folder_parts, folder_rows, has_metadata
from attndiff.data.tables.hub import HUB_ID, load_hub, require_no_config
from attndiff.data.tables.listing import Listing, list_folder
from attndiff.data.tables.literal import literal_paths
from attndiff.data.tables.pointers import refuse_pointers
from attndiff.data.tables.splits import COLUMNS, MissingPart, require_part, shard_parts, split_column
from attndiff.data.tables.table import ImageTable, drawn_rows, require_column
from attndiff.data.tables.volumes import sliced
from attndiff.errors import UserError

# Parquet up to this much is read into memory; more is mapped from an Arrow copy that `datasets` keeps.
MEMORY_BYTES = 1 << 30


class Source:
    """One data set, listed once and each of its parts opened once.

    Args:
        path: Folder, parquet file, folder of parquet files, or Hub id.
        image_column: Column of the images, but for folders of images.
        named_parts: Whether names such as train and val mean parts, see `divide`.
        filtered: Columns that the user's own filters are about, which then are no parts.
        hub_config: Configuration of a dataset on the Hub; None: its default one.
        learn_drawn: Whether pictures that this program drew are rows like others.

    Raises:
        UserError: There is no such data, or it cannot be listed.
    """

    def __init__(
        self,
        path: str,
        image_column: str,
        named_parts: bool | None = None,
        filtered: Collection[str] = (),
        hub_config: str | None = None,
        learn_drawn: bool = False,
    ):
        self.path, self.image_column, self.named_parts, self.filtered = path, image_column, named_parts, filtered
        self.hub_config, self.learn_drawn = hub_config, learn_drawn
        self._tables: dict[str, ImageTable] = {}
        self.local = Path(path)
        if self.local.exists():
            require_no_config(hub_config, path)
        self._listing = list_folder(self.local) if self.local.is_dir() else None
        self._shards: dict[str, list[Path]] | None = None
        if self._listing is not None:
            files = self._listing.ended_by(".parquet")
            if files and not has_metadata(self._listing):
                self._shards = shard_parts(files, self.local, named_parts)
            else:
                self._folders = folder_parts(self._listing, named_parts)
        elif self.local.is_file():
            self._shards = {"": [self.local]}
        elif not HUB_ID.fullmatch(path):
            raise UserError(f"{path}: there is no such folder, parquet file or Hub dataset, check the path")

    def table(self, part: str, whole: bool) -> ImageTable:
        """One part of the data, drawn pictures left out.

        Args:
            part: "train", "validation" or "test".
            whole: Whether data without parts is taken whole whatever part is asked for.

        Raises:
            MissingPart: The data has no such part.
            UserError: It cannot be read, or all of it is drawn.
        """
        return self._whole_part(part, whole).undrawn()

    def _whole_part(self, part: str, whole: bool) -> ImageTable:
        if self._shards is None and self._listing is None:
            return self._opened(part)
        parts = self._folders if self._shards is None else self._shards
        if set(parts) != {""}:
            return self._opened(require_part(parts, part, self.local, whole))
        try:
            key, missing = require_part(parts, part, self.local, whole), None
        except MissingPart as error:
            key, missing = "", error  # unless a column says which rows it is
        table = self._opened(key)
        rows = self._split_rows(table)
        if rows and not whole:
            return replace(table, of_part=rows[require_part(rows, part, self.local, whole)])
        if missing:
            raise missing
        return table

    def _split_rows(self, table: ImageTable) -> dict[str, list[int]]:
        """Rows by part, if a column says so."""
        if self.named_parts is False:
            return {}
        return split_column({c: table.column(c) for c in COLUMNS if c in table.columns and c not in self.filtered})

    def _opened(self, key: str) -> ImageTable:
        if key not in self._tables:
            table = self._open(key)
            table = table if self.learn_drawn else replace(table, drawn=drawn_rows(table))
            self._tables[key] = table if table.image_column is None else sliced(table)
        return self._tables[key]

    def _open(self, key: str) -> ImageTable:
        if self._shards is not None:
            left_out = _beside_parquet(self._listing, self._shards) if self._listing else []
            return _open_parquet(self._shards[key], self.local.name, self.image_column, left_out)
        if self._listing is not None:
            return _open_folder(self._folders[key])
        return _image_table(load_hub(self.path, key, self.hub_config), self.path, self.image_column)


def _beside_parquet(listing: Listing, shards: dict[str, list[Path]]) -> list[tuple[str, str]]:
    """What stands beside parquet files, with the reason why it is not read."""
    read = {file for files in shards.values() for file in files}
    beside = [*listing.images, *listing.captions, *listing.tables]
    unread = [(name, "not read beside parquet files") for name in beside if listing.root / name not in read]
    return sorted(listing.left_out + unread)


def _open_parquet(files: list[Path], origin: str, image_column: str, left_out: list[tuple[str, str]]) -> ImageTable:
    from datasets import Dataset

    try:
        if sum(file.stat().st_size for file in files) <= MEMORY_BYTES:
            tables = [pq.read_table(file) for file in files]
            rows = Dataset(pa.concat_tables(tables, promote_options="permissive"))
        else:
            rows = Dataset.from_parquet(literal_paths(files))
    except (pa.ArrowException, OSError) as error:
        refuse_pointers(file for file in files if file.is_file())
        reason = str(error).splitlines()[0]
        raise UserError(f"{files[0]}: is no parquet file ({reason}), give a folder of images or parquet") from None
    return _image_table(rows, origin, image_column, left_out)


def _image_table(rows, origin: str, image_column: str, left_out: list[tuple[str, str]] = ()) -> ImageTable:
    from datasets import Image

    require_column("image_column", image_column, rows.column_names, origin)
    if isinstance(rows.features[image_column], Image):
        rows = rows.cast_column(image_column, Image(decode=False))
    return ImageTable(rows, origin, image_column, left_out=list(left_out))


def _open_folder(listing: Listing) -> ImageTable:
    from datasets import Dataset

    root = listing.root
    rows, left_out = folder_rows(listing)
    columns = dict.fromkeys(column for row in rows for column in row)
    try:
        table = Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    except (pa.ArrowException, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{root}: a column of the metadata mixes kinds of values ({reason}), make them alike") from None
    return ImageTable(table, root.name or str(root), root=root, left_out=left_out)
