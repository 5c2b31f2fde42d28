"""What a model writes of held-out images, measured."""

from pathlib import Path

from attndiff.data.subset import Subset
from attndiff.drawn import save_picture
from attndiff.metrics.captions.measure import Beside, captions_of, measure_captions, write_all
from attndiff.metrics.captions.sheet import captions_beside
from attndiff.metrics.reference import Reference, kinds_of


def evaluate_captions(
    pipeline, reference: Reference, seed: int, n: int, pictures: Path | None, by: str | None = None
) -> dict[str, dict]:
    """All measures of what a model writes by name, see `measure_captions`.

    Args:
        pipeline: An `AttnDiffCaptionPipeline`.
        reference: Real images in its size and channels, with captions.
        seed: Of the choice of real images.
        n: Images.
        pictures: Folder for a sheet of images with their captions.
        by: A column that says of which kind an image is: each is measured apart, too.
    """
    test = reference.choose(n, seed)[0]
    written, beside = write_all(pipeline, test).captions, Beside.of(test, reference.train)
    report = measure_captions(written, test, beside, seed)
    for kind, rows in kinds_of(test, by).items():
        of_kind = measure_captions([written[i] for i in rows], Subset(test, rows), beside[rows], seed)
        report |= {f"{name}_of_{kind}": entry for name, entry in of_kind.items()}
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        real = [captions[0] for captions in captions_of(test)]
        save_picture(captions_beside(test, {"real": real, "written": written}), pictures / "captions.png")
    return {name: {**entry, "seed": seed, "reference": reference.describe()} for name, entry in report.items()}
