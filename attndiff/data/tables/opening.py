"""Folders, parquet files and Hub datasets as tables."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from attndiff.data.tables.folder import METADATA_FILES, folder_rows
from attndiff.data.tables.hub import HUB_ID, load_hub, require_no_config
from attndiff.data.tables.literal import literal_paths
from attndiff.data.tables.splits import folder_parts, parquet_parts, require_part
from attndiff.data.tables.table import ImageTable, require_column
from attndiff.errors import UserError

# Parquet up to this much is read into memory; more is mapped from an Arrow copy that `datasets` keeps.
MEMORY_BYTES = 1 << 30


def open_table(path: str, part: str, image_column: str, whole: bool, hub_config: str | None = None) -> ImageTable:
    """Open one part of a data set.

    Args:
        path: Folder, parquet file, folder of parquet files, or Hub id.
        part: "train", "validation" or "test".
        image_column: Column of the images, but for folders of images.
        whole: Whether data without parts is taken whole whatever part is asked for.
        hub_config: Configuration of a dataset on the Hub; None: its default one.

    Raises:
        MissingPart: The data has no such part.
        UserError: There is no such data, or it cannot be read.
    """
    local = Path(path)
    if local.exists():
        require_no_config(hub_config, path)
    if local.is_file():
        require_part({"": None}, part, local, whole)
        return _open_parquet([local], local.name, image_column)
    if local.is_dir():
        files = sorted(local.rglob("*.parquet"))
        if files and not any((local / name).is_file() for name in METADATA_FILES):
            parts = parquet_parts(files)
            return _open_parquet(parts[require_part(parts, part, local, whole)], local.name, image_column)
        parts = folder_parts(local)
        return _open_folder(parts[require_part(parts, part, local, whole)])
    if HUB_ID.fullmatch(path):
        return _image_table(load_hub(path, part, hub_config), path, image_column)
    raise UserError(f"{path}: there is no such folder, parquet file or Hub dataset, check the path")


def _open_parquet(files: list[Path], origin: str, image_column: str) -> ImageTable:
    from datasets import Dataset

    try:
        if sum(file.stat().st_size for file in files) <= MEMORY_BYTES:
            tables = [pq.read_table(file) for file in files]
            rows = Dataset(pa.concat_tables(tables, promote_options="permissive"))
        else:
            rows = Dataset.from_parquet(literal_paths(files))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{files[0]}: is no parquet file ({reason}), give a folder of images or parquet") from None
    return _image_table(rows, origin, image_column)


def _image_table(rows, origin: str, image_column: str) -> ImageTable:
    from datasets import Image

    require_column("image_column", image_column, rows.column_names, origin)
    if isinstance(rows.features[image_column], Image):
        rows = rows.cast_column(image_column, Image(decode=False))
    return ImageTable(rows, origin, image_column)


def _open_folder(root: Path) -> ImageTable:
    from datasets import Dataset

    rows, left_out = folder_rows(root)
    columns = dict.fromkeys(column for row in rows for column in row)
    try:
        table = Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    except (pa.ArrowException, TypeError) as error:
        raise UserError(f"{root}: a column of the metadata mixes kinds of values ({error}), make them alike") from None
    return ImageTable(table, root.name or str(root), root=root, left_out=left_out)
