"""Attention of every window to the few whole windows that fit it best (BiFormer, arXiv 2303.08810)."""

from attndiff.nn.kinds.arrangement import Arrangement
from attndiff.nn.kinds.window_attention import Windows

ROUTES = 2


def routed_arrangements(height: int, width: int, window: int, max_tokens: int) -> list[Arrangement]:
    """Windows of about ``window`` pixels a side, in every block; ``max_tokens`` does not matter."""
    return [RoutedWindows(height, width, window)]


class RoutedWindows(Windows):
    """`Windows` that attend to `ROUTES` windows of their image, which may or may not be they themselves.

    Args:
        height: H, rows of the image.
        width: W, its columns.
        at_most: Side of a window, or a little less, by `window_side`.
    """

    kind = "routed"

    def __init__(self, height: int, width: int, at_most: int):
        super().__init__(height, width, at_most, dilated=False)
        self.routes = min(ROUTES, self.sequences)
