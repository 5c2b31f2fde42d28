"""Sample grids while training: the same prompts and noise from the raw weights and from an average."""

from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from attndiff.tasks.prompts import PROMPTS
from attndiff.training.build import Parts
from attndiff.training.heads import Head
from attndiff.training.state.averages import PowerEMA
from attndiff.viewing import contact_sheet


def make_pipeline(parts: Parts) -> DiffusionPipeline:
    """A pipeline around the modules that are being trained."""
    given = {"tokenizer": parts.conditioning.tokenizer, "text_encoder": parts.conditioning.text_encoder}
    return parts.model.to_pipeline(**given, vae=parts.vae, data=parts.learned.data)


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


def grid_prompts(parts: Parts, prompts: list[str], n: int = 8) -> list:
    """What to sample: the config's prompts, else some held-out captions, class names or nothing."""
    is_given = PROMPTS[parts.conditioning.kind].is_given
    return prompts if prompts and is_given else parts.learned.prompts[:n]


def sample_row(parts: Parts, prompts: list, guidance_scale: float) -> list[Image.Image]:
    """One image a prompt, from fixed noise, as pictures."""
    pipe = make_pipeline(parts)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    arguments = PROMPTS[parts.conditioning.kind].arguments(prompts)
    steps = parts.model.preview_steps
    return pipe(**arguments, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators).images


def save_grid(parts: Parts, ema: PowerEMA, prompts: list[str], guidance_scale: float, path: Path) -> None:
    """Write a grid with a row from the raw weights and one from the longest average."""
    chosen = grid_prompts(parts, prompts)
    was_training = parts.model.training
    parts.model.eval()
    rows = {"raw": sample_row(parts, chosen, guidance_scale)}
    longest = max(ema.averages)
    with swapped(parts.model, ema, longest):
        rows[f"average {longest:g}"] = sample_row(parts, chosen, guidance_scale)
    parts.model.train(was_training)
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, [str(p) if p is not None else "" for p in chosen]).save(path)
