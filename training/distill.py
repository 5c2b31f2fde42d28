"""From a model to a student that needs one to four calls of the network, and a comparison of the two."""

import json
import math
from pathlib import Path

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
)

from attndiff.clock import Deadline
from attndiff.data.config import DataConfig
from attndiff.data.subset import Subset
from attndiff.device import best_device
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.metrics.extractors.base import NothingLearned
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.extractors.trained import FEATURES
from attndiff.metrics.frechet import frechet_needs
from attndiff.metrics.measure import Yardsticks, distances
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import Reference, fit_data
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import prompt_of
from attndiff.training.config import DistillConfig, TrainConfig, make_config
from attndiff.training.evaluation.ways import SHOWN, Drawing, Way
from attndiff.training.settings.overrides import apply_overrides
from attndiff.viewing import contact_sheet

CALLS = 35  # of the network at most, for the teacher that a student is compared with
YARDSTICK = 30.0  # seconds of training what distances are measured by, on two cores
KEPT = 0.25  # share of a student's time, at most, that is for its comparison with the teacher


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


def ways(teacher, student) -> dict[str, Way]:
    """The teacher by every solver in `CALLS` calls and at few steps, then the student, with the student's guidance."""
    scale, sigmas = student.config.student["guidance_scale"], student.config.student["sigmas"]
    numbers = sorted(map(int, sigmas), reverse=True)
    found = {}
    for name, scheduler in solvers(teacher.scheduler).items():
        pipeline = type(teacher).from_pipe(teacher, scheduler=scheduler)
        steps = max(n for n in range(1, CALLS + 1) if Way(pipeline, n, scale).calls <= CALLS)
        extra = scheduler is not teacher.scheduler
        found[f"teacher, {name}, {steps} steps"] = Way(pipeline, steps, scale, extra)
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


def comparison_seconds(teacher, settings: DistillConfig, reference: Reference, n: int, deadline: Deadline) -> float:
    """Seconds to keep for `compare`: what it would take as a whole, but no more than `KEPT` of the time there is.

    Args:
        teacher: The pipeline that is to be distilled.
        settings: How.
        reference: Real images of their kind.
        n: Samples each; from `comparable`.
        deadline: By which all is to be done.
    """
    values = prompt_of(teacher).of_all(reference.choose(n, 0)[0])[:SHOWN]
    way = Way(teacher, max(settings.steps), settings.guidance_scale)
    began = deadline.clock()
    sample_pixels(teacher, values, range(len(values)), way.steps, way.guidance)
    a_call = (deadline.clock() - began) / (len(values) * way.calls)
    calls = len(solvers(teacher.scheduler)) * CALLS + way.calls + sum(settings.steps)
    return min(KEPT * max(0.0, deadline.left), n * calls * a_call + YARDSTICK)


def compare(
    teacher, student, reference: Reference, folder: Path, n: int, seed: int = 0, deadline: Deadline | None = None
) -> dict:
    """Measure a student against its teacher on the same captions and noise, as ``distill.json`` and ``distill.png``.

    Where time is short, it is left out in this order what takes most of it: samples, the teacher by other solvers than
    its own, distances. A sentence says so.

    Args:
        teacher: The pipeline that was distilled.
        student: What came of it.
        reference: Real images of their kind.
        folder: Where to write.
        n: Samples each; from `comparable`.
        seed: Of the first sample.
        deadline: By which to end; None: whenever it is done.

    Returns:
        By way of sampling: ``calls``, Frechet and kernel distance (``value``, ``n``, ``extractor``, ``floor``), and of
        each Frechet distance its ratio to the best of the teacher's, ``ratio``, and the same with the floor taken off,
        ``excess``; only ``calls`` and ``guidance`` where there are too few real images for distances, or too little
        time, or nothing to measure them by.
    """
    test, others, rest = reference.choose(n, seed)
    values, needed = prompt_of(teacher).of_all(test), frechet_needs(FEATURES)
    deadline = deadline or Deadline(math.inf)
    until = Deadline(deadline.at - (YARDSTICK if n >= needed else 0.0), deadline.clock)
    drawing = Drawing(ways(teacher, student), values, seed, until, needed)
    samples, n = drawing.run(), drawing.drawn
    report = {name: {"calls": way.calls, "guidance": way.guidance} for name, way in drawing.ways.items()}
    if n >= needed and (yardstick := _yardstick(Subset(test, range(n)), Subset(others, range(n)), rest, seed)):
        for name, images in samples.items():
            report[name] |= yardstick.measure(images)
        _add_ratios(report)
    captions = ["" if value is None else str(value) for value in values[:SHOWN]]
    rows = {name: [as_image(image, test.describe()) for image in images[:SHOWN]] for name, images in samples.items()}
    save_picture(contact_sheet(rows, captions), folder / "distill.png")
    (folder / "distill.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _yardstick(test: Subset, others: Subset, rest: Subset, seed: int) -> Yardsticks | None:
    """What distances are measured by; None, and a sentence, where nothing could be learned from the images."""
    try:
        extractor = choose_extractor(None, test, others, rest, seed, best_device())
    except NothingLearned as refusal:
        print(refusal)
        return None
    return Yardsticks(test.describe(), test.tensor(), others.tensor(), extractor, distances)


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
        needed = frechet_needs(FEATURES)
        return f"no distances: {needed} held-out images are needed, time to sample as many, and something to learn"
    entry = next(iter(report.values()))[metric]
    lines = [f"{metric.replace('_', ' ')}, {entry['extractor']}, n={entry['n']}, real images {entry['floor']:.4g}"]
    lines += [
        f"{name:<32} {way['calls']:>3} calls  {way[metric]['value']:8.4g}  {way['ratio']:5.2f} of the teacher's"
        for name, way in report.items()
    ]
    return "\n".join(lines)
