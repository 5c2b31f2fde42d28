"""Sample grids while training: the same prompts and noise from the raw weights and from an average."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from attndiff.data.subset import spread_over
from attndiff.metrics.near_copies import as_image
from attndiff.tasks.prompts import PROMPTS
from attndiff.tasks.task import GENERATE, nothing
from attndiff.training.build import Parts
from attndiff.training.heads import Head
from attndiff.training.state.averages import PowerEMA
from attndiff.viewing import contact_sheet

COLUMNS = 8  # of a grid


def make_pipeline(parts: Parts) -> DiffusionPipeline:
    """A pipeline around the modules that are being trained."""
    given = {"tokenizer": parts.conditioning.tokenizer, "text_encoder": parts.conditioning.text_encoder}
    settings = None if parts.task is GENERATE else parts.task_settings.model_dump()
    known = {"data": parts.images.describe(), "task": settings}
    return parts.model.to_pipeline(parts.task.pipeline, **given, vae=parts.vae, **known)


@contextmanager
def swapped(model: Head, ema: PowerEMA, sigma_rel: float):
    """The model with averaged weights inside the ``with`` block and its own again after it.

    Its own wait in main memory, so that a device holds weights once.
    """
    own = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
    try:
        copy_into(model, ema.state_dict(sigma_rel))
        yield model
    finally:
        copy_into(model, own)


@torch.no_grad()
def copy_into(model: Head, state: dict[str, torch.Tensor]) -> None:
    """Copy parameters by name."""
    for name, parameter in model.named_parameters():
        parameter.copy_(state[name])


def grid_prompts(parts: Parts, prompts: list[str], n: int = COLUMNS) -> list:
    """What to sample: the config's prompts, else some held-out captions, class names or nothing.

    Where the task is given images, these are held-out ones, and the prompts theirs.
    """
    prompt = PROMPTS[parts.conditioning.kind]
    if parts.task.given is not nothing:
        return prompt.of_all(spread_over(parts.validation, min(n, len(parts.validation))))
    return prompts if prompts and prompt.is_given else prompt.examples(parts.images, parts.validation, n)


def given_images(parts: Parts, n: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Some held-out images ``(n, C, H, W)`` in [-1, 1], and what a call of the task is given of them."""
    images = spread_over(parts.validation, n).tensor()
    return images, parts.task.given(images, np.random.default_rng(0), parts.task_settings)


def sample_row(parts: Parts, prompts: list, guidance_scale: float) -> list[Image.Image]:
    """One image a prompt, from fixed noise, as pictures."""
    pipe = make_pipeline(parts)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    arguments = {"num_inference_steps": parts.model.preview_steps, "guidance_scale": guidance_scale}
    if parts.task.given is nothing:
        arguments |= PROMPTS[parts.conditioning.kind].arguments(prompts)
    else:
        told = PROMPTS[parts.conditioning.kind]
        arguments |= told.arguments(prompts) if told.is_given else {}
        arguments |= {"guidance_scale": 1.0, **given_images(parts, len(prompts))[1], **parts.task.arguments}
    return pipe(**arguments, generator=generators).images


def save_grid(parts: Parts, ema: PowerEMA, prompts: list[str], guidance_scale: float, path: Path) -> None:
    """Write a grid with a row from the raw weights and one from the longest average."""
    chosen = grid_prompts(parts, prompts)
    was_training = parts.model.training
    parts.model.eval()
    rows = _given_rows(parts, len(chosen))
    rows["raw"] = sample_row(parts, chosen, guidance_scale)
    longest = max(ema.averages)
    with swapped(parts.model, ema, longest):
        rows[f"average {longest:g}"] = sample_row(parts, chosen, guidance_scale)
    parts.model.train(was_training)
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, [str(p) if p is not None else "" for p in chosen]).save(path)


def _given_rows(parts: Parts, n: int) -> dict[str, list]:
    """What the task is given, and the images that it was made of; nothing where it is given none."""
    if parts.task.given is nothing:
        return {}
    images, given = given_images(parts, n)
    shown = given["image"]
    if "mask_image" in given:
        shown = shown * (1 - given["mask_image"]) + 0.5 * given["mask_image"]
    size = images.shape[-2:]
    shown = torch.nn.functional.interpolate(shown, size=size, mode="nearest") * 2 - 1
    return {name: [as_image(one) for one in row] for name, row in (("real", images), ("given", shown))}
