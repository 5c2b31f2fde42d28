"""What training would do to a data set, told before it starts: what is dropped, what is altered, what repeats."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from attndiff.data.cells import captioned, read_captions, read_labels
from attndiff.data.columns import Column
from attndiff.data.config import DataConfig
from attndiff.data.pixels.normalize import Normalized, Normalizer
from attndiff.data.pixels.row_images import make_normalizer, read_row
from attndiff.data.pixels.values import NoSetRange, ValueRange, common_range
from attndiff.data.select import Tables, select_rows
from attndiff.data.tables.names import printable
from attndiff.data.tables.table import ImageTable
from attndiff.errors import UserError
from attndiff.progress import progress

# Near duplicates are found by comparing thumbnails, 64 numbers a channel: some gigabytes of memory at this many.
MAX_COMPARED = 1_000_000
THUMBNAIL = 8
# Root mean square difference of thumbnails, of a range of 2, below which two images look the same.
NEAR = 0.02
SHOWN = 5


@dataclass
class Diagnosis:
    """What is in a data set and what training would do to it.

    Args:
        path: The data.
        rows: Images considered, after filters and split.
        usable: Of these, images that can be read.
        dropped: ``(file name, reason)`` of everything left out.
        altered: For each kind of alteration, the files it happens to.
        cropped: Share of an image's area that is cut off, on average.
        buckets: Images by the ``WIDTHxHEIGHT`` that they get in training; None without buckets.
        sizes: Images by original ``WIDTHxHEIGHT``.
        kinds: Images by original mode and depth.
        captions: Statistics of captions, lengths in characters and the most words; None if none were asked for.
        classes: Images by class; None if none were asked for.
        duplicates: Groups of files that are the same once normalised.
        near_duplicates: Pairs that look the same; None if there were too many images to compare.
        tensor: Shape of an image in training, of the square with buckets.
        values: Least and greatest value ``found`` in the files' own units, also of images that are dropped for want of
            a range, and what -1 and 1 stand for, ``low``, ``high`` and ``units``; None for what is not known.
        tokens: What becomes of captions as tokens, counts and a ``note``; None where nothing says how they are read.
    """

    path: str
    rows: int
    usable: int
    dropped: list[tuple[str, str]]
    altered: dict[str, list[str]]
    cropped: float
    buckets: dict[str, int] | None
    sizes: dict[str, int]
    kinds: dict[str, int]
    captions: dict[str, float] | None
    classes: dict[str, int] | None
    duplicates: list[list[str]]
    near_duplicates: list[tuple[str, str]] | None
    tensor: list[int]
    values: dict
    tokens: dict[str, int | str] | None = None

    def to_json(self) -> str:
        """Everything, by file name."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def to_text(self) -> str:
        """A page to read: counts, and a few names for each."""
        shape = " x ".join(str(n) for n in self.tensor)
        shape += " (channels x height x width)" + (" or another bucket" if self.buckets else "")
        lines = [f"{self.path}: {self.usable} of {self.rows} images usable, as {shape}"]
        lines += _section("Dropped", [f"{name}: {reason}" for name, reason in self.dropped])
        if self.altered:
            lines.append("Altered")
            lines += [f"  {kind}: {len(names)} ({_names(names)})" for kind, names in self.altered.items()]
        if self.cropped:
            lines.append(f"Cropped: {self.cropped:.1%} of an image's area on average")
        if self.buckets is not None:
            lines.append("Buckets (width x height): " + _counts(self.buckets))
        lines += ["Sizes: " + _counts(self.sizes), "Kinds: " + _counts(self.kinds)]
        lines.append("Values: " + _values_text(self.values))
        if self.captions is not None:
            lines.append("Captions: " + ", ".join(f"{name} {value:g}" for name, value in self.captions.items()))
        if self.tokens is not None:
            lines.append(f"Tokens: {self.tokens['note']}")
        if self.classes is not None:
            lines.append("Classes: " + _counts(self.classes))
        lines += _section("Duplicates", [" = ".join(group) for group in self.duplicates])
        if self.near_duplicates is None:
            lines.append(f"Near duplicates: not looked for among more than {MAX_COMPARED} images")
        else:
            lines += _section("Near duplicates", [" ~ ".join(pair) for pair in self.near_duplicates])
        return "\n".join(lines)


