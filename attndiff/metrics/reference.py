"""Real images to compare samples with: a model's training images and others of the same kind."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.select import Tables
from attndiff.data.subset import Subset
from attndiff.data.tables.splits import MissingPart
from attndiff.errors import UserError
from attndiff.tasks.prompts import are_classes, class_names_of, prompt_of
from attndiff.tasks.registry import TASKS, task_settings_of

DEFAULT_N = 1000  # images at most, where no number is asked for


@dataclass
class Reference:
    """The real images of an evaluation.

    Args:
        name: Of the data.
        train: Images that the model learned from, as far as is known.
        test: Images to compare samples with.
        halves: The data names no held-out part: ``train`` and ``test`` are two random halves of it, either of which
            the model may have learned from.
    """

    name: str
    train: ImageSet | Subset
    test: ImageSet | Subset
    halves: bool

    def choose(self, n: int, seed: int) -> tuple[Subset, Subset, Subset]:
        """``n`` test images, ``n`` training images for the floor, and the other training images, all shuffled."""
        rng = np.random.default_rng([seed, n])
        test, train = rng.permutation(len(self.test)), rng.permutation(len(self.train))
        return Subset(self.test, test[:n]), Subset(self.train, train[:n]), Subset(self.train, train[n:])

    def count(self, asked: int | None) -> int:
        """Images on each side: as asked, else as many as there are up to `DEFAULT_N`; raises `UserError`."""
        most = min(len(self.test), len(self.train))
        if asked is not None and asked > most:
            raise UserError(
                f"--n {asked} needs as many held-out and as many training images; the reference has "
                f"{len(self.test)} and {len(self.train)}: give --n {most} or less, or more data."
            )
        return asked or min(DEFAULT_N, most)

    def check_column(self, name: str, argument: str) -> None:
        """Raise `UserError` unless a column says something of every image; ``argument`` is how it was asked for."""
        known = self.test.texts().keys() & self.train.texts().keys()
        if name not in known:
            shown = ", ".join(sorted(known)) or "none"
            raise UserError(f"{argument} {name}: the data has no such column of texts or numbers; it has {shown}.")

    def describe(self) -> str:
        """What samples are compared with, in words."""
        part = "one half" if self.halves else "the held-out part"
        return f"{part} of {self.name} ({len(self.test)} images; {len(self.train)} others)"


def kinds_of(images: ImageSet | Subset, column: str | None) -> dict[str, list[int]]:
    """Images by what a column of texts or numbers says of them; none without a column."""
    found: dict[str, list[int]] = {}
    for i, value in enumerate(images.texts()[column] if column else []):
        found.setdefault(value, []).append(i)
    return dict(sorted(found.items()))


def model_settings(pipeline) -> dict[str, Any]:
    """Size, channels and ink of a model's images, as settings for reading others alike."""
    data = pipeline.config.data or {}
    channels = data.get("channels") or ["R", "G", "B"]
    named = all(len(name) == 1 for name in channels)
    own = {"size": pipeline.image_side, "channels": "".join(channels) if named else len(channels)}
    return {**own, "ink": data["ink"]} if "ink" in data else own


def open_reference(config: DataConfig, pipeline, seed: int = 0) -> Reference:
    """Open the images for a model; where the data has no test or validation part, it is halved at random.

    Args:
        config: The data; its columns of captions or classes are looked for where it does not name them.
        pipeline: The model.
        seed: Of the halves.

    Raises:
        UserError: If data and model do not go together.
    """
    config = fit_data(config, pipeline)
    names = class_names_of(pipeline) if prompt_of(pipeline).setting == "label_column" else None
    train = ImageSet(config, names)
    test = _open_test(config, train.class_names)
    if test is not None:
        return Reference(train.origin, train, test, False)
    if len(train) < 2:
        raise UserError(f"{config.path}: one image cannot be divided into two halves, give more.")
    order = np.random.default_rng(seed).permutation(len(train))
    middle = len(train) // 2
    return Reference(train.origin, Subset(train, order[middle:]), Subset(train, order[:middle]), True)


def fit_data(config: DataConfig, pipeline) -> DataConfig:
    """The data as a model takes it, with the columns that its condition needs; raises `UserError` if it cannot."""
    return _with_columns(_checked(config, pipeline), pipeline)


def _open_test(config: DataConfig, class_names: list[str] | None) -> ImageSet | None:
    """The part called test, which no training looks at, else the held-out one, else None."""
    if config.validation is None:
        try:
            return ImageSet(config.replace(split="test"), class_names)
        except MissingPart:
            pass
    return open_validation(config, class_names)


def _checked(config: DataConfig, pipeline) -> DataConfig:
    """Raise `UserError` unless the images are read in the model's size and channels."""
    side, channels = pipeline.image_side, pipeline.image_channels
    mine = config.channels if isinstance(config.channels, int) else len(config.channels)
    if mine != channels:
        raise UserError(
            f"{config.path}: channels={config.channels} makes {mine} of each image, and the model draws {channels}; "
            "give data of the model's kind."
        )
    if config.stream:
        raise UserError(f"{config.path}: a stream cannot be measured against; name a folder or parquet file of it.")
    if config.size != side:
        raise UserError(f"{config.path}: size={config.size}, and the model draws {side} px; leave out size.")
    return _in_units(config, pipeline.config.data or {}).replace(max_aspect=None)  # samples are square


def _in_units(config: DataConfig, data: dict) -> DataConfig:
    """The data read over the range of a model's own, where that has one and the data's own settings do not say it.

    Not where white is zero in what the model learned from: files of that kind say it themselves.
    """
    low, high = data.get("value_range", (0, 1))
    of_numbers = data.get("bit_depth", 8) != 32 or (low, high) == (0, 1)
    if config.value_range is not None or of_numbers or low > high:
        return config
    return config.replace(value_range=[low, high], units=data.get("units"))


def _with_columns(config: DataConfig, pipeline) -> DataConfig:
    """The configuration with the columns that the model's condition and the extractor need."""
    prompt, table, names = prompt_of(pipeline), Tables().of(config), class_names_of(pipeline)
    found = {}
    if prompt.is_given and getattr(config, prompt.setting) is None:
        found[prompt.setting] = prompt.find_column(table, names)
    if config.label_column is None and "label_column" not in found:
        found["label_column"] = next((name for name in table.columns if are_classes(table, name, set())), None)
    settings = task_settings_of(pipeline)
    needed = {column.name: column.kind for column in TASKS[settings.name].columns(settings)}
    return config.replace(**found, columns={**needed, **config.columns})
