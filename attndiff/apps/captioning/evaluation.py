"""What a model writes of held-out images, measured."""

from pathlib import Path

from PIL import Image

from attndiff.alpha import is_premultiplied
from attndiff.data.columns import CAPTION
from attndiff.data.subset import Subset
from attndiff.drawn import save_picture
from attndiff.metrics.captions.measure import measure_captions, write_all
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import Reference, kinds_of
from attndiff.viewing import captioned_sheet, window_of

SHOWN = 16  # images of the sheet


def evaluate_captions(
    pipeline, reference: Reference, seed: int, n: int | None, pictures: Path | None, by: str | None = None
) -> dict[str, dict]:
    """All measures of what a model writes by name, see `measure_captions`.

    Args:
        pipeline: An `AttnDiffCaptionPipeline`.
        reference: Real images in its size and channels, with captions.
        seed: Of the choice of real images.
        n: Images; None: as many as the reference offers, up to 1000.
        pictures: Folder for a sheet of images with their captions.
        by: A column that says of which kind an image is: each is measured apart, too.

    Raises:
        UserError: If the reference is too small.
    """
    test = reference.choose(reference.count(n), seed)[0]
    written = write_all(pipeline, test, is_premultiplied(pipeline.config.data))
    report = measure_captions(written, test, reference.train, seed)
    for kind, rows in kinds_of(test, by).items():
        of_kind = measure_captions([written[i] for i in rows], Subset(test, rows), reference.train, seed)
        report |= {f"{name}_of_{kind}": entry for name, entry in of_kind.items()}
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        save_picture(caption_sheet(test, written), pictures / "captions.png")
    return {name: {**entry, "seed": seed, "reference": reference.describe()} for name, entry in report.items()}


def caption_sheet(images: Subset, written: list[str]) -> Image.Image:
    """The first images, each with its own caption and the one that was written."""
    first = Subset(images, range(min(SHOWN, len(images))))
    return captions_beside(first, {"real": [row[CAPTION.name][0] for row in first], "written": written[: len(first)]})


def captions_beside(images: Subset, texts: dict[str, list[str]]) -> Image.Image:
    """Images, each with texts beside it."""
    data = images.describe()
    return captioned_sheet([as_image(one, data) for one in images.tensor()], texts, window=window_of(data))
