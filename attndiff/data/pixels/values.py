"""Numbers as files hold them, the units that they are in, and the levels that they become."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from attndiff.errors import UserError

# The highest level of a type; the lowest is 0.
PEAK = {"uint8": 255, "uint16": 65535, "float32": 1}
SHARES = (0.001, 0.01, 0.1, 1)  # of values clipped, as notes tell them apart
ASK = "set data.value_range: [low, high]"


@dataclass(frozen=True)
class ValueRange:
    """What the lowest and the highest level of an image stand for.

    Args:
        low: Of the lowest; above `high` where the lowest number is the brightest.
        high: Of the highest.
        units: Of both, such as "HU"; None where nobody says.
    """

    low: float
    high: float
    units: str | None = None

    def __str__(self) -> str:
        return f"{self.low:.10g} to {self.high:.10g}" + (f" {self.units}" if self.units else "")


class NoSetRange(UserError):
    """Values that are no levels, where nobody says which range they are of.

    Args:
        message: The sentence.
        found: Least and greatest of them.
    """

    def __init__(self, message: str, found: tuple[float, float] | None = None):
        super().__init__(message)
        self.found = found


@dataclass
class Values:
    """Numbers as a file holds them, and what it says of them.

    Args:
        numbers: Of any shape and numeric type.
        bits: Significant bits of one.
        slope: What a value grows by where its number grows by 1.
        intercept: The value of the number 0.
        has_units: Whether the file says what values are, rather than numbers alone.
        units: Of the values, if it names them.
        white_is_zero: Whether the lowest number is the brightest.
        missing: The number that stands for no value.
        notes: What is to be said of how they were read.
    """

    numbers: np.ndarray
    bits: int
    slope: float = 1.0
    intercept: float = 0.0
    has_units: bool = False
    units: str | None = None
    white_is_zero: bool = False
    missing: float | None = None
    notes: list[str] = field(default_factory=list)

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The values of some numbers, in float64."""
        return numbers.astype(np.float64) * self.slope + self.intercept

    def range(self) -> ValueRange | None:
        """What the full range of the bits stands for, if the file says it."""
        if not self.has_units:
            return None
        ends = self.of(np.array([0, 2**self.bits - 1])).tolist()
        return ValueRange(*(ends[::-1] if self.white_is_zero else ends), self.units)


@dataclass
class Levels:
    """What numbers became.

    Args:
        pixels: In their shape; uint8, uint16 or float32, over the range of `PEAK`.
        bits: Of a number in the file.
        found: Least and greatest value.
        stands_for: What 0 and the peak are, where file or setting say it.
    """

    pixels: np.ndarray
    bits: int
    found: tuple[float, float]
    stands_for: ValueRange | None


def to_levels(values: Values, value_range: ValueRange | None, name: str, notes: list[str]) -> Levels:
    """Levels of values: over a range that is set, else over the full range of their bits.

    Args:
        values: Of an image, without its alpha.
        value_range: What the levels are to stand for.
        name: What messages call the image.
        notes: Are added to.

    Raises:
        UserError: If there are none, or some are missing or not finite.
        NoSetRange: If no range is set, and their type has none.
    """
    found = _found(values, name)
    notes += values.notes
    if value_range is not None:
        pixels = _placed(values, value_range, name, notes)
        return Levels(pixels, values.bits, found, replace(value_range, units=value_range.units or values.units))
    pixels = full_range(values.numbers, values.bits, name, notes, found)
    if values.white_is_zero:
        pixels = PEAK[str(pixels.dtype)] - pixels
        notes.append("white is zero: inverted")
    if pixels.dtype == np.uint16:
        notes.append("16-bit scaled")
    return Levels(pixels, 8 * pixels.itemsize, found, values.range())


def opacity(alpha: np.ndarray, bits: int, dtype: np.dtype, name: str) -> np.ndarray:
    """Alpha over the full range of its bits, in the type that the colours' levels have; raises `NoSetRange`."""
    _check_numbers(alpha, name)
    levels = full_range(alpha, bits, name, [])
    return levels if levels.dtype == dtype else (levels / PEAK[str(levels.dtype)]).astype(dtype)


