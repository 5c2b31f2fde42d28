"""From a model to a student that needs one to four calls of the network, and a comparison of the two."""

import json
from dataclasses import dataclass
from pathlib import Path

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)

from attndiff.data.config import DataConfig
from attndiff.data.subset import Subset
from attndiff.device import best_device
from attndiff.errors import UserError
from attndiff.metrics.extractors.base import NothingLearned
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.extractors.trained import FEATURES
from attndiff.metrics.frechet import frechet_needs
from attndiff.metrics.measure import Yardstick, distances
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import Reference, fit_data
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import prompt_of
from attndiff.training.config import TrainConfig, make_config
from attndiff.training.settings.overrides import apply_overrides
from attndiff.viewing import contact_sheet

CALLS = 35  # of the network at most, for the teacher that a student is compared with
SHOWN = 10  # samples a row


def student_config(pipeline, model: str, data: DataConfig, settings: dict, overrides: list[str]) -> TrainConfig:
    """The run that distils a model: its own condition, no sampling guidance.

    Args:
        pipeline: The teacher.
        model: Where it was opened from.
        data: Images like those it was trained on.
        settings: Sections and keys that the command line decides.
        overrides: ``KEY=VALUE``, as of any run.

    Raises:
        UserError: If the data does not fit the model, or a setting is wrong.
    """
    guided = settings["distill"]["guidance_scale"] > 1
    values = {
        "data": fit_data(data, pipeline).model_dump(),
        # A guided student is never sampled without its condition.
        "condition": {"kind": prompt_of(pipeline).name, "dropout": 0.0 if guided else 0.1},
        "model": {"init_from": model},
        # Levels up to pure noise, where sampling begins, more often than a denoiser is trained on them.
        "objective": {"noise_std": 2.0},
        "optim": {"lr": 1e-3, "adamw_lr": 5e-4, "decay": 0.5},
    }
    for section, more in settings.items():
        values[section] = {**values.get(section, {}), **more} if isinstance(more, dict) else more
    values["log"] = {"guidance_scale": 1.0}
    apply_overrides(values, overrides, TrainConfig)
    return make_config(values)


@dataclass
class Way:
    """One way to sample.

    Args:
        pipeline: Of the teacher or the student.
        steps: Of its scheduler.
        guidance: Guidance scale.
    """

    pipeline: object
    steps: int
    guidance: float

    @property
    def calls(self) -> int:
        """Evaluations of the network for one image."""
        calls = self.steps * self.pipeline.scheduler.order - (self.pipeline.scheduler.order - 1)
        return calls * (2 if self.guidance > 1 else 1)


def ways(teacher, student) -> dict[str, Way]:
    """The teacher by every solver in `CALLS` calls and at few steps, then the student, with the student's guidance."""
    scale, sigmas = student.config.student["guidance_scale"], student.config.student["sigmas"]
    numbers = sorted(map(int, sigmas), reverse=True)
    found = {}
    for name, scheduler in solvers(teacher.scheduler).items():
        pipeline = type(teacher).from_pipe(teacher, scheduler=scheduler)
        steps = max(n for n in range(1, CALLS + 1) if Way(pipeline, n, scale).calls <= CALLS)
        found[f"teacher, {name}, {steps} steps"] = Way(pipeline, steps, scale)
    found[f"teacher, {numbers[0]} steps"] = Way(teacher, numbers[0], scale)
    for steps in numbers:
        found[f"student, {steps} step{'s' * (steps > 1)}"] = Way(student, steps, 1.0)
    return found


def solvers(own: SchedulerMixin) -> dict[str, SchedulerMixin]:
    """Stock solvers of flow models by name: the teacher's own, and the usual others."""
    shifted = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 0.5}
    return {
        "its own": own,
        "Euler": FlowMatchEulerDiscreteScheduler(),
        "Heun": FlowMatchHeunDiscreteScheduler(shift=0.5),
        "DPM-Solver++": DPMSolverMultistepScheduler(**shifted),
    }


