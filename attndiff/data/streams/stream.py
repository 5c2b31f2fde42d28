"""The shards of a stream, and their rows in lanes; see `attndiff.data.streams`."""

import logging
import tarfile
from collections.abc import Callable, Iterator
from itertools import count, islice

import pyarrow as pa

from attndiff.data.cells import stored_column
from attndiff.data.config import DataConfig
from attndiff.data.order.batches import epoch_order
from attndiff.data.select import filter_columns, is_kept
from attndiff.data.streams.blocks import block_order, shuffled_blocks
from attndiff.data.streams.encoded import NamedRow
from attndiff.data.streams.ledger import Ledger
from attndiff.data.tables.shards import open_stream
from attndiff.data.tables.table import DRAWN, all_drawn, require_column
from attndiff.drawn import is_drawn
from attndiff.errors import UserError

logger = logging.getLogger(__name__)

# Shards that the rows known before step 1 come from: one alone might be of one kind, such as a class, and all of them,
# if the filters leave few rows of each, would be the whole data.
HEAD_SHARDS = (8, 64)  # the least, the most
# Rows taken from a shard at once: one by one they would cost `datasets` a millisecond each.
READ_ROWS = 64


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
        images = [config.image_column, *config.columns]
        rows = open_stream(config.path, config.split, images, whole, config.named_parts, config.config)
        captions = config.caption_column and stored_column(config.caption_column, rows.column_names)
        asked = {"caption_column": captions, "label_column": config.label_column}
        asked |= {f"where, exclude: {column}": column for column in filter_columns(config.where, config.exclude)}
        asked = {argument: column for argument, column in asked.items() if column}
        for argument, column in asked.items():
            require_column(argument, column, rows.column_names, config.path)
        self.features, self.shards = rows.features, rows.num_shards
        self._dataset = rows.select_columns(list(dict.fromkeys([*images, *asked.values()])))
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

    def shard(self, number: int, leave_out: Callable[[str], None] = logger.warning) -> Iterator[NamedRow]:
        """Name and columns of each row of a shard that passes the filters, from its beginning.

        Args:
            number: Of the shard.
            leave_out: Is told name and reason of drawn images, which are no such rows.
        """
        labels = {c: getattr(self.features[c], "names", None) for c in self._filtered}
        for place, row in enumerate(self._shard(number)):
            known = {c: names[row[c]] if names and row[c] is not None else row[c] for c, names in labels.items()}
            if not is_kept(known, self.config.where, self.config.exclude):
                continue
            name = f"shard {number} row {place}"
            if self._is_drawn(row):
                leave_out(f"{name}: {DRAWN}")
            else:
                yield name, self._with_class(row)

    def _is_drawn(self, row: dict) -> bool:
        """Whether a row's image has the mark of this program, and is not to be learned."""
        cell = row[self.config.image_column]
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        return not self.config.learn_drawn and isinstance(content, bytes) and is_drawn(content)

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
        """The first rows of some shards, picked over the whole data and the same for every seed, ``rows`` in all.

        Raises:
            UserError: If a shard is broken, or all rows are drawn images.
        """
        least, most = HEAD_SHARDS
        heads, share, drawn = {}, max(1, rows // least), []
        for shard in epoch_order(0, 0, self.shards)[:most].tolist():
            if rows > 0:
                heads[shard] = list(islice(self.shard(shard, drawn.append), min(share, rows)))
                rows -= len(heads[shard])
        if drawn and not any(heads.values()):
            raise UserError(all_drawn(self.config.path, drawn[0].split(":")[0]))
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
            for row in islice(self.shard(shard, ledger.note_skipped), self.held_out.get(shard, 0), None):
                rows += 1
                if skip:
                    skip -= 1
                else:
                    yield row
            ledger.note_rows(shard, rows)
