"""Training on a stream: what is known of it before step 1, and its batches.

The order of the rows is that of `attndiff.data.streams`. The process that trains reads the rows, still encoded, and
hands them to the loader workers, which decode them; so the batches are the same with any number of workers. Noise,
level, dropout and flip follow from (seed, epoch, place in the run). A process reads the lanes that its share of the
batch takes rows from: where the number of lanes is a multiple of the processes, they read shards of their own, and
otherwise neighbours read a lane in common and each leaves the other's rows undecoded.

An image that cannot be read is left out, noted in the run's ``stream.jsonl``, and its place in the batch is taken by
one of the images known before step 1, always the same one.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from attndiff.data.columns import CAPTION, LABEL
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.streams.blocks import lane_count
from attndiff.data.streams.encoded import EncodedImages, NamedRow, readable
from attndiff.data.streams.ledger import Ledger
from attndiff.data.streams.stream import Stream
from attndiff.data.tables.shards import SHARD_SUFFIXES
from attndiff.data.tables.splits import MissingPart
from attndiff.data.tables.table import encoded_image
from attndiff.errors import UserError
from attndiff.training.batches import OPEN_END, WORKER_TIMEOUT_S, DrawnDataset
from attndiff.training.config import TrainConfig
from attndiff.training.stopping import ignore_signals

HEAD = 2048  # rows read before step 1: for the tokenizer, sigma_data and the kinds of images
HELD_OUT = 256  # of a part of its own, as many as a validation uses
HELD_OUT_SHARE = 1 / 8  # of the head, where the data has no such part
SPARES = 256  # images that stand in for those that cannot be read


class StreamedImages(EncodedImages):
    """The head of a stream, which stands for its training images, and the stream itself.

    Args:
        head: Readable training images from the beginning of the stream.
        stream: All of it.
        ledger: What the run learns of it.
    """

    def __init__(self, head: EncodedImages, stream: Stream, ledger: Ledger):
        super().__init__(head.rows, head.config, head.class_names, head.bit_depth, head.ranges)
        self.stream, self.ledger = stream, ledger

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the head's images as they are stored, with their captions or classes."""
        total = hashlib.sha256()
        for row, (name, cells) in zip(self, self.rows, strict=True):
            for column in (self.config.image_column, *self.config.columns):
                image = encoded_image(cells[column], name)
                total.update(image if isinstance(image, bytes) else image.read_bytes())
            total.update(json.dumps([name, row.get(CAPTION.name, []), row.get(LABEL.name)]).encode())
        return total.hexdigest()

    @property
    def skipped(self) -> list[str]:
        """Images left out so far, by all processes of the run."""
        return self.ledger.skipped()


def open_streamed(
    data: DataConfig, config: TrainConfig, class_names: list[str] | None = None
) -> tuple[StreamedImages, EncodedImages | ImageSet, list[str]]:
    """Open a stream: its head for the training images, held-out images, and notes of what holds.

    Args:
        data: What to read and how.
        config: The run's settings.
        class_names: Names and order of the classes, if the run has learned them already.

    Raises:
        UserError: The data cannot be used.
    """
    stream = Stream(data)
    ledger = Ledger(Path(config.out) / "stream.jsonl", stream.shards)
    class_names = class_names or stream.class_names()
    heads = stream.head(HEAD)
    validation = _own_validation(data, class_names)
    notes = [_order_note(stream, config.optim.batch_size)]
    if validation is None:
        stream.held_out = {shard: int(len(rows) * HELD_OUT_SHARE) for shard, rows in heads.items()}
        rows = [row for shard in heads for row in heads[shard][: stream.held_out[shard]]]
        if rows:
            validation = readable(EncodedImages(rows, data, class_names), data.path)
            notes.append(
                f"no held-out images are named: the first rows of {len(heads)} shards, {len(rows)} in all, are held "
                "out (data.validation)"
            )
    rows = [row for shard in heads for row in heads[shard][stream.held_out.get(shard, 0) :]]
    images = StreamedImages(readable(EncodedImages(rows, data, class_names), data.path), stream, ledger)
    if data.caption_column and not any(any(row[CAPTION.name]) for row in images):
        raise UserError(
            f"{data.path}: the first {len(images)} captions in column {data.caption_column!r} are empty; name another "
            "data.caption_column"
        )
    if validation is None:
        validation = images
        notes.append("too few images to hold any out: 'held-out' losses below are of the training images")
    return images, validation, notes


def _order_note(stream: Stream, batch_size: int) -> str:
    lanes = lane_count(batch_size, stream.shards)
    return (
        f"the data is a stream in {stream.shards} shard(s): each epoch orders them anew, reads {lanes} at a time and "
        f"shuffles rows among {stream.config.shuffle_buffer}"
    )


