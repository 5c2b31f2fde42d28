"""The learning-rate range test and the batch-size finder, on a tiny model and real images."""

import json

import pytest
import torch
import yaml
from commands import attndiff, tree
from PIL import Image
from runs import settings, train

from attndiff.errors import UserError
from attndiff.training.config import load_config, make_config
from attndiff.training.run import batch_size, lr_range
from attndiff.training.run.batch_size import BatchSizes, Trial, candidate_sizes, finder_config, try_batch_sizes
from attndiff.training.run.loop import Trainer
from attndiff.training.run.lr_range import LRRange, fixed_batch, held_out_loss, range_config, range_test

# AdamW at a hundred times this rate destroys the tiny network; Muon's normalised steps do not.
HOT = {"optim__optimizer": "adamw", "optim__lr": 0.1, "optim__flip": 0.0}


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """What `attndiff train --find-lr` said and left beside a finished run of other settings."""
    out = tmp_path_factory.mktemp("finders") / "run"
    train(out)
    before = tree(out)
    config = out.parent / "config.yaml"
    config.write_text(yaml.safe_dump(settings(out, **HOT)))
    return out, before, attndiff("train", config, "--find-lr"), config


def test_the_suggested_rate_is_where_the_loss_falls_and_below_divergence(tested):
    out, _, result, _ = tested
    assert result.code == 0, result.err
    found = json.loads((out / "lr_range.json").read_text())
    rates, losses = found["rates"]["optim.lr"], found["held_out_loss"]
    assert rates[0] == pytest.approx(1e-3) and found["diverged_at"] == pytest.approx(rates[-1])
    assert len(rates) == len(losses) == len(found["batch_loss"]) < lr_range.STEPS
    suggestion = found["suggestion"]["optim.lr"]
    at, lowest = rates.index(pytest.approx(suggestion)), losses.index(min(losses))
    assert suggestion < found["diverged_at"] / 10
    assert min(losses) < 0.8 * losses[0] and at <= lowest and losses[at + 4] < losses[at - 4]
    assert losses[-1] > 2 * min(losses)


def test_the_test_leaves_a_picture_and_the_setting_to_type(tested):
    out, _, result, config = tested
    assert Image.open(out / "lr_range.png").width > 300 and str(out / "lr_range.png") in result.out
    overrides = result.out.split("to use it:")[1].split()
    suggestion = json.loads((out / "lr_range.json").read_text())["suggestion"]["optim.lr"]
    assert load_config(config, overrides).optim.lr == pytest.approx(suggestion, rel=0.05)
    assert "100" in result.err and "held-out loss" in result.err  # the bar


def test_the_run_in_the_same_folder_stays_as_it_was(tested):
    out, before, _, _ = tested
    after = tree(out)
    assert {name: after.pop(name) for name in ("lr_range.json", "lr_range.png")}
    assert after == before


def test_a_run_may_start_where_only_a_test_has_been(tmp_path):
    for name in ("lr_range.json", "lr_range.png"):
        (tmp_path / name).write_text("")
    Trainer(make_config(settings(tmp_path)))
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a run's"):
        Trainer(make_config(settings(tmp_path)))


def test_the_loss_is_taken_on_the_same_noise_at_even_levels(tmp_path):
    trainer = Trainer(range_config(make_config(settings(tmp_path))))
    first, second = fixed_batch(trainer), fixed_batch(trainer)
    assert all(torch.equal(first[key], second[key]) for key in first)
    quantiles = torch.special.ndtr(first["normal"].double()).sort().values * len(first["normal"])
    assert torch.allclose(quantiles, torch.arange(len(quantiles), dtype=torch.double) + 0.5, atol=1e-3)
    assert len(first["noise"].flatten(1).unique(dim=0)) == len(quantiles) and not first["drop"].any()
    assert held_out_loss(trainer, first) == held_out_loss(trainer, second)


