"""Opening a run's data: its training and held-out images."""

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import AutoencoderKL

from attndiff.data.parts import open_parts
from attndiff.data.pixels.values import common_range
from attndiff.data.reading.readers import Readers
from attndiff.data.rows import Rows
from attndiff.errors import UserError
from attndiff.folder.shipped import bundled_data
from attndiff.tasks.prompts import PROMPTS
from attndiff.training.config import TrainConfig
from attndiff.training.latents import FOLDER, LatentSet
from attndiff.training.state.learned import INTAKE
from attndiff.training.streams import open_streamed

DECODED = "decoded"  # in a run's folder, by version of the intake


@dataclass
class Opened:
    """A run's data.

    Args:
        images: To train on.
        validation: Held out; the training images themselves where there are too few.
        notes: What is to be said of them, a sentence each.
    """

    images: Rows
    validation: Rows
    notes: list[str]


def open_data(config: TrainConfig, class_names: list[str] | None = None) -> Opened:
    """Open the data of a run.

    Args:
        config: The run's settings.
        class_names: Names and order of a stream's classes, if the run has learned them already.

    Raises:
        UserError: If it cannot be used, or has no captions where the condition is text.
    """
    data = config.data.replace(path=str(bundled_data(config.data.path) or config.data.path))
    streamed = open_streamed(data, config, class_names) if data.stream else open_parts(data, _readers(config))
    opened = Opened(*streamed)
    common_range(opened.images.ranges | opened.validation.ranges, data.path)
    PROMPTS[config.condition.kind].check(opened.images)
    return opened


def _readers(config: TrainConfig) -> Readers:
    """The processes of the run, which share the reading out."""
    state, folder = PartialState(), Path(config.out) / DECODED / str(INTAKE)
    if state.num_processes == 1:
        return Readers(folder)
    return Readers(folder, state.process_index, state.num_processes, lambda mine: gather_object([mine]))


def encoded(config: TrainConfig, opened: Opened, vae: AutoencoderKL) -> Opened:
    """The same data as latents, which are written into the run's folder where they are not there yet."""
    folder = Path(config.out) / FOLDER
    latents = LatentSet(opened.images, vae, folder, mirror=config.optim.flip > 0)
    alike = opened.validation is opened.images
    return replace(opened, images=latents, validation=latents if alike else LatentSet(opened.validation, vae, folder))


def bucket_note(config: TrainConfig, images: Rows, multiple: int) -> str:
    """How many images each bucket has; raises `UserError` if the network cannot take their sizes."""
    if config.data.bucket_multiple % multiple:
        raise UserError(
            f"data.bucket_multiple {config.data.bucket_multiple} must be a multiple of {multiple} for this network."
        )
    counts = {f"{width}x{height}": len(members) for (height, width), members in images.by_shape().items()}
    note = "buckets (width x height): " + ", ".join(f"{name}: {count}" for name, count in counts.items())
    small = [name for name, count in counts.items() if count < config.optim.batch_size]
    if small:
        note += f"; a batch of {', '.join(small)} shows images more than once, as there are fewer than optim.batch_size"
    return note