def _own_validation(data: DataConfig, class_names: list[str] | None) -> EncodedImages | ImageSet | None:
    """Held-out images from the path that names them, or from the data's own part; None if it has none."""
    if data.validation is not None:
        folder = Path(data.validation)
        if folder.is_dir() and not any(file.suffix in SHARD_SUFFIXES for file in folder.rglob("*")):
            return open_validation(data, class_names)
        part = Stream(data.replace(path=data.validation, split="validation", config=None), whole=True)
    else:
        try:
            part = Stream(data.replace(split="validation"))
        except MissingPart:
            return None
    rows = [row for rows in part.head(HELD_OUT).values() for row in rows]
    return readable(EncodedImages(rows, data, class_names), part.config.path)


@dataclass
class StreamRow:
    """A row of the stream at a place of the run.

    Args:
        named: Name and columns.
        epoch: Times that its shard has been dealt before.
        place: Samples of the run before it.
    """

    named: NamedRow
    epoch: int
    place: int


class StreamSampler:
    """Micro-batches of `StreamRow` for one rank, from any step on.

    The rows of a step's global batch come from the lanes in turn, an equal share from each; each rank takes its slice
    of it, micro-batch by micro-batch, as in `attndiff.data.order.batches.BatchSampler`.

    Args:
        images: The stream.
        micro_batch: Samples a process handles at once.
        accumulation: Micro-batches per step.
        seed: Run seed.
        rank: This process.
        world_size: Number of processes.
        start_step: First step.
        end_step: Step before which to end.
    """

    def __init__(self, images: StreamedImages, micro_batch, accumulation, seed, rank, world_size, start_step, end_step):
        self.images, self.micro_batch, self.accumulation, self.seed = images, micro_batch, accumulation, seed
        self.rank, self.start_step, self.end_step = rank, start_step, end_step
        self.batch_size = micro_batch * accumulation * world_size
        self.lanes = lane_count(self.batch_size, images.stream.shards)
        self.share = self.batch_size // self.lanes  # rows of a step from each lane
        self._open: dict[int, Iterator] = {}
        self._read: dict[int, int] = {}  # rows of the run that a lane has given or passed over

    def __iter__(self) -> Iterator[list[StreamRow]]:
        self._open.clear()
        self._read.clear()
        for step in range(self.start_step, self.end_step):
            for micro in range(self.accumulation):
                first = (self.rank * self.accumulation + micro) * self.micro_batch
                yield [self._row(step, first + i) for i in range(self.micro_batch)]

    def _row(self, step: int, offset: int) -> StreamRow:
        """The row at a place of a step's global batch."""
        lane, within = divmod(offset, self.share)
        wanted = step * self.share + within
        if lane not in self._open:
            stream, ledger = self.images.stream, self.images.ledger
            self._open[lane] = stream.lane(lane, self.lanes, self.seed, ledger, wanted)
            self._read[lane] = wanted
        for _ in range(wanted - self._read[lane]):  # rows of other ranks
            next(self._open[lane])
        named, epoch = next(self._open[lane])
        self._read[lane] = wanted + 1
        return StreamRow(named, epoch, step * self.batch_size + offset)


class StreamedDataset(DrawnDataset):
    """Samples of rows that the sampler hands over; a spare one with a reason where the row cannot be used.

    Args:
        drawn: Samples of the stream's head, with the settings of the run.
    """

    def __init__(self, drawn: DrawnDataset):
        spares = drawn.images.of(drawn.images.rows[:SPARES])
        super().__init__(spares, drawn.conditioning, drawn.seed, drawn.drop, drawn.flip, drawn.make_sample)

    def __getitem__(self, key: StreamRow) -> dict[str, torch.Tensor | str]:
        one, skipped = self.images.of([key.named]), ""
        try:
            sample = self.sample(one[0], key.epoch, key.place)
        except UserError as error:
            spare = self.images[key.place % len(self.images)]
            sample, skipped = self.sample(spare, key.epoch, key.place), str(error)
        return {**sample, "skipped": skipped}


def stream_loader(
    config: TrainConfig, dataset: DrawnDataset, accumulation: int, rank: int, world_size: int, start_step: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of one rank from ``start_step`` to the end of the run; the arguments of `training_loader`.

    Raises:
        UserError: A shard cannot be read, or has changed since the run began, or an image cannot be read and
            ``data.on_error`` is "raise".
    """
    optim, images = config.optim, dataset.images
    micro_batch = optim.batch_size // (accumulation * world_size)
    end = optim.steps or OPEN_END
    sampler = StreamSampler(images, micro_batch, accumulation, config.seed, rank, world_size, start_step, end)
    streamed = StreamedDataset(dataset)
    loader = DataLoader(
        streamed,
        batch_sampler=sampler,
        num_workers=optim.workers,
        worker_init_fn=ignore_signals,
        timeout=WORKER_TIMEOUT_S if optim.workers else 0,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        for message in filter(None, batch.pop("skipped")):
            if config.data.on_error == "raise":
                raise UserError(message)
            images.ledger.note_skipped(message)
        yield batch
