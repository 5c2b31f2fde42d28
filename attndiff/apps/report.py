"""The report of a quickstart: Markdown with its pictures for people, JSON for programs."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from attndiff.apps.environment import describe_environment


def write_report(report: dict, out: Path) -> Path:
    """Complete the report and write ``report.json`` and ``report.md``.

    Args:
        report: What the stages found; ``next`` and ``environment`` are added.
        out: The quickstart's folder, which the report's paths are relative to.

    Returns:
        The Markdown file.
    """
    report["next"] = next_commands(report, out)
    report["environment"] = describe_environment()
    (out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    markdown = out / "report.md"
    markdown.write_text("\n".join(_lines(report)) + "\n", encoding="utf-8")
    return markdown


def next_commands(report: dict, out: Path) -> list[str]:
    """What to type after a quickstart, as it works in this shell."""
    attndiff = command_name()
    prompt, face = report["prompts"]["style"][0], report["prompts"]["classes"][0]
    commands = [
        [attndiff, "sample", str(out / report["trained_model"]), prompt, "--out", "mine.png"],
        [attndiff, "sample", str(out / report["class_model"]), face, "--count", "4", "--out", "class.png"],
        [attndiff, "sample", "emoji-xs", "rocket, fluent flat", "--attention-maps", "maps", "--out", "rocket.png"],
        [attndiff, "doctor", "FOLDER_OF_YOUR_IMAGES"],
    ]
    return [shlex.join(command) for command in commands]


def command_name() -> str:
    """How to call attndiff here: by name where that finds this installation, else by path."""
    script = Path(sys.executable).parent / "attndiff"
    found = shutil.which("attndiff")
    if not script.exists() or (found and Path(found).samefile(script)):
        return "attndiff"
    relative = os.path.relpath(script)
    return str(script) if relative.startswith("..") else relative


def _lines(report: dict) -> list[str]:
    """The Markdown, line by line."""
    style, classes = report["training"]["style"], report["training"]["classes"]
    environment, seconds, student = report["environment"], report["seconds"], report["student"]
    devices = [device["name"] for device in environment["devices"]] or [f"{environment['cpu']['cores']} CPU cores"]
    return [
        "# attndiff quickstart",
        "",
        f"Made in {sum(seconds.values()) / 60:.1f} minutes on {', '.join(devices)}, "
        f"torch {environment['packages']['torch']}, diffusers {environment['packages']['diffusers']}.",
        "",
        "## What the bundled model draws",
        "",
        f"![Samples in several styles]({report['samples']})",
        "",
        "The same prompts and noise with its few-step student, whose guidance is built in: "
        f"{student['images']} images in {student['seconds']} s with {student['steps']} calls of the network each.",
        "",
        f"![Samples of the student]({report['student_samples']})",
        "",
        "## Where each word acts",
        "",
        *[f"![Attention of every word]({picture})\n" for picture in report["attention_pictures"]],
        "## A style of your own",
        "",
        _training(style, "The bundled model, trained on a style that it had never seen"),
        "",
        "Above, the same prompts and noise before; below, after, drawn by diffusers alone "
        "(`open_with_diffusers.py`) in a process of its own.",
        "",
        f"![Before and after]({report['trained_samples']})",
        "",
        f"![Loss]({report['loss_curve']})",
        "",
        f"The model is the folder [{report['trained_model']}]({report['trained_model']}).",
        "",
        "## A model from scratch",
        "",
        _training(classes, "A class-conditional model from random weights"),
        "",
        f"![Samples by class]({report['class_samples']})",
        "",
        f"![Loss]({report['class_loss_curve']})",
        "",
        f"The model is the folder [{report['class_model']}]({report['class_model']}).",
        "",
        "## What to type next",
        "",
        *[f"    {command}" for command in report["next"]],
        "",
        "## Seconds",
        "",
        "| stage | seconds |",
        "|---|---:|",
        *[f"| {name} | {value} |" for name, value in seconds.items()],
    ]


def _training(run: dict, what: str) -> str:
    """A run in one sentence."""
    return (
        f"{what}: {run['training_images']:,} images, {run['steps']:,} steps, {run['images_seen']:,} images seen at "
        f"{run['images_per_second']:.0f} a second; loss on {run['held_out_images']:,} held-out images "
        f"{run['held_out_loss']:.4f}."
    )
