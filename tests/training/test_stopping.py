"""Signals end a run after its step with a checkpoint, and a folder has one run at a time."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import attndiff, make_config, make_images, tree
from runs import losses, settings, weights
from torch.utils.data import get_worker_info
from torch.utils.data._utils.signal_handling import _remove_worker_pids, _set_SIGCHLD_handler, _set_worker_pids

from attndiff.errors import Stopped, UserError
from attndiff.training import batches
from attndiff.training.config import make_config as checked
from attndiff.training.run import hooks, loop
from attndiff.training.run.loop import Trainer
from attndiff.training.state import resume
from attndiff.training.stopping import LOCK, StopSignal, kill_workers, locked


def signal_in_step(trainer: Trainer, step: int, number: int) -> None:
    """Have a signal come in the middle of a step."""
    inner = trainer._step

    def step_with_signal(state, now):
        if now == step:
            os.kill(os.getpid(), number)
        return inner(state, now)

    trainer._step = step_with_signal


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(3600)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("stopping") / "whole"
    Trainer(checked(settings(out))).run()
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_the_step_is_finished_and_the_same_command_goes_on(whole, tmp_path, number):
    cut = tmp_path / "cut"
    trainer = Trainer(checked(settings(cut)))
    signal_in_step(trainer, 1, number)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 2; the same command goes on") as stop:
        trainer.run()
    assert stop.value.code == 128 + number and signal.getsignal(number) is before
    assert (cut / "checkpoints/step_00000002/manifest.json").is_file()
    Trainer(checked(settings(cut))).run()
    assert losses(cut) == losses(whole)
    mine, theirs = weights(cut), weights(whole)
    assert mine.keys() == theirs.keys() and all((mine[key] == theirs[key]).all() for key in theirs)


def test_a_signal_in_the_middle_of_a_save_waits_for_its_end(tmp_path, monkeypatch):
    save = loop.save_checkpoint

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*arguments)

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    with pytest.raises(Stopped, match="after step 3"):
        Trainer(checked(settings(tmp_path / "run"))).run()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000003"]


def test_a_signal_in_a_validation_waits_for_its_end(tmp_path, monkeypatch):
    measure, sent = hooks.validate, []

    def interrupted(*arguments):
        if not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return measure(*arguments)

    monkeypatch.setattr(hooks, "validate", interrupted)
    with pytest.raises(Stopped, match="after step 3"):
        Trainer(checked(settings(tmp_path / "run"))).run()
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "raw" in entry] == [3]
    assert (tmp_path / "run/checkpoints/step_00000003/manifest.json").is_file()


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    trainer = Trainer(checked(settings(tmp_path / "run")))
    signal_in_step(trainer, 5, signal.SIGTERM)
    assert (trainer.run() / "model_index.json").is_file()


class Crash(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("begun", [False, True], ids=["a new run", "a run that goes on"])
@pytest.mark.parametrize("operation", range(5))
def test_a_crash_while_the_settings_are_written_costs_nothing(whole, tmp_path, monkeypatch, operation, begun):
    """Half of a file may be there, or the one and not the other."""
    out, done = tmp_path / "run", []
    if begun:
        shutil.copytree(whole, out)
        shutil.rmtree(out / "checkpoints/step_00000006")
        (out / "config.json").write_text(json.dumps(settings(out)))
    out.mkdir(exist_ok=True)

    def crashing(inner):
        def half(path, *arguments, **options):
            done.append(path)
            if len(done) > operation:
                if inner is Path.write_text:
                    inner(path, arguments[0][: len(arguments[0]) // 2], **options)
                raise Crash
            return inner(path, *arguments, **options)

        return half

    config = checked(settings(out))
    with monkeypatch.context() as patched, contextlib.suppress(Crash):
        patched.setattr(Path, "write_text", crashing(Path.write_text))
        patched.setattr(Path, "replace", crashing(Path.replace))
        patched.setattr(resume, "sync", crashing(resume.sync))
        resume.write_config(config, out)
    assert len(done) == operation + 1
    Trainer(config).run()
    assert all(torch.equal(value, weights(out)[key]) for key, value in weights(whole).items())
    assert json.loads((out / "config.json").read_text())["out"] == str(out)
    assert checked(yaml.safe_load((out / "config.yaml").read_text())) == config


def test_a_second_signal_ends_at_once():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_loader_workers_end_with_the_run_whoever_keeps_its_trainer(tmp_path):
    """They hear no signal, so that Python would wait for them for ever at its own end."""
    whole = Trainer(checked(settings(tmp_path / "whole", optim__workers=2)))
    whole.run()
    assert not multiprocessing.active_children()
    cut = Trainer(checked(settings(tmp_path / "cut", optim__workers=2)))
    signal_in_step(cut, 1, signal.SIGTERM)
    with pytest.raises(Stopped) as kept:
        cut.run()
    assert not multiprocessing.active_children(), kept


def test_a_signal_to_the_whole_group_of_processes_is_answered_in_a_sentence(tmp_path):
    """As a terminal's Ctrl-C or a scheduler sends it, to loader workers too."""
    config = make_config(
        tmp_path / "config.yaml",
        make_images(tmp_path / "images"),
        tmp_path / "run",
        optim={"steps": 100_000, "workers": 2},
        log={"every": 1, "checkpoint_every": 100_000},
    )
    command = [sys.executable, "-m", "attndiff", "train", str(config)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while not (tmp_path / "run/log.jsonl").is_file() and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err.decode()[-2000:]
    assert b"stopped by SIGTERM after step" in err and b"Traceback" not in err
    assert list((tmp_path / "run/checkpoints").glob("step_*/manifest.json"))


@pytest.mark.parametrize(("harm", "says"), [(kill_self, "(exited|is killed)"), (hang, "timed out after 3 s")])
def test_a_loader_worker_that_dies_or_hangs_ends_the_run_in_a_sentence(tmp_path, monkeypatch, harm, says):
    monkeypatch.setattr(batches, "WORKER_TIMEOUT_S", 3)
    trainer = Trainer(checked(settings(tmp_path / "run", optim__workers=2)))
    inner = trainer.train_set.sample

    def sample(row, visit, sample_id):
        if sample_id % 5 == 0 and get_worker_info():
            harm()
        return inner(row, visit, sample_id)

    trainer.train_set.sample = sample
    with pytest.raises(UserError, match=f"a loader worker died or gave nothing.*{says}.*goes on from the last"):
        trainer.run()
    assert not multiprocessing.active_children()


def test_workers_are_ended_without_an_error_though_torch_counts_them_still(monkeypatch):
    """On a busy machine there may be time between the end of a worker and its being waited for."""
    workers = [multiprocessing.Process(target=time.sleep, args=(600,), daemon=True) for _ in range(2)]
    kill = multiprocessing.Process.kill
    monkeypatch.setattr(multiprocessing.Process, "kill", lambda worker: (kill(worker), time.sleep(0.2)))
    for worker in workers:
        worker.start()
    _set_SIGCHLD_handler()
    _set_worker_pids(1, tuple(worker.pid for worker in workers))
    try:
        kill_workers()
        assert not any(worker.is_alive() for worker in workers)
        subprocess.run([sys.executable, "-c", ""], check=True)  # another child's end is heard of, and is no error
    finally:
        _remove_worker_pids(1)
    assert callable(signal.getsignal(signal.SIGCHLD)), "torch listens again"


def test_a_worker_that_dies_while_gradients_are_switched_leaves_them_on(tmp_path, monkeypatch):
    """Its death is raised by a signal's handler, between any two steps of the interpreter."""
    trainer = Trainer(checked(settings(tmp_path / "run")))

    def dies_in_between(state, step):
        torch._C._set_grad_enabled(False)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(trainer, "_step", dies_in_between)
    with pytest.raises(UserError, match="a loader worker died"):
        trainer.run()
    assert torch.is_grad_enabled()


def test_a_run_without_a_whole_checkpoint_is_never_begun_anew(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for weights_file in (tmp_path / "run/checkpoints").glob("*/weights.safetensors"):
        weights_file.write_bytes(weights_file.read_bytes()[:-1])
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole; choose another 'out'"):
        Trainer(checked(settings(tmp_path / "run"))).run()
    assert tree(tmp_path / "run") == before


def test_a_run_whose_checkpoints_are_gone_is_never_begun_anew(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints")
    (out / "config.json").write_text(json.dumps(settings(out)))
    before = tree(out)
    with pytest.raises(UserError, match=r"has saved checkpoints, and .*checkpoints holds none; put them back"):
        Trainer(checked(settings(out))).run()
    assert tree(out) == before


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # and no RANK, as some launchers leave it
    with pytest.raises(UserError, match="the launcher started 2 processes, but 1 came together"):
        Trainer(checked(settings(tmp_path / "run")))


def test_a_second_run_in_a_folder_is_refused_while_the_first_is_alive(tmp_path):
    config = make_config(tmp_path / "config.yaml", make_images(tmp_path / "images"), tmp_path / "run")
    with locked(tmp_path / "run"):
        result = attndiff("train", config)
        assert result.code == 2 and "another run is writing to" in result.err, result.err
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert attndiff("train", config).code == 0


def test_a_killed_run_leaves_no_lock(tmp_path):
    hold = "import sys, time; from pathlib import Path; from attndiff.training.stopping import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another run is writing"), locked(tmp_path / "run"):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path / "run"):
        pass
