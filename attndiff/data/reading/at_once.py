"""Rows decoded when their set is opened, so that bad ones are known, and the same, in every process and run."""

import hashlib
from collections.abc import Iterator

import numpy as np

from attndiff.data.pixels.normalize import Normalized
from attndiff.data.reading.decoded_rows import DecodedRows
from attndiff.data.reading.encoded import EncodedRows
from attndiff.data.reading.kept import KeptArrays
from attndiff.data.reading.readers import Readers
from attndiff.errors import UserError
from attndiff.progress import progress

# Processes give each other what they have read in parts of this size.
ROUND_BYTES = 64 << 20

Read = tuple[Normalized, list[np.ndarray]]


class DecodedAtOnce(DecodedRows):
    """What all rows show, in memory.

    Args:
        encoded: The rows.
        on_error: "skip" leaves rows out that cannot be read, "raise" raises what is the matter.
        at_most: Bytes; where it is more, rows are decoded again at every visit.
        readers: The processes that share the work.

    Raises:
        UserError: If a row cannot be read and ``on_error`` says so.
    """

    def __init__(self, encoded: EncodedRows, on_error: str, at_most: int, readers: Readers):
        super().__init__()
        self._kept, self._sizes, self.found_later, self.ranges = KeptArrays(at_most), [], [], set()
        depths, digest, buckets = {8}, hashlib.sha256(), []
        for image, further in self.sorted_out(encoded, _read_all(encoded, readers), on_error):
            self._sizes.append(image.geometry.size)
            buckets.append(encoded.normalizer.shapes.index(image.geometry.shape))
            depths.add(image.levels.itemsize * 8)
            self.ranges.add(image.stands_for)
            for levels in (image.levels, *further):
                digest.update(levels)
                self._kept.append(levels)
        self._kept.close()
        self.is_kept = self._kept.fits
        self.buckets, self.bit_depth, self.digest = np.array(buckets), max(depths), digest.digest()
        self._planar = encoded.planar
        # Encoded images are let go of where the decoded ones are kept.
        self._encoded = None if self.is_kept else encoded.chosen(self.good)

    def levels(self, i: int, name: str) -> np.ndarray:
        place = next(place for place, column in enumerate(self._planar) if column.name == name)
        if self.is_kept:
            return self._kept[i * len(self._planar) + place]
        return self._encoded.read_column(i, self._planar[place], self._sizes[i])

    def stand_in(self, i: int) -> int:
        return i


def _read_all(encoded: EncodedRows, readers: Readers) -> Iterator[Read | UserError]:
    """What every row shows, or why it cannot be read, in their order."""
    one = max(1, encoded.decoded_bytes() // max(1, len(encoded)))
    at_a_time = max(1, ROUND_BYTES // one) if readers.count > 1 else 1
    with progress(None, "Reading images", len(encoded), shown=readers.index == 0) as bar:
        for start in range(0, len(encoded), at_a_time):
            positions = list(range(len(encoded))[start : start + at_a_time])
            yield from readers.each_once(lambda position: _read(encoded, position), positions)
            bar.update(len(positions))


def _read(encoded: EncodedRows, position: int) -> Read | UserError:
    try:
        return encoded.read(position)
    except UserError as error:
        return error
