"""Which samples each step visits, as stateless as what they meet: a function of the seed and the place in the run."""

from collections.abc import Callable

import numpy as np


def epoch_order(seed: int, epoch: int, size: int, stream: int = 0) -> np.ndarray:
    """The order ``(size,)`` int64 in which an epoch visits its samples; each ``stream`` has its own."""
    # The top bit of the key separates this stream from those of the samples. A list would pass through float64 and
    # lose the epoch.
    key, counter = np.array([seed, epoch | 1 << 63], dtype=np.uint64), np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).permutation(size)


def position(seed: int, index: int, size: int, orders: dict[int, np.ndarray]) -> tuple[int, int]:
    """``(sample id, visit)`` of the ``index``-th sample of the whole run; ``orders`` remembers the last epochs."""
    epoch, offset = divmod(index, size)
    if epoch not in orders:
        for old in [e for e in orders if e < epoch - 1]:
            del orders[old]
        orders[epoch] = epoch_order(seed, epoch, size)
    return int(orders[epoch][offset]), epoch


class BatchSampler:
    """Batches of ``(sample id, visit)`` for one rank, from any step on.

    The global batch of a step is a run of consecutive positions; each rank takes its slice of it, micro-batch by
    micro-batch, so that the same samples meet at a step however many processes share it.

    Args:
        size: Samples in the data.
        micro_batch: Samples a process handles at once.
        accumulation: Micro-batches per step.
        seed: Run seed.
        rank: This process.
        world_size: Number of processes.
        start_step: First step.
        end_step: Step before which to end.
    """

    def __init__(self, size, micro_batch, accumulation, seed, rank=0, world_size=1, start_step=0, end_step=0):
        self.size, self.micro_batch, self.accumulation, self.seed = size, micro_batch, accumulation, seed
        self.rank, self.world_size, self.start_step, self.end_step = rank, world_size, start_step, end_step
        self.global_batch = micro_batch * accumulation * world_size

    def __len__(self) -> int:
        return (self.end_step - self.start_step) * self.accumulation

    def order(self) -> Callable[[int], tuple[int, int]]:
        """The function from a place in the whole run to ``(sample id, visit)``."""
        orders: dict[int, np.ndarray] = {}
        return lambda index: position(self.seed, index, self.size, orders)

    def __iter__(self):
        sample_at = self.order()
        for step in range(self.start_step, self.end_step):
            for micro in range(self.accumulation):
                first = step * self.global_batch + (self.rank * self.accumulation + micro) * self.micro_batch
                yield [sample_at(first + i) for i in range(self.micro_batch)]