def _section(title: str, entries: list[str]) -> list[str]:
    more = [f"  and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{title}: {len(entries)}", *(f"  {printable(entry)}" for entry in entries[:SHOWN]), *more]


def _values_text(values: dict) -> str:
    """What is found and what it stands for, with the setting that would hold all of it where nobody says that."""
    if values["found"] is None:
        return "none found"
    low, high = (f"{value:.10g}" for value in values["found"])
    if values["low"] is None:
        return (
            f"{low} to {high} found, without a range common to all: data.value_range: [{low}, {high}] would hold them"
        )
    return f"{low} to {high} found; -1 and 1 stand for {ValueRange(values['low'], values['high'], values['units'])}"


def _names(names: list[str]) -> str:
    return ", ".join(map(printable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def _counts(counts: dict[str, int]) -> str:
    shown = ", ".join(f"{name}: {count}" for name, count in list(counts.items())[: 2 * SHOWN])
    return shown + (f" and {len(counts) - 2 * SHOWN} more" if len(counts) > 2 * SHOWN else "")


def diagnose(config: DataConfig, count_tokens: Callable[[list[str]], dict] | None = None) -> Diagnosis:
    """Read everything that a configuration names, by the same code as training, and report.

    Args:
        config: The data.
        count_tokens: Makes `Diagnosis.tokens` of captions.

    Raises:
        UserError: The data as a whole cannot be used; single bad images are reported, whatever `config.on_error`.
    """
    if config.stream:
        raise UserError(
            f"{config.path}: a stream is not read through; name one of its parquet files, or a folder of some images"
        )
    normalizer, table = make_normalizer(config), Tables().of(config)
    passing, rows = select_rows(table, config)
    rows, silent = captioned(table, rows, config.caption_column)
    images = _Images(table, normalizer, config.row_columns(), rows)
    captions = classes = tokens = None
    if config.caption_column:
        texts = [text for row in read_captions(table, rows, config.caption_column) for text in row]
        captions, tokens = _caption_statistics(texts), count_tokens and count_tokens(texts)
    if config.label_column:
        labels, names = read_labels(table, passing, rows, config.label_column, None)
        counts = Counter(labels)
        classes = {name: counts[number] for number, name in enumerate(names)}
    return Diagnosis(
        path=config.path,
        rows=len(rows) + len(silent),
        usable=len(images.names),
        dropped=[*table.left_out, *silent, *images.dropped],
        altered=dict(images.altered),
        cropped=float(np.mean(images.cropped or [0])),
        buckets=_by_count(images.buckets) if config.max_aspect else None,
        sizes=_by_count(images.sizes),
        kinds=_by_count(images.kinds),
        captions=captions,
        classes=classes,
        duplicates=[names for names in images.by_content.values() if len(names) > 1],
        near_duplicates=images.near_duplicates(),
        tensor=[len(normalizer.describe()["channels"]), config.size, config.size],
        values=images.values(config.path),
        tokens=tokens,
    )


class _Images:
    """What one pass over the images finds."""

    def __init__(self, table: ImageTable, normalizer: Normalizer, columns: tuple[Column, ...], rows: list[int]):
        self.names: list[str] = []
        self.dropped: list[tuple[str, str]] = []
        self.altered: dict[str, list[str]] = defaultdict(list)
        self.by_content: dict[bytes, list[str]] = defaultdict(list)
        self.sizes, self.kinds, self.buckets = Counter(), Counter(), Counter()
        self.cropped: list[float] = []
        self.found: list[tuple[float, float]] = []  # least and greatest value of each image
        self.ranges: set[ValueRange | None] = set()
        self._normalizer, self._depths, self._unset = normalizer, {8}, False
        self._thumbnails: dict[bytes, np.ndarray] = {}
        for row in progress(rows, "Reading images"):
            name = table.names[row]
            try:
                self._add(name, read_row(normalizer, columns, partial(table.image, row), name)[0])
            except UserError as error:
                if isinstance(error, NoSetRange):
                    self._unset = True
                    self.found.append(error.found)
                self.dropped.append((name, str(error).removeprefix(f"{name}: ")))

    def _add(self, name: str, image: Normalized) -> None:
        self.names.append(name)
        self.sizes["{1}x{0}".format(*image.geometry.size)] += 1
        self.kinds[image.kind] += 1
        self.buckets["{1}x{0}".format(*image.levels.shape[1:])] += 1
        self.cropped.append(image.geometry.cropped)
        self.found.append(image.found)
        self.ranges.add(image.stands_for)
        self._depths.add(8 * image.levels.itemsize)
        for note in image.notes:
            self.altered[note].append(name)
        content = hashlib.sha256(image.levels).digest()
        self.by_content[content].append(name)
        if content not in self._thumbnails:
            self._thumbnails[content] = thumbnail(self._normalizer.tensor(image.levels))

    def values(self, origin: str) -> dict:
        """See `Diagnosis.values`."""
        found = [min(low for low, _ in self.found), max(high for _, high in self.found)] if self.found else None
        try:
            facts = self._normalizer.describe(max(self._depths), stands_for=common_range(self.ranges, origin))
        except UserError:
            facts = {}
        low, high = (None, None) if self._unset else facts.get("value_range", (None, None))
        return {"found": found, "low": low, "high": high, "units": facts.get("units")}

    def near_duplicates(self) -> list[tuple[str, str]] | None:
        """Pairs of different images with nearly equal thumbnails."""
        if len(self._thumbnails) > MAX_COMPARED:
            return None
        if not self._thumbnails:
            return []
        names = [self.by_content[content][0] for content in self._thumbnails]
        return [(names[i], names[j]) for i, j in near_pairs(np.stack(list(self._thumbnails.values())))]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """``(C, H, W)`` averaged over an 8 x 8 grid and flattened ``(C * 64,)``, one value a cell however small it is."""
    for axis in (1, 2):
        length = image.shape[axis]
        cells = (np.arange(THUMBNAIL) * length) // THUMBNAIL
        widths = np.maximum(np.diff(np.append(cells, length)), 1)
        widths = np.expand_dims(widths, [0, 2] if axis == 1 else [0, 1])
        image = np.add.reduceat(image, cells, axis=axis) / widths
    return image.astype(np.float32).ravel()


def near_pairs(thumbnails: np.ndarray, chunk: int = 512) -> list[tuple[int, int]]:
    """Pairs ``i < j`` of thumbnails ``(N, D)`` whose root mean square difference is below `NEAR`.

    Two that are near are no farther apart along any one direction, so that in the order along the direction in which
    they differ most only few come into question.
    """
    radius = NEAR * thumbnails.shape[1] ** 0.5
    places = _principal(thumbnails)
    order = np.argsort(places)
    places, thumbnails = places[order], thumbnails[order]
    squares = np.square(thumbnails).sum(axis=1)
    pairs = []
    for start in range(0, len(thumbnails), chunk):
        here = slice(start, start + chunk)
        ahead = slice(start, np.searchsorted(places, places[here][-1] + radius, side="right"))
        distances = squares[here, None] + squares[ahead] - 2 * thumbnails[here] @ thumbnails[ahead].T
        for i, j in np.argwhere(distances < radius**2):
            if i < j:
                pairs.append(tuple(sorted((int(order[start + i]), int(order[start + j])))))
    return sorted(pairs)


def _principal(thumbnails: np.ndarray) -> np.ndarray:
    """Places ``(N,)`` along the direction, of length one, in which the thumbnails differ most."""
    centred = thumbnails - thumbnails.mean(axis=0)
    return centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]


def _caption_statistics(texts: list[str]) -> dict[str, float]:
    lengths = [len(text) for text in texts if text]
    return {
        "number": len(texts),
        "distinct": len(set(texts)),
        "empty": len(texts) - len(lengths),
        "shortest": min(lengths),
        "median": float(np.median(lengths)),
        "longest": max(lengths),
        "words": max(len(text.split()) for text in texts),
    }


def _by_count(counts: Counter) -> dict[str, int]:
    return dict(counts.most_common())
