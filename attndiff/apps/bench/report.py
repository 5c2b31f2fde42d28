"""The result file: `hardware`, and `arms` by name, the networks measured; written as results come in."""

import json
import os
import platform
import shlex
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from attndiff.errors import UserError


class Report:
    """Results so far.

    Args:
        path: JSON file, read if it is there; None keeps nothing.
        device: ``"cpu"`` or ``"cuda"``.
        section: Kind of measurement that is to be added.
        settings: Of that section; those of an earlier call have to be the same.

    Raises:
        UserError: If the file is no result file, or holds results of other hardware or settings.
    """

    parts = ("hardware", "arms")  # of the file, and attributes here

    def __init__(self, path: Path | None, device: str, section: str, settings: dict):
        self.path = path
        self.hardware = describe_hardware(device)
        self.arms: dict[str, dict] = {}
        if path is not None and path.is_file():
            self._read(path, section, settings)
        self.hardware[section] = settings

    def _read(self, path: Path, section: str, settings: dict) -> None:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            hardware = stored["hardware"]
            if set(stored) != set(self.parts):
                raise KeyError(path)
        except (ValueError, KeyError, TypeError):
            raise UserError(f"--json {path} is no result of this benchmark; name another file.") from None
        for key in ("machine", "torch"):
            if hardware[key] != self.hardware[key]:
                raise UserError(
                    f"--json {path} holds results of {hardware[key]}, and this is {self.hardware[key]}; "
                    "name another file."
                )
        if hardware.get(section, settings) != json.loads(json.dumps(settings)):
            raise UserError(f"--json {path} holds results of other settings; name another file.")
        for part in self.parts:
            setattr(self, part, stored[part])

    def arm(self, name: str) -> dict:
        """The results of an arm, to add to."""
        return self.arms.setdefault(name, {})

    def to_json(self) -> dict:
        """Everything."""
        return {part: getattr(self, part) for part in self.parts}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.to_json())


def write_json(path: Path, value: dict) -> None:
    """Replace a file at once, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def describe_hardware(device: str) -> dict[str, str]:
    """What the figures were measured on, when and how."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads"
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return {
        "machine": machine,
        "torch": f"torch {torch.__version__}",
        "diffusers": version("diffusers"),
        "date": date.today().isoformat(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
