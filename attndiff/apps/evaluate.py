"""An evaluation from end to end: draw, compare with real images, look for copies, report."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from attndiff.apps.applying.evaluation import evaluate_pictures
from attndiff.apps.captioning.evaluation import evaluate_captions
from attndiff.apps.denoising import condition_gains, loss_gap
from attndiff.apps.likelihood import check_bound, likelihood, likelihood_bound
from attndiff.data.subset import Subset
from attndiff.device import best_device
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.metrics.controls import CONTROLS
from attndiff.metrics.extractors.base import Extractor, NothingLearned
from attndiff.metrics.extractors.choose import choose_extractor, learns_from_rest, train_extractor
from attndiff.metrics.extractors.trained import PRETEXTS
from attndiff.metrics.grounds import views
from attndiff.metrics.measure import measure
from attndiff.metrics.near_copies import as_image, draw_neighbours, near_copies, training_pool
from attndiff.metrics.own_condition import NAMES, is_choice, own_condition
from attndiff.metrics.reference import Reference, kinds_of
from attndiff.metrics.samples import EvaluationSettings, sample_pixels
from attndiff.tasks.prompts import prompt_of
from attndiff.tasks.registry import task_of
from attndiff.viewing import contact_sheet, level_curves

SUSPECTS = 100  # samples of training captions that are searched for copies
SHEET = 8  # samples a row and a column of the grid


def evaluate(
    pipeline,
    reference: Reference,
    settings: EvaluationSettings,
    n: int | None = None,
    extractor: str | None = None,
    pictures: Path | None = None,
    bounded: int | None = None,
    reader=None,
) -> dict[str, dict]:
    """All metrics by name, each with ``value``, ``n``, ``extractor``, ``floor``, the settings and the reference.

    First whether the samples show what was asked for, see `own_condition`; then what `measure` says of them, and what
    conditions help to denoise, see `attndiff.metrics.denoising.caption_gain`. With alpha each is measured on white and
    on black, as its name says.

    Samples are drawn for the captions or classes of held-out images; of a text model, those that are searched for
    copies are drawn for captions it was trained on.

    Args:
        pipeline: The model.
        reference: Real images in its size and channels.
        settings: How to draw.
        n: Samples, and real images on either side; None: as many as the reference offers, up to 1000.
        extractor: As of `choose_extractor`.
        pictures: Folder for the samples, their nearest training images and the errors per noise level.
        bounded: Held-out images whose bits per value are bounded; None: none are.
        reader: Of `evaluate_pictures`.

    Raises:
        UserError: If the reference is too small or lacks a column, the extractor cannot be had, or the model has no
            such bound.
    """
    n = reference.count(n)
    if bounded is not None:
        check_bound(pipeline, reference, bounded)
    _check_columns(pipeline, reference, settings, n)
    if task_of(pipeline).makes == "captions":
        return evaluate_captions(pipeline, reference, settings.seed, n, pictures, settings.by)
    if task_of(pipeline).measure is not None:
        return evaluate_pictures(pipeline, reference, settings, n, pictures, reader)
    report = _drawn(pipeline, reference, settings, n, extractor, pictures)
    if bounded is not None:
        report |= likelihood_bound(pipeline, reference, settings.seed, bounded)
    common = {**asdict(settings), "reference": reference.describe()}
    return {name: {**entry, **common} for name, entry in report.items()}


def _drawn(
    pipeline, reference: Reference, settings: EvaluationSettings, n: int, extractor: str | None, pictures: Path | None
) -> dict[str, dict]:
    """What samples show and how far they are from real images, what they repeat, and what the model knows itself."""
    prompt, sets = prompt_of(pipeline), reference.choose(n, settings.seed)
    chosen, accuracy = _extractor(extractor, sets, settings.seed)
    judge = _judge(prompt.name, chosen, sets, settings.seed)
    draw = partial(sample_pixels, pipeline, steps=settings.steps, guidance=settings.guidance)
    seeds, values = range(settings.seed, settings.seed + n), prompt.of_all(sets[0])
    samples = suspects = draw(values, seeds, quiet=False)
    report, data = {}, reference.test.describe()
    if judge is not None:
        report |= _own(judge, prompt.name, samples, sets[0], values, settings.within)
        report |= _own_by(judge, prompt.name, samples, sets[0], values, settings)
    if prompt.reads_text:  # what is stored comes out at the captions it was stored with
        known = Subset(sets[1], range(min(n, SUSPECTS)))
        suspects, values = draw(prompt.of_all(known), seeds[: len(known)]), prompt.of_all(known)
        if judge is not None and learns_from_rest(sets[2]):
            ending = "_of_training_captions"
            report |= _own(judge, prompt.name, suspects, known, values, settings.within, ending)
    if chosen is not None:
        report |= measure(sets[0].tensor(), samples, sets[1].tensor(), chosen, data=data)
    report |= accuracy
    pool = training_pool(reference)
    copies = near_copies(suspects, reference, pool)
    report["near_copies"] = copies.to_json()
    losses = None
    if task_of(pipeline).head == "denoising":
        losses = loss_gap(pipeline, reference, settings.seed)
        report |= losses or {}
        report |= condition_gains(pipeline, reference, settings.seed, settings.by, settings.within)
    else:
        report |= likelihood(pipeline, reference, settings.seed)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        save_picture(draw_neighbours(suspects, copies, pool), pictures / "neighbours.png")
        _draw(samples, data, losses, pictures)
    return report


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


def _own(
    judge: Extractor, kind: str, samples: torch.Tensor, real: Subset, values: list, within: str | None, of: str = ""
) -> dict:
    """`own_condition` of samples in every view, by name; nothing where ``within`` leaves nothing to choose among."""
    seen, groups = views(real.describe()), real.texts()[within] if within else None
    if groups and not is_choice(values, groups):
        return {}
    return {
        f"{NAMES[kind]}{of}{end}": own_condition(judge, kind, view(samples), view(real.tensor()), values, groups)
        for end, view in seen.items()
    }


def _own_by(
    judge: Extractor, kind: str, samples: torch.Tensor, real: Subset, values: list, settings: EvaluationSettings
) -> dict:
    """`own_condition` of each kind of images, among its own captions; not of one that has nothing to choose among."""
    report = {}
    for name, rows in kinds_of(real, settings.by).items():
        part, told = Subset(real, rows), [values[i] for i in rows]
        if len(set(told)) > 1:
            report |= _own(judge, kind, samples[rows], part, told, settings.within, f"_of_{name}")
    return report


def _check_columns(pipeline, reference: Reference, settings: EvaluationSettings, n: int) -> None:
    """Raise `UserError` unless the columns that were named are there and divide what this model is told."""
    prompt = prompt_of(pipeline)
    for argument, name in (("--by", settings.by), ("--within", settings.within)):
        if name is None:
            continue
        reference.check_column(name, argument)
        writes = task_of(pipeline).makes == "captions" and argument == "--by"
        if not prompt.is_given or (task_of(pipeline).measure is not None and not writes):
            raise UserError(
                f"{argument} {name}: what it divides is measured of models that draw captions or classes; leave it out."
            )
    test = reference.choose(n, settings.seed)[0]
    if settings.within and not is_choice(prompt.of_all(test), test.texts()[settings.within]):
        raise UserError(
            f"--within {settings.within}: no two different captions or classes share a value of it; "
            "name another column."
        )


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


COLUMNS = (*CONTROLS, "other_captions", "other_classes", "best_template", "shuffled_images")


def as_text(report: dict[str, dict]) -> str:
    """The report as a table to read: first what judges, then in sentences what does not."""
    judging = {name: entry for name, entry in report.items() if entry.get("judges", "refused" not in entry)}
    spoilt = [name for name in COLUMNS if any(name in entry.get("controls", {}) for entry in judging.values())]
    rows = [("metric", "value", "real images", *(name.replace("_", " ") for name in spoilt), "n", "extractor")]
    for name, entry in judging.items():
        controls = entry.get("controls", {})
        beside = [f"{controls[control]:.4g}" if control in controls else "" for control in spoilt]
        rows.append((name, _number(entry), _floor(entry), *beside, str(entry["n"]), entry["extractor"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]) for row in rows]
    return "\n".join([*lines, *_sentences(report)])


def _floor(entry: dict) -> str:
    """What a value is to be compared with; what that is of, where it is not real images."""
    of = f" ({entry['floor_of']})" if "floor_of" in entry else ""
    return f"{entry['floor']:.5g}{of}"


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
