"""What a model's own denoising says of images that it learned from and of others; nothing is sampled."""

import numpy as np
import torch
from accelerate import Accelerator

from attndiff.alpha import has_alpha, is_premultiplied
from attndiff.data.subset import Subset
from attndiff.diffusion.objectives import make_objective
from attndiff.metrics.denoising.caption_gain import ToldErrors, gains, told_errors
from attndiff.metrics.denoising.told import tells
from attndiff.metrics.reference import Reference, kinds_of
from attndiff.tasks.prompts import prompt_of
from attndiff.training.batches import DrawnDataset
from attndiff.training.conditioning import Conditioning
from attndiff.training.evaluation.validation import AT_MOST, Validation, validate
from attndiff.training.heads.denoising import DenoisingModel


def can_compare(pipeline, reference: Reference) -> bool:
    """Whether errors on held-out and on training images can be compared.

    Not for a model of latents, for a few-step student, which is no denoiser, for one of straight alpha, which saw other
    numbers than are read now, and where no images are known to be held out.
    """
    data = pipeline.config.data
    if reference.halves or pipeline.vae is not None or pipeline.config.student or len(reference.train) < 2:
        return False
    return is_premultiplied(data) or not has_alpha(data)


@torch.no_grad()
def loss_gap(pipeline, reference: Reference, seed: int) -> dict[str, dict] | None:
    """How much larger the denoising error is on held-out images than on training images; 1 is no difference.

    The floor is the ratio between two disjoint sets of training images. None where they are not `can_compare`.
    """
    if not can_compare(pipeline, reference):
        return None
    n = min(AT_MOST, len(reference.test), len(reference.train) // 2)
    test, train, rest = reference.choose(n, seed)
    errors = [_errors(pipeline, images) for images in (test, train, Subset(rest, range(n)))]
    return {f"held_out_error_ratio{end}": _ratio(errors, end) for end in errors[0].of_views or [""]}


def condition_gains(
    pipeline,
    reference: Reference,
    seed: int,
    by: str | None = None,
    within: str | None = None,
    at_most: int = AT_MOST,
) -> dict[str, dict]:
    """What captions or classes help to denoise held-out images, beside as many training images, by name.

    Nothing for a model that is told nothing, and where they are not `can_compare`.

    Args:
        pipeline: The model.
        reference: Real images.
        seed: Of the choice of images.
        by: A column of kinds of held-out images; each is measured apart, too.
        within: A column whose value the other row shares whose condition is tried.
        at_most: Images of the held-out part, of each kind, and of training.
    """
    prompt = prompt_of(pipeline)
    if not prompt.is_given or not can_compare(pipeline, reference):
        return {}
    n = min(at_most, len(reference.test), len(reference.train))
    test, train, _ = reference.choose(n, seed)
    parts = {"": test}
    for name, rows in kinds_of(reference.test, by).items():
        rows = np.random.default_rng(seed).permutation(rows)[:at_most]
        parts[f"_of_{name}"] = Subset(reference.test, rows)

    def errors_of(rows: Subset) -> dict[str, ToldErrors]:
        return told_errors(tells(pipeline), pipeline.objective, rows, prompt, within, pipeline.device)

    training, report = errors_of(train), {}
    for end, rows in parts.items():
        report |= gains(prompt.name, errors_of(rows), training, end)
    return report


def _ratio(errors: list[Validation], end: str) -> dict:
    """The errors on held-out, training and other training images in a view, as a metric."""
    held_out, training, again = (found.of_views.get(end, found.per_level) for found in errors)
    return {
        "value": sum(held_out) / sum(training),
        "n": errors[0].n,
        "extractor": "squared error of the model's own denoised images, mean over noise levels",
        "floor": sum(again) / sum(training),
        "noise_over_signal": errors[0].noise_over_signal,
        "held_out": held_out,
        "training": training,
    }


def _errors(pipeline, images: Subset) -> Validation:
    """Errors per noise level on real images with their own conditions."""
    conditioning = Conditioning(prompt_of(pipeline), pipeline.tokenizer, pipeline.text_encoder)
    model = DenoisingModel(pipeline.unet, pipeline.condition_encoder, make_objective(pipeline.config.objective))
    accelerator = Accelerator(cpu=pipeline.device.type == "cpu")
    return validate(model, DrawnDataset(images, conditioning, seed=0), accelerator, images.describe())
