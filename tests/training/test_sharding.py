"""Runs under `accelerate launch` with the configs of training/launch, on two processes of the CPU."""

import functools
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from forked import POISON, apart, forked, launch, poison, poisoned, trained_alone, uncompiled
from kill_campaign import prepare
from runs import close, cut, losses, settings, weights
from torch import nn

from attndiff.errors import UserError
from attndiff.folder.open import load
from attndiff.training.config import OptimConfig, make_config
from attndiff.training.parallel.zero import zero_stage
from attndiff.training.run.loop import Trainer
from attndiff.training.state.checkpoint import read_layout

NO_DEEPSPEED = 'DeepSpeed is not installed: pip install "attndiff[deepspeed]"'


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained_alone(tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module", params=["many_nodes", "fsdp2"])
def launched(request, tmp_path_factory):
    """A run of two processes, and the config that it was launched with."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "config.json").write_text(json.dumps(settings(folder / "run")))
    done = launch(request.param, folder / "config.json", [poisoned(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", request.param


def skipped(out: Path) -> list[str]:
    """What the log of a run says of steps that were left out."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry["skipped"] for entry in entries if "skipped" in entry]


def test_two_processes_have_the_losses_averages_and_pipeline_of_one(alone, launched):
    out, name = launched
    assert close(out, alone)
    assert read_layout(out / "checkpoints/step_00000006").sharded == (name == "fsdp2")
    mine, theirs = weights(out), weights(alone)
    assert mine.keys() == theirs.keys()
    for file in ("weights", "ema_0.050", "ema_0.100", "optimizer"):
        assert apart(*({k: v for k, v in each.items() if k.startswith(file)} for each in (mine, theirs))) < 0.01
    ours, its = (load(run / "pipeline").unet.state_dict() for run in (out, alone))
    assert apart(ours, its) < 0.01


def test_the_first_process_names_what_was_not_finite_on_the_second_and_both_leave_out_the_step(alone, launched):
    (told,) = skipped(launched[0])
    assert told.startswith("step 2: loss nan, ") and told.endswith("first non-finite output in the batch's images")
    assert f"1 of 8 samples not finite; the worst: {POISON} (noise level" in told
    assert len(losses(launched[0])) == 5 and len(skipped(alone)) == 1


@pytest.mark.parametrize("launched", ["many_nodes"], indirect=True)
def test_what_two_machines_began_goes_on_bit_for_bit_on_one(launched, tmp_path):
    again = cut(launched[0], tmp_path / "again")
    (tmp_path / "config.json").write_text(json.dumps(settings(again)))
    assert launch("one_node", tmp_path / "config.json", ["-m", "attndiff", "train"]).returncode == 0
    mine, theirs = weights(again), weights(launched[0])
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("launched", ["fsdp2"], indirect=True)
def test_a_run_of_two_processes_goes_on_bit_for_bit_and_one_process_takes_it_over(launched, tmp_path):
    out, _ = launched
    again = forked(settings(cut(out, tmp_path / "again")), ACCELERATE_USE_FSDP="true")
    mine, theirs = weights(again), weights(out)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    alone = cut(out, tmp_path / "alone")
    Trainer(make_config(settings(alone)), elastic=True).run()
    assert close(alone, out)


def poison_and_trace() -> None:
    """Compile without inductor: the code that it makes takes a minute."""
    poison()
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend="aot_eager")


@pytest.mark.parametrize("launched", ["fsdp2"], indirect=True)
def test_a_sharded_run_compiles(launched, tmp_path):
    values = settings(tmp_path / "run", optim__compile=True)
    # Forked off a process that has trained nothing: what torch keeps of earlier runs is not made for a fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare) as pool:
        out = pool.submit(forked, values, poison_and_trace, ACCELERATE_USE_FSDP="true").result()
    assert close(out, launched[0])


def test_every_block_is_sharded_by_itself(tmp_path):
    model = Trainer(make_config(settings(tmp_path / "run"))).parts.model
    names = {name for block in model.blocks() for name, module in model.named_modules() if module is block}
    kinds = {name.split(".")[1] for name in names}
    assert kinds == {"down_blocks", "mid_block", "up_blocks", "blocks"} and len(names) == len(model.blocks())
    assert all(isinstance(block, nn.Module) for block in model.blocks())


def test_deepspeed_leaves_out_accumulates_and_goes_on_as_one_process_does(tmp_path):
    """AdamW, whose moments and gradients are shared out, in two passes a step."""
    pytest.importorskip("deepspeed", reason=NO_DEEPSPEED)
    changes = {"optim__optimizer": "adamw", "optim__micro_batch": 2}
    alone = trained_alone(tmp_path / "alone", optim__optimizer="adamw")
    out, again = tmp_path / "run", tmp_path / "again"
    (tmp_path / "run.json").write_text(json.dumps(settings(out, **changes)))
    done = launch("deepspeed", tmp_path / "run.json", [poisoned(tmp_path, "uncompiled()")])
    assert done.returncode == 0, done.stderr[-3000:]
    assert close(out, alone) and len(losses(out)) == 5
    assert [line[:20] for line in skipped(out)] == [line[:20] for line in skipped(alone)] == ["step 2: loss nan, gr"]
    assert read_layout(out / "checkpoints/step_00000006").zero
    mine, theirs = weights(out), weights(alone)
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}
    assert apart(mine, theirs) < 1e-3

    forked(settings(cut(out, again), **changes), uncompiled, ACCELERATE_USE_DEEPSPEED="true")
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
    pytest.importorskip("deepspeed", reason=NO_DEEPSPEED)
    for name, value in environment.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    with pytest.raises(UserError, match=says):
        zero_stage(OptimConfig(steps=1, optimizer=optimizer))


def test_deepspeed_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match="asks for DeepSpeed, which is not installed: pip install deepspeed"):
        zero_stage(OptimConfig(steps=1, optimizer="adamw"))
