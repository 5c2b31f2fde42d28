"""Aspect-ratio buckets: images of different shapes are trained on without being cropped to squares.

A few shapes of about the same area stand for all aspect ratios; each image takes the nearest, and a batch holds images
of one shape. As in https://github.com/NovelAI/novelai-aspect-ratio-bucketing.
"""

from attndiff.data.geometry import Shape
from attndiff.errors import UserError


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
