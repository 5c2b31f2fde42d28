"""Runs under `accelerate launch` with the configs of training/launch, on two processes of the CPU."""

import json
import subprocess
import sys

import pytest
import torch
from test_spread import close, cut, whole  # noqa: F401 - a fixture
from test_training import losses, settings, weights
from torch import nn

from attndiff.errors import UserError
from attndiff.hub import load
from attndiff.training.checkpoint import read_spread
from attndiff.training.config import OptimConfig, make_config
from attndiff.training.loop import Trainer
from attndiff.training.sharding import blocks
from attndiff.training.zero import zero_stage


def launch(name: str, config, script="training/train.py") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"training/launch/{name}.yaml"]
    return subprocess.run([*command, "--num_processes=2", str(script), str(config)], capture_output=True, text=True)


def apart(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Relative distance of all tensors together; Muon turns a rounding error of a small gradient into more."""
    both = [(mine[key].double(), value.double()) for key, value in theirs.items()]
    assert both
    return (sum((a - b).square().sum() for a, b in both) / sum(b.square().sum() for _, b in both)).sqrt().item()


@pytest.fixture(scope="module", params=["one_node", "fsdp2"])
def launched(request, tmp_path_factory):
    """A run of two processes, and the config that it was launched with."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "config.json").write_text(json.dumps(settings(folder / "run")))
    done = launch(request.param, folder / "config.json")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", request.param


def test_two_processes_have_the_losses_averages_and_pipeline_of_one(whole, launched):  # noqa: F811
    out, name = launched
    assert close(out, whole)
    assert read_spread(out / "checkpoints/step_00000006").sharded == (name == "fsdp2")
    mine, theirs = weights(out), weights(whole)
    assert mine.keys() == theirs.keys()
    for file in ("weights", "ema_0.050", "ema_0.100", "optimizer"):
        assert apart(*({k: v for k, v in each.items() if k.startswith(file)} for each in (mine, theirs))) < 0.01
    ours, its = (load(run / "pipeline").unet.state_dict() for run in (out, whole))
    assert apart(ours, its) < 0.01


@pytest.mark.parametrize("launched", ["fsdp2"], indirect=True)  # test_kill_campaign has the other
def test_a_run_of_two_processes_goes_on_bit_for_bit_and_one_process_takes_it_over(launched, tmp_path):
    out, name = launched
    again = cut(out, tmp_path / "again")
    (tmp_path / "config.json").write_text(json.dumps(settings(again)))
    assert launch(name, tmp_path / "config.json").returncode == 0
    mine, theirs = weights(again), weights(out)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    alone = cut(out, tmp_path / "alone")
    Trainer(make_config(settings(alone)), elastic=True).run()
    assert close(alone, out)


TRACING = """
import functools, runpy, sys
from torch import nn
nn.Module.compile = functools.partialmethod(nn.Module.compile, backend="aot_eager")  # the code it makes takes a minute
runpy.run_path("training/train.py", run_name="__main__")
"""


@pytest.mark.parametrize("launched", ["fsdp2"], indirect=True)
def test_a_sharded_run_compiles(launched, tmp_path):
    out, name = launched
    (tmp_path / "tracing.py").write_text(TRACING)
    config = settings(tmp_path / "run")
    config["optim"]["compile"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = launch(name, tmp_path / "config.json", tmp_path / "tracing.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert close(tmp_path / "run", out)


def test_every_block_is_sharded_by_itself(tmp_path):
    model = Trainer(make_config(settings(tmp_path / "run"))).parts.model
    names = {name for block in blocks(model) for name, module in model.named_modules() if module is block}
    kinds = {name.split(".")[1] for name in names}
    assert kinds == {"down_blocks", "mid_block", "up_blocks", "blocks"} and len(names) == len(blocks(model))
    assert all(isinstance(block, nn.Module) for block in blocks(model))


def test_deepspeed_skips_accumulates_and_goes_on_as_one_process_does(tmp_path):
    """AdamW, whose moments and gradients are shared out; step 2 has too large a gradient and is left out."""
    changes = {"optim__optimizer": "adamw", "optim__skip_above": 2.0, "optim__micro_batch": 2}
    alone, out, again = (tmp_path / name for name in ("alone", "run", "again"))
    Trainer(make_config(settings(alone, **changes | {"optim__micro_batch": 8}))).run()
    (tmp_path / "run.json").write_text(json.dumps(settings(out, **changes)))
    done = launch("deepspeed", tmp_path / "run.json")
    assert done.returncode == 0, done.stderr[-3000:]
    log = (out / "log.jsonl").read_text()
    assert log.count("skipped") == (alone / "log.jsonl").read_text().count("skipped") == 1
    assert close(out, alone) and len(losses(out)) == 5
    assert read_spread(out / "checkpoints/step_00000006").zero
    mine, theirs = weights(out), weights(alone)
    assert mine.keys() == theirs.keys() and {key: v.shape for key, v in mine.items()} == {
        k: v.shape for k, v in theirs.items()
    }
    assert apart(mine, theirs) < 1e-3

    cut(out, again)
    (tmp_path / "again.json").write_text(json.dumps(settings(again, **changes)))
    assert launch("deepspeed", tmp_path / "again.json").returncode == 0
    assert all(torch.equal(value, mine[key]) for key, value in weights(again).items())
    with pytest.raises(UserError, match=r"made by 2 DeepSpeed processes with micro-batches of 2, .*add --elastic"):
        Trainer(make_config(settings(again, **changes))).run()
    taken_over = cut(out, tmp_path / "taken over")
    Trainer(make_config(settings(taken_over, **changes)), elastic=True).run()
    assert close(taken_over, alone) and apart(weights(taken_over), theirs) < 1e-3


@pytest.mark.parametrize(
    "environment, optimizer, says",
    [
        ({}, "muon", "optim.optimizer: .*optim.optimizer=adamw, or launch with .*fsdp2.yaml"),
        ({"ZERO_STAGE": "3"}, "adamw", "zero_stage 1 and 2 without offloading .*fsdp2.yaml"),
        ({"OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "adamw", "without offloading"),
        ({"CONFIG_FILE": "ds.json"}, "adamw", "own config file is not read"),
    ],
)
def test_what_deepspeed_does_not_do_here_is_refused(monkeypatch, environment, optimizer, says):
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    with pytest.raises(UserError, match=says):
        zero_stage(OptimConfig(steps=1, optimizer=optimizer))


def test_deepspeed_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match="asks for DeepSpeed, which is not installed: pip install deepspeed"):
        zero_stage(OptimConfig(steps=1, optimizer="adamw"))
