"""Samples of a model of any kind, as rows of images with a column for each prompt."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attndiff.data.pixels.writers import save_image
from attndiff.device import best_device
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.folder.open import load_quietly
from attndiff.lens.pictures import save_attention_pictures
from attndiff.lens.record import AttentionMaps
from attndiff.pipelines.call.checks import check_numbers
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline
from attndiff.tasks.prompts import prompt_of
from attndiff.tasks.registry import task_of
from attndiff.viewing import as_picture, contact_sheet, window_of

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROW = 8  # images of an unconditional model in a row


@dataclass
class Request:
    """What to sample.

    Args:
        prompts: Captions, or names or numbers of classes; empty for an unconditional model.
        steps: Sampling steps; None for the model's own number.
        guidance: Guidance scale; likewise.
        seed: Of the first image; the others count up from it, so that each can be made again alone.
        count: Images of each prompt. None: 1, or 8 if unconditional.
        height: Pixels; None for the training size.
        width: Likewise.
        attention: Record attention maps.
    """

    prompts: list[str]
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    count: int | None = None
    height: int | None = None
    width: int | None = None
    attention: bool = False

    def check(self) -> None:
        """Raise `UserError` for numbers that no model can sample with."""
        try:
            given = 1 if self.steps is None else self.steps, 1 if self.guidance is None else self.guidance
            check_numbers(*given, (0.0, 1.0), 1 if self.count is None else self.count)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2^63, not {self.seed}.")


@dataclass
class SampledRow:
    """One image of each prompt, and where its pixels looked if that was asked for."""

    images: list[Image.Image | np.ndarray]
    maps: AttentionMaps | None


def open_model(model: str | Path, precision: str = "fp32") -> AttnDiffPipeline:
    """The pipeline of a folder, Hub id or bundled name, on the best device.

    Args:
        model: The folder, id or name.
        precision: A key of `PRECISIONS`.
    """
    return load_quietly(model, dtype=PRECISIONS[precision]).to(best_device())


def check_draws(pipeline, name: str) -> None:
    """Raise `UserError` unless a model draws images of prompts; ``name`` is what messages call it."""
    task = task_of(pipeline)
    if task.makes == "captions":
        raise UserError(f"{name} writes captions of images: give it a folder of them with attndiff caption.")
    if task.call:
        raise UserError(f"{name} {task.summary}: give it pictures with attndiff apply.")


def sample_rows(pipeline: AttnDiffPipeline, request: Request) -> list[SampledRow]:
    """Sample, one call a row, so that memory does not grow with ``count``.

    Raises:
        UserError: If the request does not fit the model.
    """
    arguments = prompt_of(pipeline).read(pipeline, request.prompts)
    if not arguments and request.attention:
        raise UserError("attention maps show where the words of a prompt act; this model is unconditional.")
    rows = []
    seed = request.seed
    for length in row_lengths(request):
        generators = [torch.Generator().manual_seed(seed + i) for i in range(length)]
        seed += length
        try:
            output = pipeline(
                **(arguments or {"num_images_per_prompt": length}),
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                generator=generators,
                height=request.height,
                width=request.width,
                output_attention_maps=request.attention,
            )
        except ValueError as error:  # how a pipeline refuses arguments
            raise UserError(str(error)) from None
        rows.append(SampledRow(output.images, output.attention_maps))
    return rows


def row_lengths(request: Request) -> list[int]:
    """Images of each row: one of every prompt, or of an unconditional model eight and what is left."""
    if request.prompts:
        return [len(request.prompts)] * (request.count or 1)
    count = request.count or ROW
    return [min(ROW, count - first) for first in range(0, count, ROW)]


def sheet(
    pipeline: AttnDiffPipeline, rows: list[SampledRow], prompts: list[str], ground: str | None = None
) -> Image.Image:
    """All rows as one picture, the prompts above the columns; ground as of `laid_on`."""
    captions = prompts or [""] * len(rows[0].images)
    labels = [str(i + 1) for i in range(len(rows))] if len(rows) > 1 else [""]
    shown = {label: row.images for label, row in zip(labels, rows, strict=True)}
    return contact_sheet(shown, captions, window=window_of(pipeline.config.data), ground=ground)


def save_images(pipeline: AttnDiffPipeline, rows: list[SampledRow], folder: Path, kind: str = "png") -> int:
    """Write every image as a file, pictures as PNG, WebP or TIFF, else whatever holds the data's own units; how many.

    Args:
        pipeline: The model.
        rows: Its samples.
        folder: Where to write.
        kind: ``"png"``, ``"webp"`` or ``"tif"``; nothing is lost in any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = [image for row in rows for image in row.images]
    for i, image in enumerate(images):
        path = folder / f"{i:04d}.{kind}"
        if isinstance(image, Image.Image):
            save_picture(image, path)
        else:
            save_image(image, path, pipeline.config.data)
    return len(images)


def save_attention(pipeline: AttnDiffPipeline, rows: list[SampledRow], prompts: list[str], folder: Path) -> list[Path]:
    """Write a picture of the attention for every image; further rows go to folders of their own."""
    tokens = [prompt_of(pipeline).tokens(pipeline, text) for text in prompts]
    paths, window = [], window_of(pipeline.config.data)
    for i, row in enumerate(rows):
        target = folder if len(rows) == 1 else folder / f"row-{i:02d}"
        paths += save_attention_pictures(target, [as_picture(image, window) for image in row.images], tokens, row.maps)
    return paths
