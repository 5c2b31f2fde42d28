"""Data too large for an index or for memory: read shard by shard, in an order that can be taken up at any place.

A shard is a row group of a local parquet file, a parquet file on the Hub, or a webdataset ``.tar``. Each lane (see
below) holds one parquet shard in memory. What holds of the order:

- An epoch deals the shards, in an order that follows from (seed, epoch), in turn to a few *lanes*, and every lane reads
  its shards one after the other. Each row belongs to one lane of an epoch and is read once in it. A batch takes equally
  many rows from every lane, so that lanes of unequal shards are at times in neighbouring epochs.
- The rows of a lane are shuffled in blocks: while one block is used, the next is read. The order within a block follows
  from (seed, epoch, lane, block), not from what is in it.
- So the row at any place of a run follows from the seed, the batch size and the data, whatever the number of processes
  and loader workers, and a run resumes exactly. To resume, a lane passes over the shards before its block by their row
  counts, noted when they were read to their end, and reads the rest of one shard and the block again. (The shuffle
  buffer of `datasets` is not used: on a resume it gives up the rows that it holds.)
"""

import json
import logging
import tarfile
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from attndiff.data.config import DataConfig
from attndiff.data.draw import epoch_order
from attndiff.data.pixels.normalize import Normalizer, to_signed
from attndiff.data.rows import clean_captions, filter_columns, is_kept, require_column
from attndiff.data.sources import MAX_BAD_SHARE, make_normalizer
from attndiff.data.tables import encoded_image, open_stream
from attndiff.errors import UserError

logger = logging.getLogger(__name__)

# As many as a machine has GPUs: each then reads shards of its own. More would hold more files open at once.
LANES = 8
# Shards that the rows known before step 1 come from: one alone might be of one kind, such as a class, and all of them,
# if the filters leave few rows of each, would be the whole data.
HEAD_SHARDS = (8, 64)  # the least, the most
# Rows taken from a shard at once: one by one they would cost `datasets` a millisecond each.
READ_ROWS = 64

NamedRow = tuple[str, dict]


class EncodedImages:
    """Images of rows held in memory as they were encoded; read like an `ImageSet`.

    Args:
        rows: Name and columns of each.
        config: What to read and how.
        class_names: Names and order of the classes, or None.
        bit_depth: Of the deepest image of the data.
    """

    def __init__(self, rows: list[NamedRow], config: DataConfig, class_names: list[str] | None, bit_depth: int = 8):
        self.rows, self.config, self.class_names, self._bit_depth = rows, config, class_names, bit_depth
        self.normalizer: Normalizer = make_normalizer(config)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: list[NamedRow]) -> "EncodedImages":
        """Other rows of the same data."""
        return EncodedImages(rows, self.config, self.class_names, self._bit_depth)

    def levels(self, i: int) -> np.ndarray:
        """Image ``(C, H, W)`` at its own depth; raises `UserError` for a bad one."""
        name, row = self.rows[i]
        return self.normalizer.normalize(encoded_image(row[self.config.image_column], name), name).levels

    def pixels(self, i: int) -> np.ndarray:
        """Image ``(C, H, W)`` float32 in [-1, 1]; raises `UserError` for a bad one."""
        return to_signed(self.levels(i))

    def by_shape(self) -> dict[tuple[int, int], np.ndarray]:
        """All of them under the one height and width that they have."""
        return {(self.config.size, self.config.size): np.arange(len(self))}

    def captions(self, i: int) -> list[str]:
        """Captions of an image; none if no column was named, an empty one where the cell is empty."""
        column = self.config.caption_column
        return clean_captions(self.rows[i][1][column]) if column else []

    def label(self, i: int) -> int | None:
        """Number of an image's class in `class_names`; raises `UserError` if it has none of them."""
        if self.class_names is None:
            return None
        name, row = self.rows[i]
        value = row[self.config.label_column]
        if str(value) in self.class_names:
            return self.class_names.index(str(value))
        # A number is one of the names where these are numbers too, and else a place among them.
        numbered = isinstance(value, int) and not any(other.isdecimal() for other in self.class_names)
        if not numbered or not 0 <= value < len(self.class_names):
            raise UserError(f"{name}: class {value!r} is not one of the {len(self.class_names)} classes named")
        return value

    def name(self, i: int) -> str:
        """Shard and row of an image."""
        return self.rows[i][0]

    def row(self, i: int) -> dict:
        """The columns that were read but the image."""
        return {key: value for key, value in self.rows[i][1].items() if key != self.config.image_column}

    def describe(self) -> dict:
        """What a pipeline keeps about its data, see `Normalizer.describe`."""
        return self.normalizer.describe(self._bit_depth, self.class_names)


