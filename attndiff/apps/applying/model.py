"""A model applied to pictures in files, one after another."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import attndiff
from attndiff.apps.applying.files import Picture, is_written
from attndiff.apps.applying.reading import Reader, read_mask
from attndiff.data.pixels.writers import save_image
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.progress import SETTINGS, progress
from attndiff.settings import check_choice
from attndiff.tasks.prompts import prompt_of
from attndiff.tasks.registry import task_of
from attndiff.tasks.task import GENERATE
from attndiff.training.settings.plain_yaml import read_value

# Arguments of calls that are not typed as settings: they are given otherwise, or are no text.
OTHERWISE = {
    "self", "image", "mask_image", "prompt", "class_labels", "num_images_per_prompt", "generator", "latents",
    "output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "output_attention_maps",
}  # fmt: skip
# How results are called beside their pictures, by pipeline.
MADE = {
    "AttnDiffImg2ImgPipeline": "anew",
    "AttnDiffInpaintPipeline": "filled",
    "AttnDiffUpscalePipeline": "large",
    "AttnDiffSegmentPipeline": "parts",
    "AttnDiffMapToImagePipeline": "drawn",
}


def for_pictures(pipeline, masked: bool, count: int, name: str):
    """The pipeline that makes pictures of pictures with a model's networks.

    Args:
        pipeline: The model as it was opened.
        masked: Whether there are masks of what is to be drawn.
        count: Results of each picture.
        name: What messages call the model.

    Raises:
        UserError: If it takes no pictures, takes masks where there are none or none where there are, or makes one
            result of each picture where several are asked for.
    """
    task = task_of(pipeline)
    if task.makes == "captions":
        raise UserError(f"{name} writes captions of images: give it a folder of them with attndiff caption.")
    if task == GENERATE:
        return (attndiff.AttnDiffInpaintPipeline if masked else attndiff.AttnDiffImg2ImgPipeline).from_pipe(pipeline)
    if type(pipeline).__name__ not in MADE:
        raise UserError(f"{name} draws of nothing but a prompt: sample from it with attndiff sample.")
    if masked != task.takes_masks:
        problem = "takes none: leave it out" if masked else "needs one: a picture that is white where it is to draw"
        raise UserError(f"--mask: {name} {problem}.")
    if task.makes == "maps" and count > 1:
        raise UserError(f"--count: {name} reads one map of each picture; ensemble_size is of how many it is the mean.")
    return pipeline


def read_settings(pipeline, settings: Sequence[str]) -> dict[str, Any]:
    """Arguments of a pipeline's call, typed as ``KEY=VALUE``.

    Raises:
        UserError: If it takes no such argument, or not such a value.
    """
    takes = inspect.signature(pipeline.__call__).parameters
    known = tuple(sorted(takes.keys() - OTHERWISE))
    values = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        check_choice("setting", key, known)
        values[key] = read_value(text, takes[key].annotation, f"setting {setting!r}")
    return values


@dataclass
class Work:
    """What is to be done with pictures.

    Args:
        prompt: What the results show; a caption or class, or None.
        settings: Arguments of the pipeline's call.
        count: Results of each picture.
        seed: Of the first result of each; the others count up from it.
        masks: One each, or None.
        again: Draw what is there already, too.
    """

    prompt: str | None
    settings: dict[str, Any]
    count: int = 1
    seed: int = 0
    masks: list[Path] | None = None
    again: bool = False


def apply_model(
    pipeline, pictures: Sequence[Picture], places: Sequence[list[Path]], work: Work, reader: Reader
) -> Iterator[Path]:
    """Draw and write, giving every path that was written.

    Args:
        pipeline: From `for_pictures`.
        pictures: From `find_pictures`.
        places: Of their results; pictures whose results are all there are left out.
        work: What is to be done.
        reader: Of the pictures.

    Raises:
        UserError: If a picture cannot be read, or the pipeline refuses it.
    """
    told = prompt_of(pipeline).read(pipeline, [work.prompt]) if work.prompt is not None else {}
    todo = [i for i, results in enumerate(places) if work.again or not all(map(is_written, results))]
    pipeline.set_progress_bar_config(disable=len(todo) > 1, **SETTINGS)  # of one picture, its steps are shown
    for i in progress(todo, "Drawing", unit="picture", shown=len(todo) > 1):
        given = {"image": reader(pictures[i].path), **told, **work.settings, **_chance(pipeline, work)}
        if work.masks is not None:
            given["mask_image"] = read_mask(work.masks[i])
        try:
            images = pipeline(**given).images
        except ValueError as error:  # how a pipeline refuses arguments
            raise UserError(f"{pictures[i].path}: {error}") from None
        for image, place in zip(images, places[i], strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(image, Image.Image):
                save_picture(image, place)
                yield place
            else:
                yield save_image(image, place, pipeline.config.data)


def _chance(pipeline, work: Work) -> dict[str, Any]:
    """How many results a call gives, and the noise of each; one where it reads a map."""
    if task_of(pipeline).makes == "maps":
        return {"generator": torch.Generator().manual_seed(work.seed)}
    generators = [torch.Generator().manual_seed(work.seed + k) for k in range(work.count)]
    return {"num_images_per_prompt": work.count, "generator": generators}
