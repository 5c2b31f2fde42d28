"""Checkpoints that are either whole or absent: written aside, hashed, synced, renamed, and only then pruned.

A checkpoint is a folder `step_00000500` with the weights, averages and optimizer moments as safetensors, the step and
optimizer scalars as JSON, and a manifest with the SHA-256 of every file.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from attndiff.errors import UserError
from attndiff.training.parallel.layout import ParallelLayout
from attndiff.training.parallel.sharding import gathered_on_host, like, whole
from attndiff.training.parallel.zero import ZeroGradients
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.length import Length

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
PLANNED = "planned"  # the key of the entries of a `Length` there
LAYOUT = "spread"  # the key of a `ParallelLayout` in progress.json, as the first checkpoints have it
NAME = re.compile(r"step_\d{8,}")


@dataclass
class RunState:
    """What a checkpoint holds: the trained module, its averages, its optimizers, how far it is and on which layout."""

    module: nn.Module
    ema: PowerEMA
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    layout: ParallelLayout | None = None
    replica: nn.Module | None = None  # of a sharded module, for the whole weights
    zero: ZeroGradients | None = None  # that has the moments of DeepSpeed's optimizer
    learned: str | None = None  # SHA-256 of what the run learned from its data
    length: Length | None = None

    def tensors(self, keep: bool = True) -> dict[str, dict[str, torch.Tensor]]:
        """Every tensor by file and name; where it is shared out, all processes ask together.

        Args:
            keep: Whether this process wants them. What is shared out is put together one tensor at a time and then lies
                in main memory: no device has to hold all of it.
        """
        files = {"weights": {n: p.detach() for n, p in self.module.named_parameters()}}
        for sigma in self.ema.averages:
            files[f"ema_{sigma:.3f}"] = self.ema.state_dict(sigma)
        files["optimizer"] = {key: value for key, value in self._moments() if torch.is_tensor(value)}
        gathered: dict[str, dict[str, torch.Tensor]] = {file: {} for file in files}
        for file, group in files.items():
            for name, value in group.items():
                tensor = gathered_on_host(value)
                if keep:
                    gathered[file][name] = tensor.contiguous()
        return gathered

    def named(self) -> dict[str, dict[str, torch.Tensor]]:
        """The weights and their averages by the names that people read."""
        averages = {f"ema_{sigma:.3f}": self.ema.state_dict(sigma) for sigma in self.ema.averages}
        return {"raw": {name: p.detach() for name, p in self.module.named_parameters()}, **averages}

    @torch.no_grad()
    def whole(self) -> "RunState":
        """With weights and averages unsharded, without moments; all processes ask together. Itself if it is that."""
        if self.replica is None:
            return self
        for own, sharded in zip(self.replica.parameters(), self.module.parameters(), strict=True):
            own.copy_(whole(sharded))
        return replace(self, module=self.replica, ema=self.ema.whole(), optimizers=[], replica=None)

    def _moments(self):
        """Optimizer state as (``parameter name/entry``, value) pairs."""
        names = {id(p): name for name, p in self.module.named_parameters()}
        for state in [self.zero.moments()] if self.zero else [optimizer.state for optimizer in self.optimizers]:
            for parameter, entries in state.items():
                for key, value in entries.items():
                    yield f"{names[id(parameter)]}/{key}", value

    @torch.no_grad()
    def restore(self, files: dict[str, dict[str, torch.Tensor]], step: int, seconds: float) -> None:
        """Put back what `tensors` gave."""
        parameters = dict(self.module.named_parameters())
        for name, value in files["weights"].items():
            parameters[name].copy_(like(value, parameters[name]))
        for sigma in self.ema.averages:
            self.ema.load_state_dict(sigma, files[f"ema_{sigma:.3f}"])
        moments: dict[nn.Parameter, dict[str, torch.Tensor]] = {}
        for key, value in files["optimizer"].items():
            name, entry = key.rsplit("/", 1)
            moments.setdefault(parameters[name], {})[entry] = value
        if self.zero:
            self.zero.restore(moments)
        else:
            self._restore_moments(moments)
        self.step, self.seconds = step, seconds

    def _restore_moments(self, moments: dict[nn.Parameter, dict[str, torch.Tensor]]) -> None:
        owner = {p: optimizer for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]}
        for parameter, entries in moments.items():
            placed = {key: value if key == "step" else like(value, parameter) for key, value in entries.items()}
            owner[parameter].state[parameter] = placed


def save_checkpoint(root: Path, state: RunState, keep: int, main: bool = True) -> Path:
    """Commit the state as ``root/step_N`` and prune all but the newest ``keep``.

    All processes call this, and the main one writes. The order is what makes a crash harmless: files, manifest and
    folder are on disk before the rename publishes them, and nothing older goes before that.

    Raises:
        UserError: If the disk is full or cannot be written; older checkpoints are as they were.
    """
    final, files = root / f"step_{state.step:08d}", state.tensors(keep=main)
    if not main:
        return final
    temporary = root / f"tmp_{state.step:08d}"
    for left in root.glob("tmp_*"):  # by a crash
        shutil.rmtree(left)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, state, files)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        older = checkpoints(root)
        before = f"{older[-1].name} is the last one" if older else "there is none before it"
        raise UserError(
            f"checkpoint {final} could not be written ({error}); {before}. Make room or give permission, run again."
        ) from None
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync(root)
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old)
    return final


def _write(folder: Path, state: RunState, files: dict[str, dict[str, torch.Tensor]]) -> None:
    """All files of a checkpoint, on disk when this returns."""
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    progress = {"format_version": FORMAT_VERSION, "step": state.step, "seconds": state.seconds}
    if state.layout:
        progress[LAYOUT] = asdict(state.layout)
    if state.learned:
        progress["learned"] = state.learned
    if state.length and not state.length.fixed:
        progress[PLANNED] = state.length.entries
    (folder / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
    manifest = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def checkpoints(root: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, oldest first."""
    return sorted(path for path in root.glob("step_*") if NAME.fullmatch(path.name))


