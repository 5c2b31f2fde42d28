"""What to read and how: the data part of a training configuration."""

from math import inf
from typing import Any, Literal, Self

from PIL import ImageColor
from pydantic import field_validator, model_validator

from attndiff.data.columns import CAPTION, IMAGE, LABEL, Column
from attndiff.errors import UserError
from attndiff.paths import expand_setting
from attndiff.settings import Section, check_choice

NAMED_CHANNELS = ("L", "LA", "RGB", "RGBA")
RESIZES = ("lanczos", "area", "nearest")


class DataConfig(Section):
    """Where the images are and what becomes of them.

    Args:
        path: A folder of images, a parquet file, a folder of parquet files, or a dataset's id on the Hub.
        config: Which configuration of a dataset on the Hub that has several; None: its default one.
        split: Which part to read; the files, folder or Hub split of that name where the data has such parts.
        validation: Where the held-out images are: a path, or the fraction of the data to hold out. None: the data's
            own part called "validation", if it has one.
        named_parts: Whether files and folders called train, val, test and the like, and a column "split" of such names,
            are the parts of the data. None: if all are so called; where some are and others are not, nothing is read.
        size: Height and width of the images in pixels; the shorter side is resized to it, the middle is kept.
        max_aspect: Train on aspect-ratio buckets: images are cropped not to the square but to the nearest of several
            shapes of at most its area, up to this ratio of the longer to the shorter side, such as 2.0. A batch holds
            one shape; with `optim.compile`, each shape has its own graph, compiled at its first batch. None: squares.
        bucket_multiple: Pixels that the sides of buckets are multiples of; itself a multiple of what the network asks
            for, which 8 is for the presets.
        channels: "L", "LA", "RGB" or "RGBA", or the number of bands of images that are not photographs.
        value_range: Two numbers in the units of the files, such as [-1000, 1000], that -1 and 1 are to stand for.
            Values of every numeric type are mapped from it, after the file's own rescaling (slope and intercept of
            DICOM or NIfTI); what lies outside is clipped; samples come out in these units again. Images with missing
            values (NaN, a GeoTIFF's nodata) are refused. None: the full range of the bits, or [0, 1] of floating point;
            where a DICOM or NIfTI says what its numbers mean, samples come out in its units.
        units: What the two numbers are in, such as "HU" or "m", for those who read the samples.
        background: Colour that transparent images are laid over when `channels` has no alpha.
        ink: For drawings that are dark on white, with `channels` "LA" or "RGBA": darkness becomes alpha, and the colour
            is this one, such as "black". None: images stay what they are.
        resize: "lanczos" for photographs, "area" for averaging, "nearest" for pixel art.
        image_column: Column of the images in parquet files and Hub datasets.
        caption_column: Column of the captions, each a string or a list of strings; "text" for text files beside the
            images. None: no captions.
        label_column: Column of the classes; "label" for class folders. None: no classes.
        columns: Further columns of images, each "image" or "mask"; in a folder they hold paths. All that a row shows is
            cropped and resized alike, masks to the nearest pixel.
        where: Rows to keep: for each column named, the values allowed.
        exclude: Rows to leave out: those that match every column of one of the entries.
        on_error: What to do about images that cannot be read: "skip" and list them, or "raise".
        stream: Train without an index of the data, for what is too large to be read through: parquet files, webdataset
            `.tar` files (a folder of them or a pattern such as `shards/*.tar`) or a Hub dataset.
        learn_drawn: Whether pictures that attndiff itself drew, samples and grids, are data like others; else they are
            left out by name.
        shuffle_buffer: Rows of a stream that are held in memory, still encoded, to be shuffled among each other.
        class_names: Names of the classes in the order of their numbers, where a stream's column does not know them.
    """

    path: str
    config: str | None = None
    split: str = "train"
    validation: str | float | None = None
    named_parts: bool | None = None
    size: int = 32
    max_aspect: float | None = None
    bucket_multiple: int = 8
    channels: str | int = "RGB"
    value_range: list[float] | None = None
    units: str | None = None
    background: str = "white"
    ink: str | None = None
    resize: str = "lanczos"
    image_column: str = "image"
    caption_column: str | None = None
    label_column: str | None = None
    columns: dict[str, Literal["image", "mask"]] = {}
    where: dict[str, list] | None = None
    exclude: list[dict[str, Any]] | None = None
    on_error: str = "skip"
    stream: bool = False
    learn_drawn: bool = False
    shuffle_buffer: int = 4096
    class_names: list[str] | None = None

    _expand = field_validator("path", "validation", mode="before")(expand_setting)

    @field_validator("where", mode="before")
    @classmethod
    def _check_where(cls, where: object) -> object:
        if where is not None and not isinstance(where, dict):
            raise UserError("it must map column names to lists of values, such as {style: [noto]}")
        return where

    @field_validator("exclude", mode="before")
    @classmethod
    def _check_exclude(cls, exclude: object) -> object:
        listed = isinstance(exclude, list) and all(isinstance(entry, dict) and entry for entry in exclude)
        if exclude is not None and not listed:
            raise UserError("it must be a list of entries such as {style: noto, caption: [rocket]}")
        return exclude

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_choice("on_error", self.on_error, ("skip", "raise"))
        check_image_options(self.size, self.channels, self.resize)
        colour_of(self.background)
        check_ink(self.ink, self.channels)
        check_bucket_options(self.size, self.max_aspect, self.bucket_multiple)
        check_value_range(self.value_range, self.units, self.channels)
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise UserError(f"validation={self.validation:g} is no fraction: give a number between 0 and 1, or a path")
        if self.stream and isinstance(self.validation, float):
            raise UserError("validation: a stream is not divided by a fraction, name a path or leave it out")
        if self.stream and self.max_aspect:
            raise UserError("max_aspect: a stream is not divided into buckets, leave it out")
        if self.shuffle_buffer < 1:
            raise UserError(f"shuffle_buffer={self.shuffle_buffer} holds no rows: give 1 or more")
        for name in self.columns:
            if name in (IMAGE.name, CAPTION.name, LABEL.name, self.image_column):
                raise UserError(f"columns: a row has a column {name!r} already, give the further one another name")
        return self

    def row_columns(self) -> tuple[Column, ...]:
        """What a `Row` of the data holds."""
        captions = [CAPTION] if self.caption_column else []
        labels = [LABEL] if self.label_column else []
        return (IMAGE, *captions, *labels, *(Column(name, kind) for name, kind in self.columns.items()))


