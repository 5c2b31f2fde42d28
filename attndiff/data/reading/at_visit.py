"""Rows decoded at their first visit: training on data of any size begins when it is listed and its headers are read."""

import hashlib
import logging

import numpy as np

from attndiff.data.pixels.header import Header
from attndiff.data.reading.decoded_rows import DecodedRows
from attndiff.data.reading.encoded import EncodedRows
from attndiff.data.reading.readers import Readers
from attndiff.data.reading.slots import Slots
from attndiff.data.tables.names import printable
from attndiff.errors import UserError
from attndiff.progress import progress

logger = logging.getLogger(__name__)

FILE_BYTES = 8 << 30  # of what is kept of a set, decoded
TRIED = 64  # rows that are decoded before the first visit, to see how much room one takes
PATIENCE = 100  # rows that are bad one after the other
DTYPES = {1: np.uint8, 2: np.uint16, 4: np.float32}  # by the bytes of a value
BAD = 255  # the kind of a slot with a reason in it; of an array, the bytes of a value


class DecodedAtVisit(DecodedRows):
    """What rows show, decoded when it is first asked for and kept in a file of slots.

    A row whose header is whole and whose pixels cannot be read, which is found out at its visit, is stood for by the
    next row of the same shape that can, on every process and in every run alike.

    Args:
        encoded: The rows.
        on_error: "skip" leaves rows out that cannot be read, "raise" raises what is the matter.
        readers: The processes that share the work, and where decoded rows are kept.

    Raises:
        UserError: If a header cannot be read and ``on_error`` says so.
    """

    is_kept = False

    def __init__(self, encoded: EncodedRows, on_error: str, readers: Readers):
        super().__init__()
        self._on_error = on_error
        headers = list(self.sorted_out(encoded, _headers(encoded, readers), on_error))
        self._encoded = encoded.chosen(self.good)
        shapes, fit = encoded.normalizer.shapes, encoded.normalizer.geometry
        self.buckets = np.array([shapes.index(fit(header.size).shape) for header in headers])
        self.bit_depth = max((header.bits for header in headers), default=8)
        self.ranges = {header.stands_for for header in headers}
        self.digest = hashlib.sha256(b"".join(header.identity for header in headers)).digest()
        self._later: dict[int, str] = {}  # rows that turned out bad, and why
        self._last: tuple[int, dict[str, np.ndarray]] | None = None
        self._slots = self._open_slots(readers) if self.good else None

    def _open_slots(self, readers: Readers) -> Slots | None:
        """Where decoded rows are kept; raises `UserError` if most of those that are tried cannot be read."""
        tried = [self._decoded(i) for i in self._encoded.spread(TRIED)]
        readable = [sum(levels.nbytes for levels in row.values()) for row in tried if row]
        if len(readable) * 2 < len(tried):
            bad = next(iter(self._later))
            raise UserError(
                f"{self._encoded.table.origin}: {len(tried) - len(readable)} of {len(tried)} images tried are bad, "
                f"first {self._encoded.name(bad)}: {self._later[bad]}"
            )
        if readers.folder is None:
            return None
        columns = [(column.name, column.kind) for column in self._encoded.planar]
        said = repr((vars(self._encoded.normalizer), columns)).encode()
        name = hashlib.sha256(self.digest + said).hexdigest()[:32]
        try:
            return Slots(readers.folder / f"{name}.slots", max(readable), FILE_BYTES)
        except OSError as error:
            logger.warning("%s: decoded images are not kept (%s)", readers.folder, error.strerror)
            return None

    @property
    def found_later(self) -> list[tuple[str, str]]:
        known = {i: reason for i in range(len(self.good)) if (reason := self._said_bad(i))}
        return [(self._encoded.name(i), reason) for i, reason in sorted(known.items())]

    def _said_bad(self, i: int) -> str | None:
        stored = self._slots.read(i) if self._slots and i not in self._later else None
        return stored[1].decode() if stored and stored[0] == BAD else self._later.get(i)

    def levels(self, i: int, name: str) -> np.ndarray:
        return (self._row(i) or self._row(self.stand_in(i)))[name]

    def stand_in(self, i: int) -> int:
        """The row itself, or if it has turned out bad the one that stands for it.

        Raises:
            UserError: If it is bad and ``on_error`` says so, or none of those that could stand for it can be read.
        """
        if i not in self._later:
            return i
        if self._on_error == "raise":
            raise UserError(f"{self._encoded.name(i)}: {self._later[i]}")
        alike = np.flatnonzero(self.buckets == self.buckets[i])
        after = np.roll(alike, -np.searchsorted(alike, i))[1 : PATIENCE + 1].tolist()
        found = next((other for other in after if self._row(other)), None)
        if found is None:
            raise UserError(
                f"{self._encoded.table.origin}: {len(after) + 1} images one after the other cannot be read, first "
                f"{self._encoded.name(i)}: {self._later[i]}"
            )
        return found

    def _row(self, i: int) -> dict[str, np.ndarray]:
        """What a row shows by column; nothing of a bad one."""
        if self._last is None or self._last[0] != i:
            self._last = i, self._from_slot(i) or self._first_visit(i)
        return self._last[1]

    def _first_visit(self, i: int) -> dict[str, np.ndarray]:
        if i in self._later:
            return {}
        row = self._decoded(i)
        sizes = {levels.itemsize for levels in row.values()}
        if self._slots is not None and not row:
            self._slots.write(i, BAD, self._later[i].encode()[: self._slots.size])
        elif self._slots is not None and len(sizes) == 1:  # of several types there is no room to say which is which
            self._slots.write(i, sizes.pop(), b"".join(levels.tobytes() for levels in row.values()))
        return row

    def _from_slot(self, i: int) -> dict[str, np.ndarray]:
        """What was kept of a row; nothing where that is nothing, or a reason."""
        stored = self._slots.read(i) if self._slots is not None else None
        if stored is None:
            return {}
        kind, content = stored
        if kind == BAD:
            self._later[i] = content.decode(errors="replace")
            return {}
        shape, row = self._encoded.normalizer.shapes[self.buckets[i]], {}
        planes = np.frombuffer(content, DTYPES[kind]).reshape(-1, *shape)
        for column in reversed(self._encoded.planar[1:]):
            further = len(planes) - (1 if column.kind == "mask" else self._encoded.channels)
            row[column.name] = planes[further] if column.kind == "mask" else planes[further:]
            planes = planes[:further]
        return {self._encoded.planar[0].name: planes, **row}

    def _decoded(self, i: int) -> dict[str, np.ndarray]:
        """What a row shows, decoded; nothing where it cannot be read, which is said and known from then on."""
        try:
            image, further = self._encoded.read(i)
            if self._encoded.normalizer.shapes.index(image.geometry.shape) != self.buckets[i]:
                raise UserError("has another size than its header says, replace or remove it")
        except UserError as error:
            name, reason = self._encoded.reason(i, error)
            logger.warning("%s: skipped, %s", printable(name), printable(reason))
            self._later[i] = reason
            return {}
        names = [column.name for column in self._encoded.planar]
        return dict(zip(names, (image.levels, *further), strict=True))


def _headers(encoded: EncodedRows, readers: Readers) -> list[Header | UserError]:
    """What each row's image says of itself, or why it is none."""
    total = -(-len(encoded) // readers.count)
    with progress(None, "Looking at images", total, shown=readers.index == 0) as bar:

        def look(position: int) -> Header | UserError:
            bar.update()
            try:
                return encoded.header(position)
            except UserError as error:
                return error

        return readers.each_once(look, list(range(len(encoded))))
