"""Captions beside the images of a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attndiff.alpha import is_premultiplied
from attndiff.apps.captioning.evaluation import SHOWN, captions_beside
from attndiff.apps.data_settings import data_config
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset
from attndiff.data.tables.listing import list_folder
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.lens.pictures import attention_picture
from attndiff.metrics.captions.measure import write_all
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import model_settings
from attndiff.progress import progress
from attndiff.tasks.registry import task_of
from attndiff.tasks.task import as_given
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
    """

    images: Subset
    captions: list[str]
    kept: int
    unread: list[tuple[str, str]]

    def sheet(self) -> Image.Image:
        """The first images with their captions."""
        first = Subset(self.images, range(min(SHOWN, len(self.images))))
        return captions_beside(first, {"written": self.captions[: len(first)]})


def save_looks(pipeline, done: Captioned, search: dict, folder: Path) -> int:
    """Write a picture of where the model looks for every word, of the first images; how many.

    Args:
        pipeline: An `AttnDiffCaptionPipeline`.
        done: What was written.
        search: Arguments of the pipeline's call.
        folder: Where to write.
    """
    first, data = Subset(done.images, range(min(SHOWN, len(done.images)))), done.images.describe()
    folder.mkdir(parents=True, exist_ok=True)
    if len(first):
        given = as_given(first.tensor(), is_premultiplied(pipeline.config.data))
        output = pipeline(given, **search, output_attention_maps=True)
        for i, (tokens, maps) in enumerate(zip(output.tokens, output.attention_maps, strict=True)):
            picture = as_picture(as_image(first.tensor()[i], data), window_of(data))
            save_picture(attention_picture(picture, tokens, maps, shares=False), folder / f"attention-{i:02d}.png")
    return len(first)


def check_writes(pipeline, name: str) -> None:
    """Raise `UserError` unless a model writes captions; ``name`` is what messages call it."""
    if task_of(pipeline).makes != "captions":
        raise UserError(f"{name} draws images: sample from it with attndiff sample; captions are what others write.")


def caption_folder(
    pipeline, folder: Path, search: dict, again: bool = False, overrides: Sequence[str] = ()
) -> Captioned:
    """Write a caption beside every image of a folder, ``name.txt`` beside ``name.png``, as training reads it.

    Args:
        pipeline: An `AttnDiffCaptionPipeline`.
        folder: With images, in it and below.
        search: Arguments of the pipeline's call.
        again: Replace the captions that are there.
        overrides: Settings of how images are read, ``KEY=VALUE``.

    Raises:
        UserError: If there are no images, captions beside them would not be read, or the search cannot be made.
    """
    _check_folder(folder)
    config = data_config(str(folder), list(overrides), model_settings(pipeline)).replace(named_parts=False)
    images = ImageSet(config)
    paths = _caption_paths(images, folder)
    wanted = [i for i, path in enumerate(paths) if again or not path.exists()]
    alpha, captions = is_premultiplied(pipeline.config.data), []
    for start in progress(range(0, len(wanted), AT_ONCE), "Writing captions", unit="batch"):
        chosen = wanted[start : start + AT_ONCE]
        written = write_all(pipeline, Subset(images, chosen), alpha, search)
        for i, caption in zip(chosen, written, strict=True):
            paths[i].write_text(caption + "\n", encoding="utf-8")
        captions += written
    return Captioned(Subset(images, wanted), captions, len(paths) - len(wanted), images.skipped)


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
