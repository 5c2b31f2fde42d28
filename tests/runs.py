"""Runs of the real trainer on a handful of real images, with the tiny preset, and what they leave."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from attndiff.training.config import make_config
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.run.loop import Trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
FOOD = {
    "path": "emoji32",
    "size": 16,
    "caption_column": "captions",
    "where": {"style": ["noto"], "group": ["Food & Drink"]},
}
ACTIVITIES = {"path": "emoji32", "size": 16, "label_column": "style", "where": {"group": ["Activities"]}}


def settings(out, **changes) -> dict:
    values = {
        "out": str(out),
        "data": FOOD,
        "model": {"preset": "tiny"},
        "optim": {"steps": 6, "batch_size": 8, "warmup": 2, "precision": "fp32", "flip": 0.5},
        "log": {
            "every": 1,
            "validate_every": 3,
            "sample_every": 6,
            "checkpoint_every": 3,
            "prompts": ["pizza, noto"],
            "tracker": None,
        },
    }
    for key, value in changes.items():
        section, name = key.split("__")
        values[section] = {**values.get(section, {}), name: value} if name else value
    return values


def train(out, **changes):
    return Trainer(make_config(settings(out, **changes))).run()


def losses(run) -> list[str]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["loss"].hex() for entry in entries if "loss" in entry]


def weights(run) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("step_*"))
    return {f"{f.stem}/{k}": v for f in newest.glob("*.safetensors") for k, v in load_file(f).items()}


def close(run: Path, other: Path) -> bool:
    """Whether the losses of a run, or of its end, are those of another within rounding."""
    ours, theirs = ([float.fromhex(x) for x in losses(out)] for out in (run, other))
    return len(ours) > 0 and ours == pytest.approx(theirs[-len(ours) :], rel=1e-4)


def cut(whole: Path, out: Path) -> Path:
    """A finished run as it was when it had its last checkpoint but one."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints/step_00000006")
    shutil.rmtree(out / "pipeline")
    (out / "log.jsonl").write_text("")
    stored = json.loads((out / "config.json").read_text()) | {"out": str(out)}
    (out / "config.json").write_text(json.dumps(stored))
    return out


def out_of_memory(monkeypatch, from_call: int, largest: int) -> None:
    """Have the network run out of memory with more than ``largest`` images, from a call on."""
    forward, calls = DenoisingModel.forward, [0]

    def limited(self, batch):
        calls[0] += self.training
        if self.training and calls[0] >= from_call and len(batch["images"]) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, batch)

    monkeypatch.setattr(DenoisingModel, "forward", limited)
