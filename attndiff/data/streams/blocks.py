"""The order of a stream's rows: lanes of shards, and blocks that are shuffled; see `attndiff.data.streams`."""

from collections.abc import Iterator
from itertools import count, islice

import numpy as np

# As many as a machine has GPUs: each then reads shards of its own. More would hold more files open at once.
LANES = 8


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
