"""Data read in shards, without an index: parquet, webdataset ``.tar`` files, datasets on the Hub."""

import glob
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from attndiff.data.tables.hub import HUB_ID, load_hub, require_no_config
from attndiff.data.tables.literal import literal_paths, matching
from attndiff.data.tables.pointers import refuse_pointers
from attndiff.data.tables.splits import require_part, shard_parts
from attndiff.data.tables.table import require_column
from attndiff.errors import UserError

SHARD_SUFFIXES = (".parquet", ".tar")
ADVICE = {"parquet": "", "webdataset": "; the files of each image stand together and have the same endings throughout"}


def open_stream(
    path: str,
    part: str,
    image_columns: Sequence[str],
    whole: bool = False,
    named_parts: bool | None = None,
    hub_config: str | None = None,
):
    """A `datasets.IterableDataset` over parquet files, webdataset ``.tar`` files or a Hub dataset, images not decoded.

    Args:
        path: File, folder of files, glob pattern such as ``shards/*.tar``, or Hub id. A shard of local parquet is a
            row group, of everything else a file.
        part: "train", "validation" or "test".
        image_columns: Columns of images, the first that of the images themselves.
        whole: Whether data without parts is taken whole whatever part is asked for.
        named_parts: Whether names such as train and val mean parts, see `divide`.
        hub_config: Configuration of a dataset on the Hub; None: its default one.

    Raises:
        MissingPart: The data has no such part.
        UserError: There is no such data, or it cannot be read.
    """
    from datasets import Image, load_dataset

    local = Path(path)
    if local.exists() or glob.has_magic(path):
        require_no_config(hub_config, path)
        files = _shard_files(local)
        parts = {"": files} if not local.is_dir() else shard_parts(files, local, named_parts)
        chosen = literal_paths(parts[require_part(parts, part, local, whole)])
        kind = {".parquet": "parquet", ".tar": "webdataset"}[files[0].suffix]
        try:
            rows = load_dataset(kind, data_files=chosen, split="train", streaming=True)
            # Of a parquet file, Arrow reads all row groups ahead into memory; each a shard of its own bounds that.
            rows = rows.reshard()
        except (OSError, tarfile.TarError, pa.ArrowException, ValueError) as error:
            refuse_pointers(files)
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: cannot be read as {files[0].suffix} files ({reason}), replace them{ADVICE[kind]}"
            ) from None
    elif HUB_ID.fullmatch(path):
        rows = load_hub(path, part, hub_config, streaming=True)
    else:
        raise UserError(f"{path}: there is no such file, folder, pattern or Hub dataset, check the path")
    rows = rows if rows.features else rows._resolve_features()
    for place, column in enumerate(image_columns):
        require_column("columns" if place else "image_column", column, rows.column_names, path)
        rows = rows.cast_column(column, Image(decode=False))
    return rows


def _shard_files(path: Path) -> list[Path]:
    """Parquet or ``.tar`` files that a path or pattern names, sorted."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in SHARD_SUFFIXES and file.is_file()]
    else:
        files = [path] if path.is_file() else matching(path)
    suffixes = {file.suffix for file in files}
    if not files or not suffixes <= set(SHARD_SUFFIXES):
        raise UserError(f"{path}: only parquet, .tar shards and Hub datasets are streamed, and there are none here")
    if len(suffixes) > 1:
        raise UserError(f"{path}: holds both parquet and .tar files, name one kind with a pattern such as *.tar")
    return files
