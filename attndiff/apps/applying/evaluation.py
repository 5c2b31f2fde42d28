"""What a model makes of held-out pictures, measured."""

from dataclasses import asdict
from pathlib import Path

import torch

from attndiff.data.subset import Subset
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import Reference
from attndiff.metrics.restoration.inpainting import measure_inpainting
from attndiff.metrics.restoration.read_back import measure_read_back
from attndiff.metrics.restoration.segmentation import measure_segmentation
from attndiff.metrics.restoration.upscaling import measure_upscaling
from attndiff.metrics.samples import EvaluationSettings
from attndiff.tasks.part_maps import as_pictures
from attndiff.tasks.prompts import prompt_of
from attndiff.tasks.registry import task_of
from attndiff.viewing import contact_sheet

SHEET = 8  # images of the sheet
OF_IMAGES = {"upscale": measure_upscaling, "inpaint": measure_inpainting}  # by what tasks call their measure


def evaluate_pictures(
    pipeline, reference: Reference, settings: EvaluationSettings, n: int, pictures: Path | None, reader=None
) -> dict[str, dict]:
    """The measures of a task whose right answer is known, on held-out images, each with value, floor and how.

    Args:
        pipeline: The model.
        reference: Real images in its size and channels.
        settings: How to draw.
        n: Images.
        pictures: Folder for a sheet of images, and of what was made of them.
        reader: What tells the parts of images apart, for a model that draws them of maps.

    Raises:
        UserError: If there is no reader where one is needed, or it does not go together with the model.
    """
    test, prompt, task = reference.choose(n, settings.seed)[0], prompt_of(pipeline), task_of(pipeline)
    values = prompt.of_all(test)
    pipeline.set_progress_bar_config(disable=True)

    def tell(rows: slice) -> dict:
        return prompt.arguments(values[rows]) if prompt.is_given else {}

    if task.measure in OF_IMAGES:
        report, made = OF_IMAGES[task.measure](pipeline, test.tensor(), tell, settings.seed, settings.steps)
    elif task.measure == "segment":
        report, made = measure_segmentation(pipeline, test, reference.train, tell, settings.seed, settings.steps)
    else:
        report, made = _read_back(pipeline, reader, test, tell, settings)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        rows = {"real": test.tensor(), **made}
        shown = {name: _shown(images[:SHEET], test.describe()) for name, images in rows.items()}
        save_picture(contact_sheet(shown, [""] * min(SHEET, n)), pictures / "samples.png")
    common = {**asdict(settings), "reference": reference.describe()}
    return {name: {**entry, **common} for name, entry in report.items()}


def _read_back(pipeline, reader, test: Subset, tell, settings: EvaluationSettings) -> tuple[dict, dict]:
    """`measure_read_back`, a mistake of the user's as a sentence."""
    if reader is None:
        raise UserError("--reader is missing: name a model that tells these parts apart, of task.name segment.")
    if task_of(reader).name != "segment":
        raise UserError(f"--reader: it {task_of(reader).summary or 'draws images'}: name a model of task.name segment.")
    try:
        return measure_read_back(pipeline, reader, test, tell, settings.seed, settings.steps, settings.guidance)
    except ValueError as error:
        raise UserError(f"--reader: {error}") from None


def _shown(made: torch.Tensor, data: dict) -> list:
    """Images ``(N, C, H, W)`` in [-1, 1], or maps ``(N, H, W)``, as pictures."""
    return as_pictures(made) if made.ndim == 3 else [as_image(image, data) for image in made]
