"""Captions beside the images of a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attndiff.apps.data_settings import data_config
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset
from attndiff.data.tables.listing import list_folder
from attndiff.errors import UserError
from attndiff.lens.pictures import attention_picture
from attndiff.metrics.captions.measure import write_all
from attndiff.metrics.captions.sheet import SHOWN
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import model_settings
from attndiff.progress import progress
from attndiff.tasks.registry import task_of
from attndiff.viewing import as_picture, window_of

SUFFIX = ".txt"  # of what training reads beside an image
AT_ONCE = 256  # images in memory


@dataclass
class Captioned:
    """What became of a folder's images.

    Args:
        images: Those that captions were written of.
        captions: One each.
        kept: How many images had a caption, which stays.
        unread: Images that could not be read, each with the reason.
        looks: Of the first images, where the model looked for each word; empty unless that was asked for.
    """

    images: Subset
    captions: list[str]
    kept: int
    unread: list[tuple[str, str]]
    looks: list[Image.Image]


def check_writes(pipeline, name: str) -> None:
    """Raise `UserError` unless a model writes captions; ``name`` is what messages call it."""
    if task_of(pipeline).makes != "captions":
        raise UserError(f"{name} draws images: sample from it with attndiff sample; captions are what others write.")


def caption_folder(
    pipeline, folder: Path, search: dict, again: bool = False, overrides: Sequence[str] = (), looks: bool = False
) -> Captioned:
    """Write a caption beside every image of a folder, ``name.txt`` beside ``name.png``, as training reads it.

    Args:
        pipeline: An `AttnDiffCaptionPipeline`.
        folder: With images, in it and below.
        search: Arguments of the pipeline's call.
        again: Replace the captions that are there.
        overrides: Settings of how images are read, ``KEY=VALUE``.
        looks: Draw where the model looked for each word of the first captions, too.

    Raises:
        UserError: If there are no images, captions beside them would not be read, or the search cannot be made.
    """
    _check_folder(folder)
    config = data_config(str(folder), list(overrides), model_settings(pipeline)).replace(named_parts=False)
    images = ImageSet(config)
    paths = _caption_paths(images, folder)
    wanted = [i for i, path in enumerate(paths) if again or not path.exists()]
    captions, drawn = [], []
    for start in progress(range(0, len(wanted), AT_ONCE), "Writing captions", unit="batch"):
        chosen = Subset(images, wanted[start : start + AT_ONCE])
        output = write_all(pipeline, chosen, {**search, "output_attention_maps": looks and not start})
        for i, caption in zip(chosen.indices, output.captions, strict=True):
            paths[i].write_text(caption + "\n", encoding="utf-8")
        captions += output.captions
        if output.attention_maps:
            drawn = _looks(chosen, output)
    return Captioned(Subset(images, wanted), captions, len(paths) - len(wanted), images.skipped, drawn)


def _looks(images: Subset, output) -> list[Image.Image]:
    """Where a model looked for every word, of the first images."""
    data, pixels = images.describe(), Subset(images, range(min(SHOWN, len(images)))).tensor()
    pictures = [as_picture(as_image(one, data), window_of(data)) for one in pixels]
    each = zip(pictures, output.tokens, output.attention_maps, strict=False)  # no more than there are pictures
    return [attention_picture(picture, tokens, maps, shares=False) for picture, tokens, maps in each]


def _check_folder(folder: Path) -> None:
    """Raise `UserError` unless texts beside the images of a folder would be read."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one with images.")
    tables = [name for name in list_folder(folder).tables if "/" not in name]
    if tables:
        raise UserError(f"{folder / tables[0]} says what the images are, and texts beside them are not read: move it.")


def _caption_paths(images: ImageSet, folder: Path) -> list[Path]:
    """Where the caption of every image stands; raises `UserError` where two would have one."""
    seen: dict[Path, str] = {}
    for i in range(len(images)):
        name = images.name(i)
        path = (folder / name).with_suffix(SUFFIX)
        if path in seen:
            raise UserError(f"{path} would be the caption of {seen[path]} and of {name}: give each a name of its own.")
        seen[path] = name
    return list(seen)