def newest_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and one sentence for every newer one that is damaged."""
    problems = []
    for folder in reversed(checkpoints(root)):
        damage = _damage(folder)
        if damage is None:
            return folder, problems
        problems.append(f"checkpoint {folder.name} is damaged: {damage}")
    return None, problems


def read_checkpoint(folder: Path) -> tuple[dict[str, dict[str, torch.Tensor]], int, float]:
    """Tensors by file, step and seconds of a checkpoint; raises `UserError` if it is of another format."""
    progress = _progress(folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    names = [Path(name) for name in manifest]  # what else lies there is none of it
    files = {name.stem: load_file(folder / name) for name in names if name.suffix == ".safetensors"}
    return files, progress["step"], progress["seconds"]


def read_layout(folder: Path) -> ParallelLayout | None:
    """How the run of a checkpoint was laid out, if it says so."""
    kept = _progress(folder).get(LAYOUT)
    return ParallelLayout(**kept) if kept else None


def read_length(folder: Path) -> list[tuple[int, int]]:
    """The entries of a `Length` in a checkpoint, by step; none where the number of steps was given."""
    return [tuple(entry) for entry in _progress(folder).get(PLANNED, [])]


def read_learned_name(folder: Path) -> str | None:
    """SHA-256 of what the run of a checkpoint learned from its data; None if it is older than such folders."""
    return _progress(folder).get("learned")


def named_learned(root: Path) -> str | None:
    """The same of a run, from its newest checkpoint that names it; only the small files are read and checked."""
    for folder in reversed(checkpoints(root)):
        file = folder / "progress.json"
        try:
            sound = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))[file.name] == _sha256(file)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if sound and (name := read_learned_name(folder)):
            return name
    return None


def _progress(folder: Path) -> dict:
    progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    if progress["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{folder} is a checkpoint of format {progress['format_version']}, and this attndiff reads "
            f"{FORMAT_VERSION}; go on with the version that wrote it."
        )
    return progress


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable."
    for name, digest in manifest.items():
        if not (folder / name).is_file():
            return f"{name} is missing."
        if _sha256(folder / name) != digest:
            return f"{name} does not match its SHA-256."
    return None


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the disk store a file's content, or a folder's names.

    Windows opens no folders, whose names its file system keeps by itself, and stores what was opened for writing only.
    """
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
