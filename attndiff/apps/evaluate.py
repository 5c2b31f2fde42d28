"""An evaluation from end to end: draw, compare with real images, look for copies, report."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from attndiff.data.subset import Subset
from attndiff.device import best_device
from attndiff.diffusion.objectives import make_objective
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.measure import measure
from attndiff.metrics.near_copies import as_image, draw_neighbours, near_copies, training_pool
from attndiff.metrics.reference import Reference
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import prompt_of
from attndiff.training.batches import DrawnDataset
from attndiff.training.conditioning import Conditioning
from attndiff.training.evaluation.validation import AT_MOST, Validation, validate
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.viewing import contact_sheet, level_curves

SUSPECTS = 100  # samples of training captions that are searched for copies
SHEET = 8  # samples a row and a column of the grid


@dataclass
class Settings:
    """How samples are drawn; stands beside every number.

    Args:
        steps: Sampling steps.
        guidance: Guidance scale.
        seed: Of the first sample, of the choice of real images, and of the classifier.
    """

    steps: int = 20
    guidance: float = 3.0
    seed: int = 0


def evaluate(
    pipeline,
    reference: Reference,
    settings: Settings,
    n: int | None = None,
    extractor: str | None = None,
    pictures: Path | None = None,
) -> dict[str, dict]:
    """All metrics by name, each with ``value``, ``n``, ``extractor``, ``floor``, the settings and the reference.

    Samples are drawn for the captions or classes of held-out images; of a text model, those that are searched for
    copies are drawn for captions it was trained on.

    Args:
        pipeline: The model.
        reference: Real images in its size and channels.
        settings: How to draw.
        n: Samples, and real images on either side; None: as many as the reference offers, up to 1000.
        extractor: ``"inception"``, ``"classifier"``, a folder or Hub id of a vision model; None: Inception where it
            is at hand, else the classifier.
        pictures: Folder for the samples, their nearest training images and the errors per noise level.

    Raises:
        UserError: If the reference is too small, or the extractor cannot be had.
    """
    n = reference.count(n)
    test, others, rest = reference.choose(n, settings.seed)
    chosen = choose_extractor(extractor, test, others, rest, settings.seed, best_device())
    prompt = prompt_of(pipeline)
    seeds = list(range(settings.seed, settings.seed + n))
    samples = sample_pixels(pipeline, prompt.of_all(test), seeds, settings.steps, settings.guidance, quiet=False)
    report = measure(test.tensor(), samples, others.tensor(), chosen)
    if chosen.accuracy is not None:
        report["extractor_accuracy"] = {**chosen.accuracy, "extractor": chosen.name}
    pool, suspects = training_pool(reference), samples
    if prompt.name == "text":  # what is stored comes out at the captions it was stored with
        captions = prompt.of_all(Subset(others, range(min(n, SUSPECTS))))
        suspects = sample_pixels(pipeline, captions, seeds[: len(captions)], settings.steps, settings.guidance)
    copies = near_copies(suspects, reference, pool)
    report["near_copies"] = copies.to_json()
    losses = loss_gap(pipeline, reference, settings.seed)
    if losses is not None:
        report["held_out_error_ratio"] = losses
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        draw_neighbours(suspects, copies, pool).save(pictures / "neighbours.png")
        _draw(samples, losses, pictures)
    common = {**asdict(settings), "reference": reference.describe()}
    return {name: {**entry, **common} for name, entry in report.items()}


@torch.no_grad()
def loss_gap(pipeline, reference: Reference, seed: int) -> dict | None:
    """How much larger the denoising error is on held-out images than on training images; 1 is no difference.

    The floor is the ratio between two disjoint sets of training images. None for a model of latents, for a
    few-step student, which is no denoiser, and where no images are known to be held out.
    """
    if reference.halves or pipeline.vae is not None or pipeline.config.student or len(reference.train) < 2:
        return None
    n = min(AT_MOST, len(reference.test), len(reference.train) // 2)
    test, train, rest = reference.choose(n, seed)
    errors = [_errors(pipeline, images) for images in (test, train, Subset(rest, range(n)))]
    held_out, training, again = errors
    return {
        "value": held_out.x0_error / training.x0_error,
        "n": n,
        "extractor": "squared error of the model's own denoised images, mean over noise levels",
        "floor": again.x0_error / training.x0_error,
        "noise_over_signal": held_out.noise_over_signal,
        "held_out": held_out.per_level,
        "training": training.per_level,
    }


def _errors(pipeline, images: Subset) -> Validation:
    """Errors per noise level on real images with their own conditions."""
    kind = prompt_of(pipeline).name
    conditioning = Conditioning(kind, pipeline.tokenizer, pipeline.text_encoder)
    model = DenoisingModel(pipeline.unet, pipeline.condition_encoder, make_objective(pipeline.config.objective))
    accelerator = Accelerator(cpu=pipeline.device.type == "cpu")
    return validate(model, DrawnDataset(images, conditioning, seed=0), accelerator)


def _draw(samples: torch.Tensor, losses: dict | None, folder: Path) -> None:
    """Write a grid of the first samples, and the errors per noise level where they were measured."""
    shown = [as_image(image) for image in samples[: SHEET * SHEET]]
    rows = {f"{i // SHEET + 1}": shown[i : i + SHEET] for i in range(0, len(shown), SHEET)}
    contact_sheet(rows, [""] * SHEET).save(folder / "samples.png")
    if losses is not None:
        curves = {"held out": losses["held_out"], "training": losses["training"]}
        level_curves(losses["noise_over_signal"], curves, folder / "error_by_noise.png")


def as_text(report: dict[str, dict]) -> str:
    """The report as a table to read."""
    rows = [("metric", "value", "real images", "n", "extractor")]
    rows += [
        (name, f"{entry['value']:.5g}", f"{entry['floor']:.5g}", str(entry["n"]), entry["extractor"])
        for name, entry in report.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]) for row in rows)
