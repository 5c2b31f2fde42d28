"""From the options of `attndiff bench` to a measurement, a result file and a table."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from attndiff.apps.bench.attention import attention_markdown, measure_attention
from attndiff.apps.bench.report import Report, describe_hardware, write_json
from attndiff.apps.bench.speed import full_settings, measure_speed, quick_settings
from attndiff.apps.bench.tables import speed_markdown
from attndiff.errors import UserError
from attndiff.nn.presets import PRESETS


def print_speed(preset: str | None, device: str, quick: bool, json_file: Path | None) -> None:
    """Speed and memory of a preset, by default of the one that is made for the device."""
    settings = (quick_settings if quick else full_settings)(device)
    if preset is not None:
        settings = replace(settings, preset=choose_preset(preset))
    report = Report(json_file, device, "speed", asdict(settings))
    measure_speed(settings, report)
    print("\n" + speed_markdown(report.to_json()))


def print_attention(preset: str | None, device: str, quick: bool, json_file: Path | None) -> None:
    """Numerics and time of the attention backends at the shapes of a preset, or of several."""
    presets = ("xs",) if quick else ("xs", "s", "b")
    rows = measure_attention(device, presets=(choose_preset(preset),) if preset is not None else presets)
    print("\n" + attention_markdown(rows))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, {"hardware": describe_hardware(device), "attention": rows})


def choose_preset(preset: str) -> str:
    """A preset that there is.

    Raises:
        UserError: If there is none of the name.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset {preset} is unknown; choose one of {', '.join(PRESETS)}.")
    return preset


def choose_device(device: str | None) -> str:
    """The device asked for, or CUDA where there is one.

    Raises:
        UserError: If it is neither cpu nor cuda, or not there.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} is unknown: it is cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to measure on the CPU.")
    return device