def poison(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.parts.model.unet.stem.weight[0, 0, 0, 0] = float("nan")


def test_a_loss_that_is_no_number_ends_the_test(tmp_path, monkeypatch):
    trainer = Trainer(range_config(make_config(settings(tmp_path / "run"))))
    steps = []

    def poisoned(trainer, batch):
        loss = held_out_loss(trainer, batch)
        steps.append(loss)
        if len(steps) == 12:
            poison(trainer)
        return loss

    monkeypatch.setattr(lr_range, "held_out_loss", poisoned)
    found = range_test(trainer)
    stored = json.loads((tmp_path / "run/lr_range.json").read_text())
    assert found.losses == stored["held_out_loss"] == steps and len(steps) == 12
    assert stored["diverged_at"] == pytest.approx(2e-5 * 1e4 ** (12 / 99))


def test_a_broken_model_or_an_absurd_rate_is_said_at_once(tmp_path):
    trainer = Trainer(range_config(make_config(settings(tmp_path / "run", **HOT | {"optim__lr": 1e38}))))
    with pytest.raises(UserError, match=r"one step at optim.lr 1e\+36 breaks the model; lower optim.lr"):
        range_test(trainer)
    poison(trainer)
    with pytest.raises(UserError, match="step 1: loss nan"):
        range_test(trainer)
    assert not (tmp_path / "run").exists()


def test_no_rate_is_suggested_where_the_loss_does_not_fall(tmp_path):
    found = LRRange({"optim.lr": 1e-3}, [2.0**i for i in range(20)], [1 + 0.01 * i for i in range(20)], [1.0] * 20)
    assert found.suggestion() is None and "none" in found.lines(tmp_path)[-1]


def test_a_range_that_ends_while_the_loss_falls_is_said_so(tmp_path):
    falling = [1 - 0.01 * i for i in range(20)]
    found = LRRange({"optim.lr": 1e-3}, [1.1**i for i in range(20)], falling, falling)
    assert "test again" in found.lines(tmp_path)[-1] and found.suggestion()
    found.diverged_at = 7.0
    assert not any("test again" in line for line in found.lines(tmp_path))


def test_both_rates_of_muon_move_together():
    found = LRRange(lr_range.tested_rates(make_config(settings("x")).optim))
    assert found.overrides(0.5) == ["optim.lr=0.001", "optim.adamw_lr=0.0005"]


def test_the_sizes_divide_the_batch():
    assert candidate_sizes(96) == [1, 2, 4, 8, 16, 32, 96]
    assert candidate_sizes(7) == [1, 7] and candidate_sizes(1) == [1]


def test_the_smallest_size_near_the_best_throughput_is_chosen():
    rates = {1: 50.0, 2: 90.0, 4: 99.0, 8: 100.0, 16: 0.0}
    assert BatchSizes([Trial(size, rate, 0) for size, rate in rates.items()], 16).suggestion() == 4


def test_the_finder_stops_at_the_size_that_does_not_fit(tmp_path, monkeypatch):
    run, tried = batch_size.passes, []

    def limited(model, batch, accelerator):
        tried.append(len(batch["images"]))
        if tried[-1] >= 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        run(model, batch, accelerator)

    monkeypatch.setattr(batch_size, "passes", limited)
    monkeypatch.setattr(batch_size, "SECONDS", 0.01)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(tmp_path / "run", optim__batch_size=32, optim__micro_batch=3)))
    result = attndiff("train", config, "--find-batch-size")
    assert result.code == 0, result.err
    assert sorted(set(tried)) == [1, 2, 4, 8] and tried.count(8) == 1
    assert "does not fit" in result.out and not (tmp_path / "run").exists()
    override = result.out.split("to use it:")[1].strip()
    assert override in {f"optim.micro_batch={size}" for size in (1, 2, 4)}
    Trainer(load_config(config, [override]))


def finder(tmp_path, monkeypatch) -> Trainer:
    monkeypatch.setattr(batch_size, "SECONDS", 0.01)
    return Trainer(finder_config(make_config(settings(tmp_path / "run", optim__batch_size=32))))


def test_on_cpu_a_size_beyond_the_free_memory_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "free_memory", lambda: 2**20)
    trials = try_batch_sizes(finder(tmp_path, monkeypatch)).trials
    assert len(trials) > 1 and all(trial.images_per_second > 0 for trial in trials[:-1])
    assert trials[-1].images_per_second == 0 and trials[-1].activations > 2**19 >= trials[-2].activations


def test_an_image_that_does_not_fit_and_a_real_fault_are_told_apart(tmp_path, monkeypatch):
    def failing(error):
        def passes(model, batch, accelerator):
            raise error

        monkeypatch.setattr(batch_size, "passes", passes)
        return finder(tmp_path, monkeypatch)

    with pytest.raises(UserError, match="not even one image fits into memory"):
        try_batch_sizes(failing(MemoryError()))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        try_batch_sizes(failing(RuntimeError("a fault of ours")))


@pytest.mark.parametrize("flags", [("--dry-run", "--find-lr"), ("--find-lr", "--find-batch-size")])
def test_flags_that_replace_the_run_exclude_each_other(tmp_path, flags):
    result = attndiff("train", "faces", f"out={tmp_path / 'run'}", *flags)
    assert result.code == 2 and result.err.count("\n") == 1 and all(flag in result.err for flag in flags)
    assert not (tmp_path / "run").exists()
