"""Columns: what a row of a data set holds, by name and kind."""

from dataclasses import dataclass

KINDS = ("image", "mask", "label", "text", "frames", "views")
# These are cropped, resized and mirrored alike within a row; their last two axes are rows and columns of pixels.
PLANAR = ("image", "mask", "frames", "views")


@dataclass(frozen=True)
class Column:
    """A column of a data set.

    Args:
        name: What `Row` calls it.
        kind: One of `KINDS`. An image is float32 ``(C, H, W)`` in [-1, 1], alpha in [-2, 2]; a mask int64 ``(H, W)``,
            a number for every pixel; a label an int; a text a list of strings, any of which describes the row.
    """

    name: str
    kind: str

    @property
    def is_planar(self) -> bool:
        """Whether the geometry of a row applies to it."""
        return self.kind in PLANAR


IMAGE = Column("image", "image")
CAPTION = Column("caption", "text")
LABEL = Column("label", "label")