def full_range(
    numbers: np.ndarray, bits: int, name: str, notes: list[str], found: tuple[float, float] | None = None
) -> np.ndarray:
    """Numbers in a type of `PEAK`, over its full range.

    Args:
        numbers: Unsigned integers of up to ``bits`` bits, truth values, or floating point numbers from 0 to 1.
        bits: Significant bits of one.
        name: What messages call the image.
        notes: Are added to.
        found: Least and greatest that is no missing value, for what a refusal says; None: of all.

    Raises:
        NoSetRange: If they are others.
    """
    if numbers.dtype.kind == "f":
        numbers = numbers.astype(np.float32)
        if not (numbers.min() >= 0.0 and numbers.max() <= 1.0):
            low, high = found or (float(numbers.min()), float(numbers.max()))
            sentence = f"floating point values from {low:g} to {high:g}: {ASK}, or scale them to lie from 0 to 1"
            raise NoSetRange(f"{name}: {sentence}", (low, high))
        return numbers
    if numbers.dtype.kind not in "ub" or bits > 16:
        low, high = found or (float(numbers.min()), float(numbers.max()))
        sentence = f"{bits}-bit {numbers.dtype} has no set range, and its values lie from {low:g} to {high:g}: {ASK}"
        raise NoSetRange(f"{name}: {sentence}, or save as 8 or 16-bit unsigned", (low, high))
    dtype = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    if bits not in (8, 16):
        notes.append(f"{bits}-bit scaled to {8 * dtype.itemsize}-bit")
        numbers = np.rint(numbers.astype(np.float64) * (PEAK[str(dtype)] / (2**bits - 1)))
    return numbers.astype(dtype)


def common_range(ranges: Collection[ValueRange | None], origin: str) -> ValueRange | None:
    """What levels stand for in all images of a data set; None where nobody says it.

    Of images that differ only in whether white is zero, the numbers mean nothing in common, and the pictures all.

    Args:
        ranges: Each that one of the images has.
        origin: What messages call the data.

    Raises:
        UserError: If they differ.
    """
    ends = {known and (known.low, known.high) for known in ranges}
    if len(ends) <= 1:
        units = {known and known.units for known in ranges}
        return next(iter(ranges), None) if len(units) <= 1 else ValueRange(*ends.pop())
    if None not in ends and len({tuple(sorted(pair)) for pair in ends}) == 1:
        return None
    told = " and ".join(sorted("none" if known is None else str(known) for known in ranges)[:2])
    raise UserError(f"{origin}: its files state different value ranges, such as {told}: {ASK}, for all of them")


def _found(values: Values, name: str) -> tuple[float, float]:
    """Least and greatest value of those that are not missing; raises `UserError` unless all are numbers."""
    numbers = values.numbers
    if not numbers.size:
        raise UserError(f"{name}: has no pixels, replace or remove it")
    _check_numbers(numbers, name)
    present = numbers if values.missing is None else numbers[numbers != values.missing]
    numbers = present if present.size else numbers
    low, high = sorted(values.of(np.array([numbers.min(), numbers.max()])).tolist())
    return low, high


def _check_numbers(numbers: np.ndarray, name: str) -> None:
    if numbers.dtype.kind not in "buif":
        raise UserError(f"{name}: holds {numbers.dtype} and no numbers, save it as integers or floating point")
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise UserError(f"{name}: floating point values of NaN or infinity, replace them by numbers")


def _placed(values: Values, value_range: ValueRange, name: str, notes: list[str]) -> np.ndarray:
    """Values as float32 in [0, 1], the ends of the range at 0 and 1."""
    missing = 0 if values.missing is None else int((values.numbers == values.missing).sum())
    if missing:
        raise UserError(
            f"{name}: {missing} of its values are marked as missing (nodata {values.missing:g}), fill them in or cut "
            "them off"
        )
    low, high = value_range.low, value_range.high
    numbers = values.of(values.numbers)
    outside = float(np.mean((numbers < low) | (numbers > high)))
    if outside:
        share = next(share for share in SHARES if outside <= share)
        notes.append(f"up to {100 * share:g} % of the values outside of data.value_range: clipped")
    if values.white_is_zero:
        notes.append("white is zero: not inverted under data.value_range")
    return ((np.clip(numbers, low, high) - low) / (high - low)).astype(np.float32)
