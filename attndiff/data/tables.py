"""Data sets as tables, one row an image not yet decoded: folders, parquet files, Hub datasets."""

import glob
import re
import tarfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from attndiff.data.folder import METADATA_FILES, folder_rows
from attndiff.data.rows import require_column
from attndiff.errors import UserError

PARTS = ("train", "validation", "test")
SHARD_SUFFIXES = (".parquet", ".tar")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Parquet up to this much is read into memory; more is mapped from an Arrow copy that `datasets` keeps.
MEMORY_BYTES = 1 << 30


class MissingPart(UserError):
    """The data has no part of the name asked for."""


@dataclass
class ImageTable:
    """A table with one row an image, and where the images' bytes are.

    Args:
        rows: A `datasets.Dataset`, images not decoded.
        origin: What messages call the data.
        image_column: Column of the images; None where `file_name` is a path under `root`.
        root: Folder of the images, or None.
        left_out: Files of a folder that are not rows, with the reason.
    """

    rows: object
    origin: str
    image_column: str | None = None
    root: Path | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def details(self):
        """The rows without their images."""
        return self.rows if self.image_column is None else self.rows.remove_columns(self.image_column)

    @property
    def columns(self) -> list[str]:
        """Columns other than the images'."""
        return self.details.column_names

    def column(self, name: str) -> list:
        """All values of a column; classes by name."""
        values = self.rows.data.column(name).to_pylist()
        names = getattr(self.rows.features[name], "names", None)
        if names is None:
            return values
        return [names[value] if value is not None and value >= 0 else None for value in values]

    @cached_property
    def names(self) -> list[str]:
        """A name for every row: its file's, or the number of the row."""
        if self.image_column is None:
            return self.column("file_name")
        images = self.rows.data.column(self.image_column)
        stored = pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0
        paths = pc.struct_field(images, "path").to_pylist() if stored else [None] * len(self)
        return [path or f"row {row}" for row, path in enumerate(paths)]

    def image(self, row: int) -> bytes | Path:
        """The encoded image of a row."""
        if self.image_column is None:
            return self.root / self.names[row]
        # Past the formatting of `datasets`, which costs more than decoding a small image.
        cell = self.rows.data.column(self.image_column)[row].as_py()
        return encoded_image(cell, f"{self.origin} {self.names[row]}")


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


def open_table(path: str, part: str, image_column: str, whole: bool) -> ImageTable:
    """Open one part of a data set.

    Args:
        path: Folder, parquet file, folder of parquet files, or Hub id.
        part: "train", "validation" or "test".
        image_column: Column of the images, but for folders of images.
        whole: Whether data without parts is taken whole whatever part is asked for.

    Raises:
        MissingPart: The data has no such part.
        UserError: There is no such data, or it cannot be read.
    """
    local = Path(path).expanduser()
    if local.is_file():
        _require_part({"": None}, part, local, whole)
        return _open_parquet([local], local.name, image_column)
    if local.is_dir():
        files = sorted(local.rglob("*.parquet"))
        if files and not any((local / name).is_file() for name in METADATA_FILES):
            parts = _parquet_parts(files)
            return _open_parquet(parts[_require_part(parts, part, local, whole)], local.name, image_column)
        parts = _folder_parts(local)
        return _open_folder(parts[_require_part(parts, part, local, whole)])
    if HUB_ID.fullmatch(path):
        return _open_hub(path, part, image_column)
    raise UserError(f"{path}: there is no such folder, parquet file or Hub dataset, check the path")


def _require_part(parts: dict[str, object], part: str, path: Path, whole: bool) -> str:
    """The key of a part; data without parts has the one key ''."""
    if part in parts:
        return part
    if "" in parts and (whole or part == "train"):
        return ""
    there = ", ".join(parts) if "" not in parts else "no parts: set validation to a path or a fraction"
    raise MissingPart(f"{path}: has no part called {part!r}, it has {there}")


