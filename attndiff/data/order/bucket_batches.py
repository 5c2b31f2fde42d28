"""Batches that hold one aspect-ratio bucket each.

What is left over of a bucket is carried into the next epoch, not dropped as in
https://github.com/NovelAI/novelai-aspect-ratio-bucketing.
"""

from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from attndiff.data.order.batches import BatchSampler, epoch_order


def batches_before(epoch: int, sizes: list[int], batch_size: int) -> list[int]:
    """Batches that each bucket has given before an epoch: as many as show each of its images ``epoch`` times."""
    return [-(-epoch * size // batch_size) for size in sizes]


def epoch_of(step: int, sizes: list[int], batch_size: int) -> tuple[int, int]:
    """The epoch that a step is part of, and the first step of that epoch."""
    # Batches are rounded up, so that no epoch begins earlier than it would if buckets were cut without regard to shape.
    epochs = range(1, step * batch_size // sum(sizes) + 2)
    epoch = bisect_right(epochs, step, key=lambda e: sum(batches_before(e, sizes, batch_size)))
    return epoch, sum(batches_before(epoch, sizes, batch_size))


class BucketOrder:
    """Which samples each step visits, a function of the seed, the step, the batch and the buckets.

    A bucket is an endless row of permutations of its images, cut into batches. Epoch ``e`` goes on cutting until each
    image has been visited ``e + 1`` times, so that the last batch of a bucket may reach into its next permutation;
    what it shows there, the next epoch does not show again. After any epoch an image has been visited as often as
    there were epochs, or, by less than one batch of its bucket, more. The batches of all buckets come in random order.

    Args:
        buckets: Sample ids of each bucket, none of them empty.
        batch_size: Samples of a step over all processes and micro-batches.
        seed: Run seed.
    """

    def __init__(self, buckets: list[np.ndarray], batch_size: int, seed: int):
        self.buckets, self.batch_size, self.seed = buckets, batch_size, seed
        self.sizes = [len(bucket) for bucket in buckets]
        self._step, self._epoch, self._batches = -1, -1, []
        self._permutations: dict[tuple[int, int], np.ndarray] = {}

    def position(self, index: int) -> tuple[int, int]:
        """``(sample id, visit)`` of the ``index``-th sample of the whole run."""
        step, offset = divmod(index, self.batch_size)
        if step != self._step:
            self._go_to(step)
        bucket, number = self._batch
        visit, place = divmod(number * self.batch_size + offset, self.sizes[bucket])
        if (bucket, visit) not in self._permutations:
            order = epoch_order(self.seed, visit, self.sizes[bucket], stream=bucket + 1)
            self._permutations[bucket, visit] = order
        return int(self.buckets[bucket][self._permutations[bucket, visit][place]]), visit

    def _go_to(self, step: int) -> None:
        epoch, first_step = epoch_of(step, self.sizes, self.batch_size)
        if epoch != self._epoch:
            self._begin(epoch)
        self._step, self._batch = step, self._batches[step - first_step]

    def _begin(self, epoch: int) -> None:
        """Draw the order of an epoch's batches, each a bucket and its number in it; forget what lies behind."""
        counts = (batches_before(e, self.sizes, self.batch_size) for e in (epoch, epoch + 1))
        batches = [(b, i) for b, (start, end) in enumerate(zip(*counts, strict=True)) for i in range(start, end)]
        self._epoch, self._batches = epoch, [batches[i] for i in epoch_order(self.seed, epoch, len(batches))]
        self._permutations = {key: order for key, order in self._permutations.items() if key[1] >= epoch}


class BucketSampler(BatchSampler):
    """A `BatchSampler` whose global batches hold one bucket each.

    Args:
        buckets: Sample ids of each bucket.
        arguments: Those of `BatchSampler` after the size.
    """

    def __init__(self, buckets: list[np.ndarray], *arguments, **named):
        super().__init__(sum(map(len, buckets)), *arguments, **named)
        self.buckets = buckets

    def order(self) -> Callable[[int], tuple[int, int]]:
        return BucketOrder(self.buckets, self.global_batch, self.seed).position
