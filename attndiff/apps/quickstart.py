"""The whole of attndiff once, on what ships with it: sample, look inside, train, open elsewhere, report."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from attndiff.apps.report import write_report
from attndiff.apps.sample import Request, open_model, sample_rows, save_attention
from attndiff.apps.timetable import Stage, Timetable
from attndiff.clock import Clock, Deadline
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.folder.shipped import ASSETS, CONCEPTS, bundled_model
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.evaluation.samples import grid_prompts
from attndiff.training.run.loop import Trainer
from attndiff.training.run.progress import read_log
from attndiff.viewing import contact_sheet

MARKER = ".attndiff-quickstart"
OPENER = "open_with_diffusers.py"
FOLDERS = ("attention", "style", "classes")
PICTURES = ("samples", "student-samples", "trained-samples", "class-samples", "loss-curve", "class-loss-curve")
FILES = (*(f"{name}.png" for name in PICTURES), OPENER, "report.md", "report.json")

TIMED = 16  # images of the student


@dataclass
class Tour:
    """What a quickstart shows.

    Args:
        model: Text model to sample and to adapt: a bundled name or a folder.
        student: A few-step student of it, likewise.
        concepts: What it draws.
        styles: In which styles; a prompt is ``"concept, style"``.
        looked_inside: Prompts whose attention is shown.
        style_recipe: Recipe, by name or file, that adapts the model to a style which it has not seen.
        class_recipe: Recipe that trains a class model from random weights.
        overrides: ``KEY=VALUE`` settings by recipe.
        steps: Sampling steps; None for the model's own number.
        minutes: For all of it. Recipes that name minutes get fewer where the machine is slow.
    """

    model: str = "emoji-xs"
    student: str = "emoji-xs-student"
    concepts: tuple[str, ...] = CONCEPTS
    styles: tuple[str, ...] = ("fluent 3d", "fluent flat", "noto")
    looked_inside: tuple[str, ...] = ("red apple, fluent 3d", "blue heart, noto", "cat face, fluent flat")
    style_recipe: str = "emoji-style"
    class_recipe: str = "faces"
    overrides: dict[str, list[str]] = field(default_factory=dict)
    steps: int | None = None
    minutes: float = 10.0

    def config(self, recipe: str, out: Path, seconds: float | None = None) -> TrainConfig:
        """A recipe's settings with the run in ``out``, and in so many seconds if it names minutes."""
        config = load_config(recipe, [*self.overrides.get(recipe, []), f"out={out}", "log.tracker=null"])
        if config.optim.minutes and seconds is not None:
            config.optim.minutes = seconds / 60
        return config


def run_quickstart(out: Path, tour: Tour | None = None, clock: Clock = time.perf_counter) -> dict:
    """Run all stages and write ``report.md`` and ``report.json``.

    Args:
        out: New or empty folder, or that of an earlier quickstart, which is redone.
        tour: What to show.
        clock: For all that is timed.

    Returns:
        The report, as in ``report.json``.

    Raises:
        UserError: If ``out`` holds anything else, or the model to begin with is not there.
    """
    tour = tour or Tour()
    deadline = Deadline.after(60 * tour.minutes, clock)
    check_folder(out)
    for model in (tour.model, tour.student):
        if not folder_of(model).is_dir():
            raise UserError(f"the model {model} is not there; install attndiff with its assets.")
    claim_folder(out)
    return Quickstart(out, tour, deadline).run()


def folder_of(model: str) -> Path:
    """Where a bundled name or a folder lies."""
    return bundled_model(model) or Path(model)


def check_folder(out: Path) -> None:
    """Raise `UserError` if ``out`` is a file or holds anything but an earlier quickstart."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"--out {out} holds files that are not a quickstart's; choose an empty or new folder.")


def claim_folder(out: Path) -> None:
    """Make the folder, or take out of it what an earlier quickstart wrote."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)