def _parquet_parts(files: list[Path]) -> dict[str, list[Path]]:
    """Files by the part that begins their name, as in train-00000-of-00002.parquet."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        match = re.match(rf"({'|'.join(PARTS)})(?![a-zA-Z])", file.name)
        parts.setdefault(match[1] if match else "", []).append(file)
    return parts if "" not in parts else {"": files}


def _folder_parts(root: Path) -> dict[str, Path]:
    """Subfolders that are parts, if all of them are."""
    folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if folders and all(name in PARTS for name in folders):
        return {name: root / name for name in sorted(folders)}
    return {"": root}


def _open_parquet(files: list[Path], origin: str, image_column: str) -> ImageTable:
    from datasets import Dataset

    try:
        if sum(file.stat().st_size for file in files) <= MEMORY_BYTES:
            tables = [pq.read_table(file) for file in files]
            rows = Dataset(pa.concat_tables(tables, promote_options="permissive"))
        else:
            rows = Dataset.from_parquet([str(file) for file in files])
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


def _open_hub(repo_id: str, part: str, image_column: str) -> ImageTable:
    return _image_table(load_hub(repo_id, part), repo_id, image_column)


def load_hub(repo_id: str, part: str, streaming: bool = False):
    """A part of a dataset on the Hub, or wherever HF_ENDPOINT points; no code of the repository's is ever run."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    _require_hub_dataset(repo_id)
    try:
        return load_dataset(repo_id, split=part, streaming=streaming)
    except (DatasetNotFoundError, OSError) as error:  # ConnectionError is an OSError
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{repo_id}: cannot be read from the Hub ({reason}), check the dataset or the connection"
        ) from None
    except ValueError as error:
        if "split" in str(error).lower():
            raise MissingPart(f"{repo_id}: has no part called {part!r} ({str(error).splitlines()[0]})") from None
        raise UserError(f"{repo_id}: cannot be read ({str(error).splitlines()[0]})") from None


def _require_hub_dataset(repo_id: str) -> None:
    """Ask the Hub once: `datasets` tries again for half a minute, even for a mistyped folder on a machine offline."""
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    cached = Path(config.HF_DATASETS_CACHE, repo_id.replace("/", "___")).is_dir()
    try:
        HfApi().dataset_info(repo_id, timeout=10)
    except (HTTPError, OSError) as error:  # no such dataset, no connection, offline mode
        if not cached:
            reason = str(error).splitlines()[0]
            raise UserError(f"{repo_id}: no such folder here, and no such dataset on the Hub ({reason})") from None


def open_stream(path: str, part: str, image_column: str, whole: bool = False):
    """A `datasets.IterableDataset` over parquet files, webdataset ``.tar`` files or a Hub dataset, images not decoded.

    Args:
        path: File, folder of files, glob pattern such as ``shards/*.tar``, or Hub id. A shard of local parquet is a
            row group, of everything else a file.
        part: "train", "validation" or "test".
        image_column: Column of the images.
        whole: Whether data without parts is taken whole whatever part is asked for.

    Raises:
        MissingPart: The data has no such part.
        UserError: There is no such data, or it cannot be read.
    """
    from datasets import Image, load_dataset

    local = Path(path).expanduser()
    if local.exists() or glob.has_magic(path):
        files = _shard_files(local)
        parts = {"": files} if not local.is_dir() else _parquet_parts(files)
        chosen = [str(file) for file in parts[_require_part(parts, part, local, whole)]]
        kind = {".parquet": "parquet", ".tar": "webdataset"}[files[0].suffix]
        try:
            rows = load_dataset(kind, data_files=chosen, split="train", streaming=True)
            # Of a parquet file, Arrow reads all row groups ahead into memory; each a shard of its own bounds that.
            rows = rows.reshard()
        except (OSError, tarfile.TarError, pa.ArrowException, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read as {files[0].suffix} files ({reason}), replace them") from None
    elif HUB_ID.fullmatch(path):
        rows = load_hub(path, part, streaming=True)
    else:
        raise UserError(f"{path}: there is no such file, folder, pattern or Hub dataset, check the path")
    rows = rows if rows.features else rows._resolve_features()
    require_column("image_column", image_column, rows.column_names, path)
    return rows.cast_column(image_column, Image(decode=False))


def _shard_files(path: Path) -> list[Path]:
    """Parquet or ``.tar`` files that a path or pattern names, sorted."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in SHARD_SUFFIXES]
    else:
        files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    suffixes = {file.suffix for file in files}
    if not files or not suffixes <= set(SHARD_SUFFIXES):
        raise UserError(f"{path}: only parquet, .tar shards and Hub datasets are streamed, and there are none here")
    if len(suffixes) > 1:
        raise UserError(f"{path}: holds both parquet and .tar files, name one kind with a pattern such as *.tar")
    return files
