"""How likely a model holds real images to be, in bits per value, beside what a lossless file of them takes."""

import io
import math

import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from attndiff.alpha import has_alpha
from attndiff.data.subset import Subset
from attndiff.errors import UserError
from attndiff.metrics.denoising.bootstrap import bootstrap_means, interval_of
from attndiff.metrics.denoising.probability_flow import STEPS, bits_at_most, denoiser_at
from attndiff.metrics.denoising.told import tells
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import Reference
from attndiff.progress import progress
from attndiff.tasks.prompts import prompt_of
from attndiff.tasks.registry import task_of
from attndiff.training.batches import DrawnDataset
from attndiff.training.conditioning import Conditioning
from attndiff.training.evaluation.validation import AT_MOST, validate
from attndiff.training.heads.raster import RasterModel

BATCH = 32


def likelihood(pipeline, reference: Reference, seed: int) -> dict[str, dict]:
    """Bits per value of held-out images with their own conditions, as ``bits_per_value``.

    The floor is what a lossless WebP file of the same images takes, all of them on one sheet; ``training`` is of as
    many training images, where it is known which those are.

    Args:
        pipeline: An `AttnDiffRasterPipeline`.
        reference: Real images.
        seed: Of which are taken.
    """
    n = min(AT_MOST, len(reference.test))
    test, train, _ = reference.choose(n, seed)
    entry = {
        "value": _bits(pipeline, test),
        "n": n,
        "extractor": "the model's own likelihood, beside a lossless WebP file of the same images",
        "floor": webp_bits(test),
        "floor_of": "lossless WebP",
    }
    if not reference.halves:
        entry["training"] = _bits(pipeline, train)
    return {"bits_per_value": entry}


def likelihood_bound(pipeline, reference: Reference, seed: int, n: int) -> dict[str, dict]:
    """What held-out images of their own conditions take at most, as ``bits_per_value_at_most``; beside it WebP's.

    ``in_half_the_steps`` is what the flow says when it is followed more coarsely: the figure is sure to about as much
    as the two differ.

    Args:
        pipeline: A diffusion model of pixels.
        reference: Real images.
        seed: Of which are taken, and of noise.
        n: How many.

    Raises:
        UserError: As of `check_bound`.
    """
    check_bound(pipeline, reference, n)
    images = reference.choose(n, seed)[0]
    bits = {}
    for steps in (STEPS, STEPS // 2):
        with progress(None, "Likelihood", n * steps, "image step") as bar:
            parts = [
                _bits_at_most(pipeline, Subset(images, range(i, min(n, i + BATCH))), steps, seed, bar)
                for i in range(0, n, BATCH)
            ]
        bits[steps] = torch.cat(parts)
    means = bootstrap_means(bits[STEPS][:, None], [str(i) for i in range(n)])
    entry = {
        "value": bits[STEPS].mean().item(),
        "interval": interval_of(means[:, 0]),
        "n": n,
        "extractor": f"the model's own probability flow, {STEPS} steps of Heun, random signs",
        "floor": webp_bits(images),
        "floor_of": "lossless WebP",
        "in_half_the_steps": bits[STEPS // 2].mean().item(),
    }
    return {"bits_per_value_at_most": entry}


def check_bound(pipeline, reference: Reference, n: int) -> None:
    """Raise `UserError` unless a model's probability flow bounds how likely it holds so many held-out images to be."""
    task, config = task_of(pipeline), pipeline.config
    reasons = {
        "this model's bits per value are exact, and in its report anyway": task.head == "raster",
        "this model draws no whole images from noise": task.head != "denoising" or task.measure is not None,
        "a few-step student does not follow it": bool(config.get("student")),
        "a model of latents says nothing of pixels": getattr(pipeline, "vae", None) is not None,
        "colours multiplied by alpha are not whole levels": has_alpha(config.get("data")),
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise UserError(f"--likelihood follows the flow of noise into pixels, and {reason}: leave it out.")
    if not 0 < n <= len(reference.test):
        raise UserError(f"--likelihood {n}: choose from 1 to {len(reference.test)}, as many as are held out.")


def _bits_at_most(pipeline, images: Subset, steps: int, seed: int, bar: tqdm) -> torch.Tensor:
    """`bits_at_most` of images with their own conditions, on the CPU."""
    denoise = denoiser_at(tells(pipeline)(prompt_of(pipeline).of_all(images)), pipeline.objective)
    pixels, generator = images.tensor().to(pipeline.device), torch.Generator().manual_seed(seed)
    spread = pipeline.objective.sigma_data
    return bits_at_most(denoise, pixels, generator, spread, steps, lambda: bar.update(len(images))).cpu()


def _bits(pipeline, images: Subset) -> float:
    """Bits per value of images, each with its own condition."""
    conditioning = Conditioning(prompt_of(pipeline), pipeline.tokenizer, pipeline.text_encoder)
    model = RasterModel(pipeline.transformer, pipeline.condition_encoder)
    accelerator = Accelerator(cpu=pipeline.device.type == "cpu")
    return validate(model, DrawnDataset(images, conditioning, seed=0), accelerator, doing="Likelihood").loss


def webp_bits(images: Subset) -> float:
    """Bits per value of a lossless WebP file of images of one size, side by side in about as many rows as columns."""
    pixels, data = images.tensor(), images.describe()
    n, channels, height, width = pixels.shape
    across = max(1, round(n**0.5))
    sheet = Image.new("RGBA" if channels in (2, 4) else "RGB", (across * width, math.ceil(n / across) * height))
    for i, one in enumerate(pixels):
        sheet.paste(as_image(one, data), (i % across * width, i // across * height))
    file = io.BytesIO()
    sheet.save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)
    return 8 * file.getbuffer().nbytes / pixels.numel()