def comparable(reference: Reference, asked: int | None) -> int:
    """Samples to compare by; fewer than a distance needs are only drawn.

    Raises:
        UserError: If more are asked for than there are images, or fewer than a distance needs.
    """
    n, needed = reference.count(asked), frechet_needs(FEATURES)
    if asked is not None and asked < needed:
        raise UserError(f"--n {asked} is too few to measure distances by; give {needed} or more, or leave it out.")
    return n


def compare(teacher, student, reference: Reference, folder: Path, n: int, seed: int = 0) -> dict:
    """Measure a student against its teacher on the same captions and noise, as ``distill.json`` and ``distill.png``.

    Args:
        teacher: The pipeline that was distilled.
        student: What came of it.
        reference: Real images of their kind.
        folder: Where to write.
        n: Samples each; from `comparable`.
        seed: Of the first sample.

    Returns:
        By way of sampling: ``calls``, Frechet and kernel distance (``value``, ``n``, ``extractor``, ``floor``), and of
        each Frechet distance its ratio to the best of the teacher's, ``ratio``, and the same with the floor taken off,
        ``excess``; only ``calls`` and ``guidance`` where there are too few real images for distances, or
        nothing to measure them by.
    """
    test, others, rest = reference.choose(n, seed)
    enough = n >= frechet_needs(FEATURES)
    yardstick = _yardstick(test, others, rest, seed) if enough else None
    values = prompt_of(teacher).of_all(test)
    report, rows = {}, {}
    for name, way in ways(teacher, student).items():
        samples = sample_pixels(way.pipeline, values, range(seed, seed + n), way.steps, way.guidance, quiet=False)
        report[name] = {"calls": way.calls, "guidance": way.guidance}
        if yardstick is not None:
            report[name] |= yardstick.measure(samples)
        rows[name] = [as_image(image) for image in samples[:SHOWN]]
    if yardstick is not None:
        _add_ratios(report)
    captions = ["" if value is None else str(value) for value in values[:SHOWN]]
    contact_sheet(rows, captions).save(folder / "distill.png")
    (folder / "distill.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _yardstick(test: Subset, others: Subset, rest: Subset, seed: int) -> Yardstick | None:
    """What distances are measured by; None, and a sentence, where nothing could be learned from the images."""
    try:
        extractor = choose_extractor(None, test, others, rest, seed, best_device())
    except NothingLearned as refusal:
        print(refusal)
        return None
    return Yardstick(test.tensor(), others.tensor(), extractor, distances)


def _add_ratios(report: dict) -> None:
    """Put every Frechet distance beside the least of the teacher's."""
    metric = measured(report)
    best = min((way[metric] for name, way in report.items() if name.startswith("teacher")), key=lambda d: d["value"])
    for way in report.values():
        value, floor = way[metric]["value"], way[metric]["floor"]
        way |= {"ratio": value / best["value"], "excess": (value - floor) / (best["value"] - floor)}


def measured(report: dict) -> str | None:
    """Name of the Frechet distance in a report, ``fid`` where it is that; None where there is none."""
    return next((name for name, value in next(iter(report.values())).items() if isinstance(value, dict)), None)


def as_text(report: dict) -> str:
    """A comparison as a table to read."""
    metric = measured(report)
    if metric is None:
        return f"no distances: {frechet_needs(FEATURES)} held-out images are needed, and something to learn from them"
    entry = next(iter(report.values()))[metric]
    lines = [f"{metric.replace('_', ' ')}, {entry['extractor']}, n={entry['n']}, real images {entry['floor']:.4g}"]
    lines += [
        f"{name:<32} {way['calls']:>3} calls  {way[metric]['value']:8.4g}  {way['ratio']:5.2f} of the teacher's"
        for name, way in report.items()
    ]
    return "\n".join(lines)
