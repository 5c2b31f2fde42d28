"""An evaluation from end to end: draw, compare with real images, look for copies, report."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from attndiff.alpha import has_alpha, is_premultiplied
from attndiff.data.subset import Subset
from attndiff.device import best_device
from attndiff.diffusion.objectives import make_objective
from attndiff.drawn import save_picture
from attndiff.metrics.controls import CONTROLS
from attndiff.metrics.extractors.base import Extractor, NothingLearned
from attndiff.metrics.extractors.choose import choose_extractor, learns_from_rest, train_extractor
from attndiff.metrics.extractors.trained import PRETEXTS
from attndiff.metrics.grounds import views
from attndiff.metrics.measure import measure
from attndiff.metrics.near_copies import as_image, draw_neighbours, near_copies, training_pool
from attndiff.metrics.own_condition import NAMES, own_condition
from attndiff.metrics.reference import Reference
from attndiff.metrics.restoration.inpainting import measure_inpainting
from attndiff.metrics.restoration.upscaling import measure_upscaling
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import prompt_of
from attndiff.tasks.registry import task_of
from attndiff.training.batches import DrawnDataset
from attndiff.training.conditioning import Conditioning
from attndiff.training.evaluation.validation import AT_MOST, Validation, validate
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.viewing import contact_sheet, level_curves

SUSPECTS = 100  # samples of training captions that are searched for copies
SHEET = 8  # samples a row and a column of the grid
RESTORATIONS = {"upscale": measure_upscaling, "inpaint": measure_inpainting}  # by what tasks call their measure


@dataclass
class EvaluationSettings:
    """How samples are drawn; stands beside every number.

    Args:
        steps: Sampling steps.
        guidance: Guidance scale.
        seed: Of the first sample, of the choice of real images, and of the classifier.
    """

    steps: int
    guidance: float
    seed: int = 0


def evaluate(
    pipeline,
    reference: Reference,
    settings: EvaluationSettings,
    n: int | None = None,
    extractor: str | None = None,
    pictures: Path | None = None,
) -> dict[str, dict]:
    """All metrics by name, each with ``value``, ``n``, ``extractor``, ``floor``, the settings and the reference.

    First whether the samples show what was asked for, see `own_condition`; then what `measure` says of them. With alpha
    each is measured on white and on black, as its name says.

    Samples are drawn for the captions or classes of held-out images; of a text model, those that are searched for
    copies are drawn for captions it was trained on.

    Args:
        pipeline: The model.
        reference: Real images in its size and channels.
        settings: How to draw.
        n: Samples, and real images on either side; None: as many as the reference offers, up to 1000.
        extractor: As of `choose_extractor`.
        pictures: Folder for the samples, their nearest training images and the errors per noise level.

    Raises:
        UserError: If the reference is too small, or the extractor cannot be had.
    """
    n = reference.count(n)
    if task_of(pipeline).measure is not None:
        return _restoration(pipeline, reference, settings, n, pictures)
    prompt, sets = prompt_of(pipeline), reference.choose(n, settings.seed)
    chosen, accuracy = _extractor(extractor, sets, settings.seed)
    judge = _judge(prompt.name, chosen, sets, settings.seed)
    draw = partial(sample_pixels, pipeline, steps=settings.steps, guidance=settings.guidance)
    seeds, values = range(settings.seed, settings.seed + n), prompt.of_all(sets[0])
    samples = suspects = draw(values, seeds, quiet=False)
    report, data = {}, reference.test.describe()
    if judge is not None:
        report |= _own(judge, prompt.name, samples, sets[0], values)
    if prompt.reads_text:  # what is stored comes out at the captions it was stored with
        known = Subset(sets[1], range(min(n, SUSPECTS)))
        suspects, values = draw(prompt.of_all(known), seeds[: len(known)]), prompt.of_all(known)
        if judge is not None and learns_from_rest(sets[2]):
            report |= _own(judge, prompt.name, suspects, known, values, "_of_training_captions")
    if chosen is not None:
        report |= measure(sets[0].tensor(), samples, sets[1].tensor(), chosen, data=data)
    report |= accuracy
    pool = training_pool(reference)
    copies = near_copies(suspects, reference, pool)
    report["near_copies"] = copies.to_json()
    losses = loss_gap(pipeline, reference, settings.seed)
    if losses is not None:
        report |= losses
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        save_picture(draw_neighbours(suspects, copies, pool), pictures / "neighbours.png")
        _draw(samples, data, losses, pictures)
    common = {**asdict(settings), "reference": reference.describe()}
    return {name: {**entry, **common} for name, entry in report.items()}


def _restoration(
    pipeline, reference: Reference, settings: EvaluationSettings, n: int, pictures: Path | None
) -> dict[str, dict]:
    """The measures of a task whose right answer is known, on held-out images."""
    test, prompt = reference.choose(n, settings.seed)[0], prompt_of(pipeline)
    real, values = test.tensor(), prompt.of_all(test)

    def tell(rows: slice) -> dict:
        return prompt.arguments(values[rows]) if prompt.is_given else {}

    report, made = RESTORATIONS[task_of(pipeline).measure](pipeline, real, tell, settings.seed, settings.steps)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        data, shown = test.describe(), {"real": real, **made}
        rows = {name: [as_image(image, data) for image in images[:SHEET]] for name, images in shown.items()}
        save_picture(contact_sheet(rows, [""] * min(SHEET, n)), pictures / "samples.png")
    common = {**asdict(settings), "reference": reference.describe()}
    return {name: {**entry, **common} for name, entry in report.items()}


def _extractor(name: str | None, sets: tuple[Subset, ...], seed: int) -> tuple[Extractor | None, dict]:
    """The extractor and what there is to report of it; none where nothing could be learned, with the reason."""
    try:
        chosen = choose_extractor(name, *sets, seed, best_device())
    except NothingLearned as refusal:
        best = max(refusal.results.values(), key=lambda result: result["value"] - result["floor"])
        entry = {**best, "extractor": "attndiff-classifier", "pretexts": refusal.results, "refused": str(refusal)}
        return None, {"extractor_accuracy": entry}
    if chosen.accuracy is None:
        return chosen, {}
    return chosen, {"extractor_accuracy": {**chosen.accuracy, "extractor": chosen.name}}


def _judge(kind: str, chosen: Extractor | None, sets: tuple[Subset, ...], seed: int) -> Extractor | None:
    """What knows captions or classes: the extractor itself if it has learned them, else one trained for that."""
    if kind == "none" or chosen is None:
        return None
    tried = (chosen.accuracy or {}).get("pretexts", {})
    if kind in chosen.own or PRETEXTS[kind] in tried:  # what was tried and not learned is not tried again
        return chosen if kind in chosen.own else None
    try:
        trained = train_extractor(*sets, seed, best_device())
    except NothingLearned:
        return None
    return trained if kind in trained.own else None


def _own(judge: Extractor, kind: str, samples: torch.Tensor, real: Subset, values: list, of: str = "") -> dict:
    """`own_condition` of samples in every view, by name."""
    seen = views(real.describe())
    return {
        f"{NAMES[kind]}{of}{end}": own_condition(judge, kind, view(samples), view(real.tensor()), values)
        for end, view in seen.items()
    }


@torch.no_grad()
def loss_gap(pipeline, reference: Reference, seed: int) -> dict[str, dict] | None:
    """How much larger the denoising error is on held-out images than on training images; 1 is no difference.

    The floor is the ratio between two disjoint sets of training images. None for a model of latents, for a
    few-step student, which is no denoiser, for one of straight alpha, which saw other numbers than are read now, and
    where no images are known to be held out.
    """
    data = pipeline.config.data
    if reference.halves or pipeline.vae is not None or pipeline.config.student or len(reference.train) < 2:
        return None
    if has_alpha(data) and not is_premultiplied(data):
        return None
    n = min(AT_MOST, len(reference.test), len(reference.train) // 2)
    test, train, rest = reference.choose(n, seed)
    errors = [_errors(pipeline, images) for images in (test, train, Subset(rest, range(n)))]
    return {f"held_out_error_ratio{end}": _ratio(errors, end) for end in errors[0].of_views or [""]}


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


def _draw(samples: torch.Tensor, data: dict, losses: dict[str, dict] | None, folder: Path) -> None:
    """Write a grid of the first samples, and the errors per noise level where they were measured."""
    shown = [as_image(image, data) for image in samples[: SHEET * SHEET]]
    rows = {f"{i // SHEET + 1}": shown[i : i + SHEET] for i in range(0, len(shown), SHEET)}
    save_picture(contact_sheet(rows, [""] * SHEET), folder / "samples.png")
    curves = {}
    for name, found in (losses or {}).items():
        ground = name.removeprefix("held_out_error_ratio").replace("_", " ")
        curves |= {f"held out{ground}": found["held_out"], f"training{ground}": found["training"]}
        levels = found["noise_over_signal"]
    if curves:
        level_curves(levels, curves, folder / "error_by_noise.png")


COLUMNS = (*CONTROLS, "other_captions", "other_classes")


def as_text(report: dict[str, dict]) -> str:
    """The report as a table to read: first what judges, then in sentences what does not."""
    judging = {name: entry for name, entry in report.items() if entry.get("judges", "refused" not in entry)}
    spoilt = [name for name in COLUMNS if any(name in entry.get("controls", {}) for entry in judging.values())]
    rows = [("metric", "value", "real images", *(name.replace("_", " ") for name in spoilt), "n", "extractor")]
    for name, entry in judging.items():
        controls = entry.get("controls", {})
        beside = [f"{controls[control]:.4g}" if control in controls else "" for control in spoilt]
        rows.append((name, _number(entry), f"{entry['floor']:.5g}", *beside, str(entry["n"]), entry["extractor"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]) for row in rows]
    return "\n".join([*lines, *_sentences(report)])


def _number(entry: dict) -> str:
    """A value, with its interval if it has one."""
    low, high = entry.get("interval", (None, None))
    return f"{entry['value']:.5g}" if low is None else f"{entry['value']:.3g} [{low:.2g}, {high:.2g}]"


def _sentences(report: dict[str, dict]) -> list[str]:
    """One on every number that is not a judgement, and one where none could be had."""
    lines = [
        f"{name} {entry['value']:.4g} (real images {entry['floor']:.4g}) is not a judgement: {entry['why_not']}"
        for name, entry in report.items()
        if not entry.get("judges", True)
    ]
    return lines + [f"{name}: {entry['refused']}" for name, entry in report.items() if "refused" in entry]