class Ledger:
    """What a run has learnt of its stream: rows of the shards read to their end, and images left out.

    A file of one JSON line a fact, so that all processes of a run may add to it and a resumed run knows what the
    earlier one knew. A line cut short by a kill is passed over: what it said is learnt again.

    Args:
        path: The file; it and its folder are made with the first entry.
        shards: Number of shards.

    Raises:
        UserError: The file is about another number of shards.
    """

    def __init__(self, path: Path, shards: int):
        self.path, self.shards = path, shards
        self._rows: dict[int, int] = {}
        self._skipped = set(self.skipped())
        for entry in self._entries():
            if entry["shards"] != shards:
                raise UserError(
                    f"{path}: this run began with {entry['shards']} shards of data and finds {shards} now; "
                    "restore them, or choose another 'out'"
                )
            if "rows" in entry:
                self._rows[entry["shard"]] = entry["rows"]

    def rows(self, shard: int) -> int | None:
        """Rows of a shard, or None while they are not known."""
        return self._rows.get(shard)

    def note_rows(self, shard: int, rows: int) -> None:
        """Keep the number of rows of a shard; raises `UserError` if it was another."""
        known = self._rows.get(shard)
        if known is None:
            self._rows[shard] = rows
            self._add({"shard": shard, "rows": rows})
        elif known != rows:
            raise UserError(
                f"{self.path}: shard {shard} had {known} rows and has {rows} now; restore the data, or choose another "
                "'out'"
            )

    def note_skipped(self, message: str) -> None:
        """Keep, and log, which image was left out and why."""
        if message not in self._skipped:
            self._skipped.add(message)
            logger.warning("skipped %s", message)
            self._add({"skipped": message})

    def skipped(self) -> list[str]:
        """What was left out so far, in all processes, each once."""
        return sorted({entry["skipped"] for entry in self._entries() if "skipped" in entry})

    def _add(self, entry: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            # It begins with the end of a line: the line before may have been cut short.
            file.write("\n" + json.dumps({"shards": self.shards, **entry}))

    def _entries(self) -> Iterator[dict]:
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


class Stream:
    """Shards of rows, images not decoded.

    Args:
        config: What to read and how.
        whole: Whether data without parts is taken whole whatever part is asked for.

    Raises:
        UserError: The data cannot be used.
    """

    def __init__(self, config: DataConfig, whole: bool = False):
        self.config = config
        rows = open_stream(config.path, config.split, config.image_column, whole)
        asked = {"caption_column": config.caption_column, "label_column": config.label_column}
        asked |= {f"where, exclude: {column}": column for column in filter_columns(config.where, config.exclude)}
        asked = {argument: column for argument, column in asked.items() if column}
        for argument, column in asked.items():
            require_column(argument, column, rows.column_names, config.path)
        self.features, self.shards = rows.features, rows.num_shards
        self._dataset = rows.select_columns(list(dict.fromkeys([config.image_column, *asked.values()])))
        self.held_out: dict[int, int] = {}  # rows at the beginning of a shard that are not to be trained on

    def class_names(self) -> list[str] | None:
        """Names of the classes, or None without `label_column`; a stream is not read ahead to find them."""
        column = self.config.label_column
        if column is None:
            return None
        names = self.config.class_names or getattr(self.features[column], "names", None)
        if names is None:
            raise UserError(
                f"{self.config.path}: the classes in column {column!r} have no names, and a stream is not read through "
                "to find them; list them in data.class_names, or store the column as a ClassLabel of `datasets`"
            )
        return list(names)

    def shard(self, number: int) -> Iterator[NamedRow]:
        """Name and columns of each row of a shard that passes the filters, from its beginning."""
        labels = {c: getattr(self.features[c], "names", None) for c in self._filtered}
        for place, row in enumerate(self._shard(number)):
            known = {c: names[row[c]] if names and row[c] is not None else row[c] for c, names in labels.items()}
            if is_kept(known, self.config.where, self.config.exclude):
                yield f"shard {number} row {place}", self._with_class(row)

    def _with_class(self, row: dict) -> dict:
        """A row with the name of its class, where the column stores the number of one that it names."""
        column = self.config.label_column
        stored = getattr(self.features[column], "names", None) if column else None
        if not stored or row[column] is None:
            return row
        names = self.config.class_names or stored
        return {**row, column: names[row[column]] if row[column] < len(names) else row[column]}

    def _shard(self, number: int) -> Iterator[dict]:
        """Rows of a shard; raises `UserError` if it is broken."""
        try:
            for batch in self._dataset.shard(self.shards, number).iter(READ_ROWS):
                yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
        # ValueError: how `datasets` reports rows of a tar that do not go together.
        except (OSError, tarfile.TarError, pa.ArrowException, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{self.config.path}: shard {number} cannot be read ({reason}); replace or remove it"
            ) from None

    @property
    def _filtered(self) -> list[str]:
        return filter_columns(self.config.where, self.config.exclude)

    def head(self, rows: int) -> dict[int, list[NamedRow]]:
        """The first rows of some shards, picked over the whole data and the same for every seed, ``rows`` in all."""
        least, most = HEAD_SHARDS
        heads, share = {}, max(1, rows // least)
        for shard in epoch_order(0, 0, self.shards)[:most].tolist():
            if rows > 0:
                heads[shard] = list(islice(self.shard(shard), min(share, rows)))
                rows -= len(heads[shard])
        return heads

    def lane(self, lane: int, lanes: int, seed: int, ledger: Ledger, start: int = 0) -> Iterator[tuple[NamedRow, int]]:
        """Rows of a lane without end, each with its epoch, from the ``start``-th row of the run on."""
        block_size = max(1, self.config.shuffle_buffer // lanes)
        for epoch in count():
            shards = epoch_order(seed, epoch, self.shards)[lane::lanes].tolist()
            first, within = divmod(start, block_size)
            rows = self._rows(shards, first * block_size, ledger)
            blocks = shuffled_blocks(rows, block_size, first, lambda b, n, e=epoch: block_order(seed, e, lane, b, n))
            for row in islice(blocks, within, None):
                yield row, epoch
            start = max(0, start - sum(ledger.rows(shard) for shard in shards))

    def _rows(self, shards: list[int], skip: int, ledger: Ledger) -> Iterator[NamedRow]:
        """Rows of shards one after the other without the first ``skip``, over whole shards without reading them."""
        for shard in shards:
            known = ledger.rows(shard)
            if known is not None and skip >= known:
                skip -= known
                continue
            rows = 0
            for row in islice(self.shard(shard), self.held_out.get(shard, 0), None):
                rows += 1
                if skip:
                    skip -= 1
                else:
                    yield row
            ledger.note_rows(shard, rows)


def lane_count(batch_size: int, shards: int) -> int:
    """The largest number of lanes that divides the batch, with at least a shard for each."""
    return max(n for n in range(1, min(LANES, shards) + 1) if batch_size % n == 0)


def block_order(seed: int, epoch: int, lane: int, block: int, size: int) -> list[int]:
    """The order ``(size,)`` in which the rows of a block are used."""
    # As the key of `epoch_order`; the counter keeps the blocks apart from it and from each other.
    key, counter = (
        np.array([seed, epoch | 1 << 63], dtype=np.uint64),
        np.array([0, 0, lane + 1, block], dtype=np.uint64),
    )
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).permutation(size).tolist()


def shuffled_blocks(rows: Iterator, size: int, first: int, order) -> Iterator:
    """Rows in blocks of ``size``, each in the order ``order(number of the block, its size)``; ``size`` rows in memory.

    Args:
        rows: From the first row of block ``first`` on.
        size: Rows of a block; the last may be shorter.
        first: Number of the first block.
        order: Makes the order of a block.
    """
    block = list(islice(rows, size))
    for number in count(first):
        following = []
        for place in order(number, len(block)):
            row, block[place] = block[place], None
            yield row
            following += islice(rows, 1)
        if not following:
            return
        block = following


def readable(images: EncodedImages, origin: str) -> EncodedImages:
    """Those of the images that can be read; raises `UserError` if too many cannot, or one has no class of the data."""
    if not images.rows:
        filters = f" that where={images.config.where} and exclude={images.config.exclude} leave"
        raise UserError(f"{origin}: its first shards hold no row{filters if images.config.where else ''}")
    good, bad, depths = [], [], {8}
    for i, row in enumerate(images.rows):
        try:
            depths.add(images.levels(i).itemsize * 8)
        except UserError as error:
            if images.config.on_error == "raise":
                raise
            bad.append(str(error))
            continue
        images.label(i)
        good.append(row)
    if bad:
        logger.warning("%s: %d of the first %d images skipped, first %s", origin, len(bad), len(images), bad[0])
    if len(bad) > MAX_BAD_SHARE * len(images):
        raise UserError(f"{origin}: {len(bad)} of the first {len(images)} images are bad, first {bad[0]}")
    return EncodedImages(good, images.config, images.class_names, max(depths))
