"""Runs that go on with other processes or micro-batches, because they were told to or because memory ran out."""

import json
import os
import subprocess

import pytest
import torch
from commands import make_images
from places import TESTS, TRAIN
from runs import TORCHRUN, close, cut, losses, out_of_memory, settings, weights

from attndiff.errors import UserError
from attndiff.training.config import make_config
from attndiff.training.parallel.layout import ParallelLayout, smaller
from attndiff.training.run.loop import Trainer
from attndiff.training.state.checkpoint import read_layout


def drawn(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What the run is going to see from step 4 on, over all micro-batches."""
    seen = list(trainer._batches(3))
    return {key: torch.cat([batch[key] for batch in seen]) for key in ("ids", "images", "noise", "normal", "drop")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("spread") / "whole"
    Trainer(make_config(settings(out))).run()
    return out


def test_another_micro_batch_needs_elastic_and_then_sees_the_same_samples(whole, tmp_path):
    out = cut(whole, tmp_path / "cut")
    values = settings(out, optim__micro_batch=2)
    with pytest.raises(UserError, match=r"made by 1 process with micro-batches of 8, .*of 2: .*add --elastic"):
        Trainer(make_config(values)).run()
    trainer = Trainer(make_config(values), elastic=True)
    mine, theirs = drawn(trainer), drawn(Trainer(make_config(settings(tmp_path / "other"))))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs) and len(mine["ids"]) == 24
    trainer.run()
    assert close(out, whole)
    assert read_layout(out / "checkpoints/step_00000006").micro_batch == 2


def test_from_one_process_to_two_and_back(whole, tmp_path):
    out = cut(whole, tmp_path / "cut")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings(out, log__checkpoint_every=1)))
    command = [*TORCHRUN, TRAIN, str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "add --elastic" in done.stderr
    done = subprocess.run([*command, "--elastic"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes with micro-batches of 4 instead of 1 process with micro-batches of 8" in done.stdout
    assert close(out, whole)
    back = cut(out, tmp_path / "back")
    assert read_layout(back / "checkpoints/step_00000005").processes == 2
    Trainer(make_config(settings(back)), elastic=True).run()
    assert close(back, whole)
    assert read_layout(back / "checkpoints/step_00000006").processes == 1


def test_other_data_is_refused(tmp_path):
    images = make_images(tmp_path / "images")
    values = settings(tmp_path / "run", data__={"path": str(images), "size": 16, "caption_column": "text"})
    Trainer(make_config(values)).run()
    caption = min(images.rglob("*.txt"))
    before = caption.read_text()
    caption.write_text("something else")
    with pytest.raises(UserError, match=r"images of .*run, .*are not those that the run began with"):
        Trainer(make_config(values), elastic=True).run()
    caption.write_text(before)
    Trainer(make_config(values)).run()


def test_memory_that_runs_out_in_a_step_costs_no_step(whole, tmp_path, monkeypatch, capsys):
    out_of_memory(monkeypatch, 10, 3)
    Trainer(make_config(settings(tmp_path / "run"))).run()
    assert "ran out with micro-batches of 8; going on with 4" in capsys.readouterr().out
    assert close(tmp_path / "run", whole)
    assert read_layout(tmp_path / "run/checkpoints/step_00000006") == ParallelLayout(
        1, 2, read_layout(whole / "checkpoints/step_00000006").data, lowered=True
    )
    # A later run of the same command knows.
    stopped = cut(tmp_path / "run", tmp_path / "stopped")
    Trainer(make_config(settings(stopped))).run()
    assert losses(stopped) == losses(tmp_path / "run")[-len(losses(stopped)) :] != []
    mine, theirs = weights(stopped), weights(tmp_path / "run")
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_the_largest_micro_batch_is_tried_before_step_1(tmp_path, monkeypatch, capsys):
    out_of_memory(monkeypatch, 0, 4)
    trainer = Trainer(make_config(settings(tmp_path / "run")))
    trainer.plan()
    assert trainer.layout.micro_batch == 4 and "ran out with micro-batches of 8" in capsys.readouterr().out
    assert all(p.grad is None for p in trainer.parts.model.parameters())


def test_no_memory_for_a_single_image_ends_in_a_sentence(tmp_path, monkeypatch):
    out_of_memory(monkeypatch, 0, 0)
    with pytest.raises(UserError, match=r"not suffice for one image.*gradient_checkpointing"):
        Trainer(make_config(settings(tmp_path / "run"))).run()


def test_two_processes_start_again_with_smaller_micro_batches(whole, tmp_path):
    """Memory runs out on the second process only, in the middle of the run; torchrun starts both again."""
    config, script = tmp_path / "config.json", tmp_path / "train.py"
    config.write_text(json.dumps(settings(tmp_path / "run")))
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "from runs import out_of_memory\n"
        "from attndiff.apps.cli import main\n"
        "if os.environ['RANK'] == '1':\n"
        "    out_of_memory(type('Patch', (), {'setattr': staticmethod(setattr)}), 9, 2)\n"
        "main(['train', *sys.argv[1:]])\n"
    )
    command = [*TORCHRUN, "--max-restarts=1", str(script), str(config)]
    own_store = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=own_store)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "memory ran out in step" in done.stderr and "micro-batches of 2, as memory ran out" in done.stdout
    assert close(tmp_path / "run", whole)
    newest = read_layout(tmp_path / "run/checkpoints/step_00000006")
    assert (newest.processes, newest.micro_batch, newest.lowered) == (2, 2, True)


@pytest.mark.parametrize(("share", "micro", "next_one"), [(8, 8, 4), (96, 96, 48), (9, 9, 3), (7, 7, 1), (12, 6, 3)])
def test_the_next_smaller_micro_batch_divides_the_share(share, micro, next_one):
    assert smaller(share, micro) == next_one
