"""Numbers of a run, in hex: training losses, held-out losses, and hashes of pixels."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

TRAINING, HELD_OUT, PIXELS = PARTS = ("training losses", "held-out losses", "pixels")
Figures = dict[str, dict[str, str]]  # part: {which number: its value in hex}


def read_run(out: Path) -> Figures:
    """Losses and distances of a run's log in hex, and hashes of its sample grids."""
    found: Figures = {part: {} for part in PARTS}
    log = out / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        entry = json.loads(line)
        if "loss" in entry:
            number = len(found[TRAINING]) + 1  # a step that was logged twice counts twice
            found[TRAINING][f"loss {number}, of step {entry['step']}"] = float(entry["loss"]).hex()
        for where, value in held_out(entry):
            found[HELD_OUT][f"{where} at step {entry['step']}"] = float(value).hex()
    for picture in sorted((out / "samples").glob("*.png")):
        found[PIXELS][picture.name] = hash_of(np.asarray(Image.open(picture)))
    return found


def held_out(entry: dict) -> Iterator[tuple[str, float]]:
    """Name and value of what a log entry says of held-out images."""
    for weights, numbers in entry.items():
        if not isinstance(numbers, dict):
            continue
        if "per_level" in numbers:
            yield f"{weights} loss", numbers["loss"]
            yield from ((f"{weights} error {i}", value) for i, value in enumerate(numbers["per_level"]))
        for metric, measured in numbers.items():
            if isinstance(measured, dict) and "value" in measured:
                yield from ((f"{metric} {key}", measured[key]) for key in ("value", "floor"))


def hash_of(array: np.ndarray) -> str:
    """SHA-256 of an array with its shape and type."""
    what = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(what + np.ascontiguousarray(array).tobytes()).hexdigest()
