"""Aspect-ratio buckets: images of different shapes are trained on without being cropped to squares.

A few shapes of about the same area stand for all aspect ratios; each image takes the nearest, and a batch holds images
of one shape. As in https://github.com/NovelAI/novelai-aspect-ratio-bucketing, but that what is left over of a bucket
is carried into the next epoch rather than dropped.
"""

import math
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from attndiff.data.draw import BatchSampler, epoch_order
from attndiff.errors import UserError

Shape = tuple[int, int]  # height and width in pixels


def bucket_shapes(size: int, max_aspect: float, multiple: int) -> list[Shape]:
    """The square, and for each shorter side the longest other one with which no shape has more pixels than the square.

    Never more, so that a batch which fits into memory as squares fits in every shape, and attention that is global at
    the square's number of tokens is so at all.

    Args:
        size: Side of the square, a multiple of `multiple`.
        max_aspect: Longer over shorter side at most, above 1.
        multiple: All sides are multiples of it.

    Returns:
        ``(height, width)`` of every bucket, from the widest to the tallest.

    Raises:
        UserError: If there is no shape but the square.
    """
    sides = [(short, size**2 // short // multiple * multiple) for short in range(multiple, size, multiple)]
    wide = [(short, long) for short, long in sides if long <= max_aspect * short]
    if not wide:
        nearest = f", the nearest needs {sides[-1][1] / sides[-1][0]:.3g}" if sides else ""
        raise UserError(
            f"max_aspect={max_aspect} leaves no shape but the square at size={size} with sides that are multiples of "
            f"bucket_multiple={multiple}{nearest}: give a larger max_aspect or size"
        )
    return [*wide, (size, size), *((long, short) for short, long in reversed(wide))]


def nearest_shape(height: int, width: int, shapes: list[Shape]) -> Shape:
    """The shape whose aspect ratio is nearest to an image's on a logarithmic scale, on which 2:1 is as far as 1:2."""
    aspect = math.log(width / height)
    return min(shapes, key=lambda shape: abs(math.log(shape[1] / shape[0]) - aspect))


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
