"""The runs that are killed, and what they have to agree in."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from attndiff.training.run.progress import read_planned
from attndiff.training.state import checkpoint
from attndiff.training.state.checkpoint import newest_checkpoint

STEPS, SAVE_EVERY = 12, 3
TIMED = "minutes"  # the variant whose length is corrected as it goes
LATE = "decoded at the first visit"  # the variant whose images count as too many to be decoded before it
VARIANTS = {  # what each adds to `settings`
    "plain": {},
    "two loader workers": {"optim": {"workers": 2}},
    "drawn value after value": {"task": {"name": "raster"}, "model": {"transformer": {"patch_size": 4}}},
    "captions of images": {
        "task": {"name": "caption"},
        "model": {"text_decoder": {"dropout": 0.1, "token_dropout": 0.3}},
    },
    "accumulation and dropout": {"optim": {"micro_batch": 2}, "model": {"unet": {"dropout": 0.2}}},
    LATE: {"optim": {"workers": 2}},
}


def settings(images: Path, out: Path, variant: str) -> dict:
    """A run of a tiny model that uses everything a checkpoint has to bring back."""
    values = {
        "out": str(out),
        "data": {"path": str(images), "size": 16, "validation": 0.25, "caption_column": "text"},
        "condition": {"kind": "text", "vocab_size": 300, "max_length": 8, "dropout": 0.2},
        "model": {"preset": "tiny"},
        "optim": {"steps": STEPS, "batch_size": 4, "warmup": 2, "precision": "fp32", "flip": 0.5},
        "log": {
            "every": 1,
            "validate_every": 6,
            "sample_every": STEPS,
            "checkpoint_every": SAVE_EVERY,
            "tracker": None,
        },
    }
    values["log"]["prompts"] = ["red", "blue"]
    if variant == TIMED:
        values["optim"] |= {"steps": None, "minutes": 2, "least_steps": 6}
    for section, more in VARIANTS.get(variant, {}).items():
        values[section] = {**values.get(section, {}), **more}
    return values


def make_images(folder: Path, count: int = 16) -> Path:
    """Squares of two colours, with a caption beside each."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[2 + i % 4 : -3, 3:-2] = (200, 30, 30) if i % 2 else (30, 30, 200)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("red" if i % 2 else "blue", encoding="utf-8")
    return folder


def digest(out: Path) -> dict[str, str]:
    """All that a finished run has to agree in: losses by step, and hashes of its files."""
    found: dict[str, str] = {}
    for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            step, loss = f"loss of step {entry['step']}", entry["loss"].hex()
            found[step] = loss if found.get(step, loss) == loss else "two different ones"
    if planned := read_planned(out / "log.jsonl"):
        found["planned steps"] = str(planned)
    last = checkpoint.checkpoints(out / "checkpoints")[-1]
    names = [*last.glob("*.safetensors"), *(out / "samples").glob("*.png")]
    for file in [*names, *(out / "pipeline").rglob("*.safetensors")]:
        found[file.relative_to(out).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def lost(out: Path) -> str | None:
    """What of the committed work is gone after a kill, in words, or None."""
    log = out / "log.jsonl"
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if log.is_file() else []
    last = max((entry["step"] for entry in map(json.loads, whole) if "loss" in entry), default=0)
    committed = (last - 1) // SAVE_EVERY * SAVE_EVERY  # the save after the very last step may not have ended
    newest, _ = newest_checkpoint(out / "checkpoints")
    have = int(newest.name.removeprefix("step_")) if newest else 0
    return None if have >= committed else f"step {committed} had been committed, and {have} is what is left"
