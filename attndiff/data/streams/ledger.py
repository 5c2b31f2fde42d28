"""What a run learns of its stream, in a file of the run."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from attndiff.errors import UserError

logger = logging.getLogger(__name__)


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