def check_image_options(size: int, channels: str | int, resize: str) -> None:
    """Raise `UserError` for an impossible size, channels or resize."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 8192:
        raise UserError(f"size={size!r} is no image size: give a whole number of pixels from 1 to 8192")
    check_choice("resize", resize, RESIZES)
    if isinstance(channels, int) and not isinstance(channels, bool):
        if not 1 <= channels <= 512:
            raise UserError(f"channels={channels} is no number of bands: give 1 to 512")
    else:
        check_choice("channels", channels, NAMED_CHANNELS)


def check_value_range(value_range: list[float] | None, units: str | None, channels: str | int) -> None:
    """Raise `UserError` unless they are two rising numbers and what these are in, of channels that have units."""
    if value_range is None:
        if units is not None:
            raise UserError(f"units={units!r} says what value_range is in: give value_range, too")
        return
    if len(value_range) != 2 or not value_range[0] < value_range[1]:
        raise UserError(
            f"value_range={value_range} is no range: give two numbers, the lower first, such as [-1000, 1000]"
        )
    if channels in ("LA", "RGBA"):
        raise UserError(f"value_range: the alpha of channels={channels!r} has no units, give channels without it")


def check_ink(ink: str | None, channels: str | int) -> None:
    """Raise `UserError` unless ink is a colour and the channels have an alpha for it, or there is none."""
    if ink is None:
        return
    colour_of(ink, "ink")
    if channels not in ("LA", "RGBA"):
        raise UserError(f"ink={ink} becomes colour with alpha: set channels to LA or RGBA, not {channels}")


def colour_of(colour: str, name: str = "background") -> tuple[int, ...]:
    """Red, green and blue, to 255, of a colour by name or as ``#rrggbb``; raises `UserError` if it is none."""
    try:
        return ImageColor.getrgb(colour)[:3]
    except (ValueError, AttributeError):
        raise UserError(f"{name}={colour!r} is no colour: give a name, or #rrggbb") from None


def check_bucket_options(size: int, max_aspect: float | None, multiple: int) -> None:
    """Raise `UserError` if no buckets could be made so; sizes are those of `check_image_options`."""
    if type(multiple) is not int or multiple < 1:
        raise UserError(f"bucket_multiple={multiple!r} is no number of pixels: give an integer of at least 1")
    if max_aspect is None:
        return
    if type(max_aspect) not in (int, float) or not 1 < max_aspect < inf:
        raise UserError(f"max_aspect={max_aspect!r} is no ratio: give a number above 1, or null for squares")
    if size % multiple:
        raise UserError(f"size={size} must be a multiple of bucket_multiple={multiple} where max_aspect is given")
