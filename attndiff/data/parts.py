"""The part of the data that is trained on and the part that is held out, each image decoded once."""

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.reading.readers import Readers
from attndiff.data.select import Tables
from attndiff.data.tables.names import printable
from attndiff.data.tables.splits import MissingPart
from attndiff.errors import UserError

HELD_OUT_SHARE = 0.05
NAMED = 3  # files left out, in a sentence


def open_parts(config: DataConfig, readers: Readers | None = None) -> tuple[ImageSet, ImageSet, list[str]]:
    """Training and held-out images; where the data names no held-out ones, a twentieth of it.

    Args:
        config: The data.
        readers: As of `ImageSet`.

    Returns:
        The two sets, which are one where the data is too small to be divided, and notes of what was decided.

    Raises:
        UserError: If the data cannot be used.
    """
    tables = Tables()
    if config.validation is None and not _has_validation(config, tables):
        return _divided(config.replace(validation=HELD_OUT_SHARE), config, tables, readers)
    images = ImageSet(config, None, tables, readers)
    return images, open_validation(config, images.class_names, tables, readers), left_out_notes(images)


def _has_validation(config: DataConfig, tables: Tables) -> bool:
    """Whether the data has a part of that name."""
    try:
        tables.of(config.replace(split="validation"))
    except MissingPart:
        return False
    return True


def _divided(
    divided: DataConfig, whole: DataConfig, tables: Tables, readers: Readers | None
) -> tuple[ImageSet, ImageSet, list[str]]:
    """The two parts of data that names none; the whole data twice if one of them would be empty."""
    try:
        rest = ImageSet(divided, None, tables, readers)
        held_out = open_validation(divided, rest.class_names, tables, readers)
    except UserError:
        images = ImageSet(whole, None, tables, readers)
        note = "too few images to hold any out: 'held-out' losses below are of the training images"
        return images, images, [note, *left_out_notes(images)]
    note = f"no held-out images are named: {HELD_OUT_SHARE:.0%} of the data are held out (data.validation)"
    return rest, held_out, [note, *left_out_notes(rest)]


def left_out_notes(images: ImageSet) -> list[str]:
    """How much of the data is not read, and the first of it by name and reason; nothing where all is read."""
    if not images.skipped:
        return []
    first = "; ".join(printable(f"{name}: {reason}") for name, reason in images.skipped[:NAMED])
    more = ", ..." if len(images.skipped) > NAMED else ""
    files = "file is" if len(images.skipped) == 1 else "files are"
    return [f"{len(images.skipped)} {files} left out ({first}{more}); left_out.json in the run's folder names all"]
