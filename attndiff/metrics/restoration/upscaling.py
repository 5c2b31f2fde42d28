"""How well a model enlarges: beside what interpolation reaches on the same images, by the same code.

Shapes: N images, C channels, H rows, W columns; values in [-1, 1].
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from attndiff.alpha import clipped, has_alpha, premultiplied
from attndiff.metrics.grounds import views
from attndiff.metrics.restoration.psnr import luma_psnr, psnr
from attndiff.metrics.restoration.ssim import luma_ssim
from attndiff.tasks.resampling import back_project, enlarge_by, shrink_by, to_8_bits
from attndiff.tasks.task import as_given
from attndiff.tasks.upscale import small_of

BATCH = 50
ROUNDS = 8  # of back-projection


def lanczos(small: torch.Tensor, scale: int) -> torch.Tensor:
    """``(N, C, h, w)`` enlarged by Pillow's Lanczos filter."""
    size = [side * scale for side in small.shape[-2:]][::-1]
    planes = [
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS))
        for plane in small.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(planes)).unflatten(0, small.shape[:2])


def measure_upscaling(
    pipeline, real: torch.Tensor, tell: Callable[[slice], dict], seed: int, steps: int
) -> tuple[dict[str, dict], dict[str, torch.Tensor]]:
    """Measures by name, and the images they are of by the way they were made.

    Args:
        pipeline: An `AttnDiffUpscalePipeline`.
        real: ``(N, C, H, W)``.
        tell: Rows to the arguments of a call that say what they show.
        seed: Of the first image that is sampled.
        steps: Of sampling.
    """
    scale = pipeline.scale
    alpha = has_alpha(pipeline.config.data)
    small = small_of(real, scale, alpha)
    made = {"bicubic": enlarge_by(small, scale), "lanczos": lanczos(small, scale)}
    made = {name: clipped(images, alpha) for name, images in made.items()}
    made |= {f"{name}, back-projected": back_project(images, small, ROUNDS, alpha) for name, images in made.items()}
    for name, arguments in _ways(seed, steps).items():
        made[name] = _enlarged(pipeline, small, tell, arguments)
    report = {}
    for end, view in views(pipeline.config.data).items():
        seen = {name: view(images) for name, images in made.items()}
        report |= {name + end: entry for name, entry in _scores(seen, view(real), view(small), scale).items()}
    return report, made


def _scores(made: dict[str, torch.Tensor], real: torch.Tensor, small: torch.Tensor, scale: int) -> dict[str, dict]:
    """Measures by name of images by the way they were made."""
    scores = {name: float(luma_psnr(images, real, scale).mean()) for name, images in made.items()}
    similarity = {name: float(luma_ssim(images, real, scale).mean()) for name, images in made.items()}
    consistency = psnr(shrink_by(to_8_bits(made["one call"]), scale), small)

    def entry(value: float, floor: float, how: str) -> dict:
        return {"value": value, "floor": floor, "n": len(real), "extractor": how}

    luma_of = f"dB of luma without a border of {scale}"
    report = {
        "psnr_without_back_projection": entry(scores["one call, alone"], scores["lanczos"], f"{luma_of}; Lanczos"),
        "psnr": entry(scores["one call"], scores["bicubic, back-projected"], f"{luma_of}; bicubic, back-projected"),
        "psnr_sampled": entry(scores["sampled"], scores["bicubic, back-projected"], f"{luma_of}; the same"),
        "ssim": entry(similarity["one call"], similarity["bicubic, back-projected"], "of luma; the same"),
        "consistency": entry(float(consistency.mean()), 50.0, "dB of the result made small again; what is asked for"),
        "consistency_least": entry(float(consistency.min()), 45.0, "the same of the worst image"),
    }
    report["psnr"] |= {"ways": scores, "ssim_of_ways": similarity}
    return report


def _ways(seed: int, steps: int) -> dict[str, dict]:
    """How the model is called."""
    return {
        "one call, alone": {"back_projections": 0},
        "one call": {"back_projections": ROUNDS},
        "sampled": {"back_projections": ROUNDS, "num_inference_steps": steps, "seed": seed},
    }


def _enlarged(pipeline, small: torch.Tensor, tell: Callable[[slice], dict], arguments: dict) -> torch.Tensor:
    """``(N, C, H, W)`` of small images, each sampled from a seed of its own."""
    pipeline.set_progress_bar_config(disable=True)
    arguments = dict(arguments)
    seed = arguments.pop("seed", None)
    results, alpha = [], has_alpha(pipeline.config.data)
    for start in range(0, len(small), BATCH):
        part = as_given(small[start : start + BATCH], alpha)
        seeds = range(start, start + len(part))
        generator = None if seed is None else [torch.Generator().manual_seed(seed + i) for i in seeds]
        told = tell(slice(start, start + BATCH))
        images = pipeline(part, generator=generator, output_type="pt", **told, **arguments).images
        results.append(images.float().cpu())
    images = torch.cat(results) * 2 - 1
    return premultiplied(images) if alpha else images