class Quickstart:
    """The stages; each fills in its part of ``report``, paths relative to the folder."""

    def __init__(self, out: Path, tour: Tour, deadline: Deadline):
        self.out, self.tour, self.deadline = out, tour, deadline
        self.report: dict = {"bundled_model": str(folder_of(tour.model).resolve()), "seconds": {}}
        self.pipeline = open_model(self.report["bundled_model"])
        self.prompts: dict[str, list[str]] = {}  # of the sample grids, by run

    def run(self) -> dict:
        """All stages in turn, with progress and time left."""
        timetable = Timetable(self.stages(), self.deadline)
        for number, (stage, left) in enumerate(timetable.run(), 1):
            total = len(timetable.stages)
            print(f"[{number}/{total}] {stage.name} (about {left / 60:.1f} minutes left)", flush=True)
        self.report["seconds"] = {name: round(seconds, 2) for name, seconds in timetable.taken.items()}
        markdown = write_report(self.report, self.out)
        print(f"done in {sum(self.report['seconds'].values()) / 60:.1f} minutes: {markdown}")
        print(f"next: {self.report['next'][0]}")
        return self.report

    def stages(self) -> list[Stage]:
        """What is done, in order."""
        return [
            Stage("sampling the bundled model", lambda _: self.sample(), 15),
            Stage("sampling its few-step student", lambda _: self.sample_student(), 5),
            Stage("looking inside", lambda _: self.look_inside(), 15),
            self._training("training a new style", self.train_style, self.tour.style_recipe),
            self._training("training a class model from scratch", self.train_classes, self.tour.class_recipe),
            Stage("opening both with diffusers alone", lambda _: self.open_elsewhere(), 40),
        ]

    def _training(self, name: str, run: Callable[[float], None], recipe: str) -> Stage:
        """A stage that trains: its time is that of the recipe, if that names one, and a minute otherwise."""
        minutes = self.tour.config(recipe, self.out).optim.minutes
        return Stage(name, run, 60 * (minutes or 1), flexible=minutes is not None)

    def sample(self) -> None:
        """A grid of the model's own styles."""
        save_picture(self._grid(self.pipeline, self.tour.steps), self.out / "samples.png")
        self.report["samples"] = "samples.png"

    def sample_student(self) -> None:
        """The same grid in a few calls of the network, and how long `TIMED` images take."""
        student = open_model(self.tour.student)
        save_picture(self._grid(student, None), self.out / "student-samples.png")
        prompts = [f"{self.tour.concepts[i % len(self.tour.concepts)]}, {self.tour.styles[0]}" for i in range(TIMED)]
        start = time.perf_counter()
        sample_rows(student, Request(prompts))
        seconds = round(time.perf_counter() - start, 2)
        steps, _ = student.own_defaults()
        self.report |= {"student_samples": "student-samples.png"}
        self.report["student"] = {"images": TIMED, "steps": steps, "seconds": seconds}

    def _grid(self, pipeline: AttnDiffPipeline, steps: int | None) -> Image.Image:
        """All concepts in all styles, from the same noise whatever the pipeline."""
        rows = {}
        for row, style in enumerate(self.tour.styles):
            request = Request([f"{concept}, {style}" for concept in self.tour.concepts], steps, seed=100 * row)
            rows[style] = sample_rows(pipeline, request)[0].images
        return contact_sheet(rows, list(self.tour.concepts))

    def look_inside(self) -> None:
        """Pictures of where each word acts."""
        prompts = list(self.tour.looked_inside)
        rows = sample_rows(self.pipeline, Request(prompts, self.tour.steps, attention=True))
        paths = save_attention(self.pipeline, rows, prompts, self.out / "attention")
        self.report["attention_pictures"] = [path.relative_to(self.out).as_posix() for path in paths]
        self.report["attention"] = self.report["attention_pictures"][0]

    def train_style(self, seconds: float) -> None:
        """Adapt the model to a style that it has not seen."""
        self._train("style", self.tour.style_recipe, seconds)
        self.report |= {"trained_model": "style/pipeline", "loss_curve": "loss-curve.png"}

    def train_classes(self, seconds: float) -> None:
        """A small model of classes from random weights."""
        self._train("classes", self.tour.class_recipe, seconds)
        self.report |= {"class_model": "classes/pipeline", "class_loss_curve": "class-loss-curve.png"}

    def _train(self, name: str, recipe: str, seconds: float) -> None:
        """One run in the folder ``name``; notes what to sample from it and what it came to."""
        trainer = Trainer(self.tour.config(recipe, self.out / name, seconds), clock=self.deadline.clock)
        trainer.run()
        curve = {"style": "loss-curve.png", "classes": "class-loss-curve.png"}[name]
        shutil.copyfile(trainer.out / "loss_curve.png", self.out / curve)
        self.prompts[name] = grid_prompts(trainer.parts, trainer.config.log.prompts)
        steps, validations = read_log(trainer.out / "log.jsonl")
        losses = {key: value["loss"] for key, value in validations[-1].items() if isinstance(value, dict)}
        self.report.setdefault("training", {})[name] = {
            "training_images": len(trainer.train_set),
            "steps": steps[-1]["step"],
            "images_seen": steps[-1]["images"],
            "images_per_second": round(steps[-1]["images_per_second"], 1),
            "held_out_loss": min(losses.values()),
            "held_out_images": len(trainer.held_out),
        }

    def open_elsewhere(self) -> None:
        """Sample both trained folders in processes of their own that know diffusers but not attndiff."""
        shutil.copyfile(ASSETS / OPENER, self.out / OPENER)
        with ThreadPoolExecutor() as pool:
            style, classes = pool.map(self._open, ("style", "classes"))
        before = sample_rows(self.pipeline, Request(self.prompts["style"], self.tour.steps))[0].images
        rows = {"before": before, "after": style}
        save_picture(contact_sheet(rows, self.prompts["style"]), self.out / "trained-samples.png")
        save_picture(contact_sheet({"": classes}, self.prompts["classes"]), self.out / "class-samples.png")
        self.report |= {"trained_samples": "trained-samples.png", "class_samples": "class-samples.png"}
        self.report["prompts"] = self.prompts

    def _open(self, name: str) -> list[Image.Image]:
        """Images that a fresh process made from one of the trained folders."""
        images = self.out / name / "opened"
        command = [OPENER, f"{name}/pipeline", f"{name}/opened", *self.prompts[name]]
        with TemporaryDirectory() as modules:
            # diffusers copies a folder's code there file by file: of two processes that open the same code at once,
            # one would read what the other has half written.
            own = {**os.environ, "HF_MODULES_CACHE": modules}
            result = subprocess.run([sys.executable, *command], cwd=self.out, env=own, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"diffusers could not open {self.out / name / 'pipeline'}:\n{result.stderr}")
        return [Image.open(path).copy() for path in sorted(images.glob("*.png"))]
