"""Samples while training: the same prompts and noise, or images, by the raw weights and by an average."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image

from attndiff.alpha import is_premultiplied, premultiplied
from attndiff.data.columns import CAPTION
from attndiff.data.subset import Subset
from attndiff.drawn import save_picture
from attndiff.metrics.captions.measure import write_all
from attndiff.metrics.captions.sheet import captions_beside
from attndiff.metrics.near_copies import as_image
from attndiff.progress import SETTINGS
from attndiff.tasks.part_maps import as_pictures
from attndiff.tasks.segment import map_of
from attndiff.tasks.task import GENERATE, images_of, nothing
from attndiff.training.build import Parts
from attndiff.training.heads import Head
from attndiff.training.parts.learning import EXAMPLES, examples
from attndiff.training.state.averages import PowerEMA
from attndiff.viewing import contact_sheet, window_of


def make_pipeline(parts: Parts) -> DiffusionPipeline:
    """A pipeline around the modules that are being trained."""
    given = {"tokenizer": parts.conditioning.tokenizer, "text_encoder": parts.conditioning.text_encoder}
    known = {"data": parts.learned.data, "task": None if parts.task is GENERATE else parts.learned.task}
    return parts.model.to_pipeline(parts.task.pipeline, **given, vae=parts.vae, **known)


@contextmanager
def swapped(model: Head, weights: dict[str, torch.Tensor]):
    """The model with other weights inside the ``with`` block and its own again after it.

    Its own wait in main memory, so that a device holds weights once.
    """
    own = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
    try:
        copy_into(model, weights)
        yield model
    finally:
        copy_into(model, own)


@torch.no_grad()
def copy_into(model: Head, state: dict[str, torch.Tensor]) -> None:
    """Copy parameters by name."""
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])


def grid_prompts(parts: Parts, prompts: list[str], n: int = EXAMPLES) -> list:
    """What to sample: the config's prompts, else some held-out captions, class names or nothing.

    Where the task is given images, these are held-out ones, and the prompts theirs.
    """
    chosen = prompts and parts.conditioning.prompt.is_given and parts.task.given is nothing
    return prompts if chosen else parts.learned.prompts[:n]


def given_images(parts: Parts, n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The first ``n`` of the held-out `examples`, ``(n, C, H, W)`` in [-1, 1], and what a call is given of them."""
    rows = [*examples(parts.validation)][:n]
    return images_of(rows), parts.task.given(rows, np.random.default_rng(0), parts.task_settings)


def sample_row(parts: Parts, prompts: list, guidance_scale: float, doing: str | None = None) -> list[Image.Image]:
    """One image a prompt, from fixed noise, as pictures; a progress bar says what is being done, if that is given."""
    pipe = make_pipeline(parts)
    pipe.set_progress_bar_config(desc=doing, unit="step", disable=doing is None, **SETTINGS)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    prompt = parts.conditioning.prompt
    wishes = {"guidance_scale": guidance_scale} if prompt.is_given else {}
    arguments = prompt.arguments(prompts)
    if parts.task.given is not nothing:
        told = arguments if prompt.is_given else {}  # the images say how many
        arguments, wishes = {**told, **given_images(parts, len(prompts))[1]}, parts.task.arguments
    wishes = {"num_inference_steps": parts.model.preview_steps, **wishes}
    return pipe(**arguments, **wishes, generator=generators).images


def save_grid(parts: Parts, ema: PowerEMA, prompts: list[str], guidance_scale: float, path: Path) -> None:
    """Write what the raw weights make and what the longest average does, beside each other."""
    was_training = parts.model.training
    parts.model.eval()
    writes = parts.task.makes == "captions"
    sheet = _captions(parts, ema) if writes else _grid(parts, ema, prompts, guidance_scale)
    parts.model.train(was_training)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(sheet, path)


def _grid(parts: Parts, ema: PowerEMA, prompts: list[str], guidance_scale: float) -> Image.Image:
    """A row of samples from the raw weights and one from the longest average."""
    chosen = grid_prompts(parts, prompts)
    rows = _given_rows(parts, len(chosen))
    rows["raw"] = sample_row(parts, chosen, guidance_scale)
    longest = max(ema.averages)
    with swapped(parts.model, ema.state_dict(longest)):
        rows[f"average {longest:g}"] = sample_row(parts, chosen, guidance_scale)
    captions = [str(p) if p is not None else "" for p in chosen]
    return contact_sheet(rows, captions, window=window_of(parts.learned.data))


def _captions(parts: Parts, ema: PowerEMA) -> Image.Image:
    """Held-out images, each with its own caption and those of the raw weights and the longest average."""
    chosen, longest = examples(parts.validation), max(ema.averages)
    texts = {"real": [row[CAPTION.name][0] for row in chosen], "raw": written_of(parts, chosen).captions}
    with swapped(parts.model, ema.state_dict(longest)):
        texts[f"average {longest:g}"] = written_of(parts, chosen).captions
    return captions_beside(chosen, texts)


def written_of(parts: Parts, images: Subset, **wishes):
    """What the model being trained writes of images, the output of a call with further wishes."""
    pipe = make_pipeline(parts)
    pipe.set_progress_bar_config(disable=True)
    return write_all(pipe, images, wishes)


def _given_rows(parts: Parts, n: int) -> dict[str, list]:
    """The images that a task's samples are made of, and what it is given of them; nothing where it is given none."""
    if parts.task.given is nothing:
        return {}
    images, given = given_images(parts, n)
    data = parts.learned.data
    real = [as_image(one, data) for one in images]
    if parts.task.makes == "maps":
        maps = [map_of(row, parts.task_settings) for row in examples(parts.validation)]
        return {"given": real, "real": as_pictures(torch.stack(maps[:n]))}
    shown = given["image"]
    if isinstance(shown, list):  # pictures of maps
        return {"real": real, "given": shown}
    if "mask_image" in given:
        shown = shown * (1 - given["mask_image"]) + 0.5 * given["mask_image"]
    shown = F.interpolate(shown, size=images.shape[-2:], mode="nearest") * 2 - 1
    shown = premultiplied(shown) if is_premultiplied(data) else shown
    return {"real": real, "given": [as_image(one, data) for one in shown]}
