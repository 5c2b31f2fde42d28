"""Runs of two processes, and one whose sample is not finite in the second of them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from killing.processes import TOO_LONG, errors_of, start
from places import ROOT, TESTS, TRAIN
from runs import settings

from attndiff.training.batches import DrawnDataset
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer


def launch(name: str, config, script=(TRAIN,)) -> subprocess.CompletedProcess:
    """Two processes, each on a machine of its own where the config is for several: all of them this one."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    command = [*launcher, f"--config_file={ROOT / 'training/launch' / name}.yaml"]
    run = ["--num_processes=2", *map(str, script), str(config)]
    if name != "many_nodes":
        return subprocess.run([*command, *run], capture_output=True, text=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = ["--main_process_ip=127.0.0.1", f"--main_process_port={port}", "--num_machines=2"]
    other = subprocess.Popen([*command, *place, "--machine_rank=1", *run], stdout=subprocess.DEVNULL)
    first = subprocess.run([*command, *place, "--machine_rank=0", *run], capture_output=True, text=True)
    assert other.wait(60) == 0
    return first


def forked(values: dict, patch=lambda: None, **environment: str) -> Path:
    """Two processes that a launcher would have given an environment, forked off this one, which has imported all."""
    out = Path(values["out"])

    def prepare() -> None:
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)  # which this process was alone in
        patch()

    run = start(values, prepare, world=2)
    assert run.wait(TOO_LONG) == 0, errors_of(out.parent)
    return out


def apart(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Relative distance of all tensors together; Muon turns a rounding error of a small gradient into more."""
    both = [(mine[key].double(), value.double()) for key, value in theirs.items()]
    assert both
    return (sum((a - b).square().sum() for a, b in both) / sum(b.square().sum() for _, b in both)).sqrt().item()


POISON = 7  # a sample of step 2, which the second of two processes has


def poison() -> None:
    """Have a sample be no image when it is drawn for the first time."""
    inner = DrawnDataset.sample

    def sample(self, row, visit, sample_id):
        drawn = inner(self, row, visit, sample_id)
        return {**drawn, "images": drawn["images"] * float("nan")} if (sample_id, visit) == (POISON, 0) else drawn

    DrawnDataset.sample = sample


def poisoned(folder: Path, also: str = "") -> Path:
    """The training script with that sample, after another statement."""
    path = [str(TESTS), str(ROOT / "scripts")]
    lines = ["import runpy, sys", f"sys.path[:0] = {path}", "from forked import *", "poison()", also]
    (folder / "poisoned.py").write_text("\n".join([*lines, f"runpy.run_path({TRAIN!r}, run_name='__main__')"]))
    return folder / "poisoned.py"


def trained_alone(out: Path, **changes) -> Path:
    """A run of one process with that sample."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DrawnDataset, "sample", DrawnDataset.sample)  # put back at the end
        poison()
        Trainer(make_config(settings(out, **changes))).run()
    return out


def uncompiled() -> None:
    """Have DeepSpeed's processes talk by gloo: left to itself it compiles a way of its own first, for half a minute."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
