"""The weights of the least held-out loss are kept where a run over-fits, and open by default."""

from pathlib import Path

import pytest
import torch
from runs import settings, train
from safetensors.torch import load_file

import attndiff
from attndiff.errors import UserError
from attndiff.training.build import build
from attndiff.training.config import make_config
from attndiff.training.export import best_weights, export_run
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.best import FILE, keep_best, read_best
from attndiff.training.state.checkpoint import RunState

CAPTION = {"task__": {"name": "caption"}}


@pytest.fixture
def parts(tmp_path):
    """The networks of a run, and its config."""
    config = make_config(settings(tmp_path / "run", **CAPTION, optim__ema=[0.1]))
    Path(config.out).mkdir()
    return config, build(config)


def taken(parts, step: int, by: float) -> RunState:
    """The state at a step, at which all weights have grown by a number."""
    _, of_run = parts
    with torch.no_grad():
        for parameter in of_run.model.parameters():
            parameter.add_(by)
    return RunState(of_run.model, PowerEMA(of_run.model, (0.1,)), [], step)


def found(loss: float) -> dict:
    return {"loss": loss, "per_level": [], "noise_over_signal": [], "n": 4}


def test_what_was_better_before_is_what_opens(parts):
    config, of_run = parts
    run = Path(config.out)
    keep_best(run, taken(parts, 10, 0.0), {"raw": found(2.0), "ema_0.100": found(1.0)})
    before = {name: p.detach().clone() for name, p in of_run.model.named_parameters()}
    later = taken(parts, 20, 0.5)
    keep_best(run, later, {"raw": found(3.0), "ema_0.100": found(1.5)})
    kept = read_best(run, 20)
    assert kept.name == "ema_0.100 of step 10" and kept.found["loss"] == 1.0
    assert all(torch.equal(value, before[name]) for name, value in kept.weights.items())
    assert best_weights({"step": 20, "raw": found(3.0)}, kept) == (kept.name, kept.found)
    assert read_best(run, 9) is None  # of a step that a checkpoint has not seen

    export_run(config, of_run, later, {"raw": found(3.0), "ema_0.100": found(1.5)}, run / "pipeline")
    opened = attndiff.load(run / "pipeline").text_decoder.state_dict()
    assert all(torch.equal(value, before[f"text_decoder.{name}"]) for name, value in opened.items())
    card = (run / "pipeline/README.md").read_text()
    assert (
        "opens with the weights `ema_0.100 of step 10`" in card and "| ema_0.100 of step 10 (chosen) | 1.0000 |" in card
    )
    last = load_file(run / "pipeline/text_decoder/diffusion_pytorch_model.raw.safetensors")
    name, value = next(iter(last.items()))
    assert torch.allclose(value, before[f"text_decoder.{name}"] + 0.5)


def test_what_is_best_at_the_end_needs_no_earlier_ones(parts):
    config, of_run = parts
    run = Path(config.out)
    keep_best(run, taken(parts, 10, 0.0), {"raw": found(2.0)})
    last = taken(parts, 20, 0.5)
    keep_best(run, last, {"raw": found(1.0)})
    export_run(config, of_run, last, {"raw": found(1.0), "ema_0.100": found(1.1)}, run / "pipeline")
    assert "opens with the weights `raw`" in (run / "pipeline/README.md").read_text()


def test_where_it_cannot_be_written_a_sentence_says_so(parts):
    config, _ = parts
    with pytest.raises(UserError, match=f"{FILE} could not be written"):
        keep_best(Path(config.out) / "gone", taken(parts, 10, 0.0), {"raw": found(2.0)})


def test_a_damaged_file_counts_as_none_and_is_replaced(parts):
    config, _ = parts
    run = Path(config.out)
    (run / FILE).write_bytes(b"half a file")
    assert read_best(run, 20) is None
    keep_best(run, taken(parts, 10, 0.0), {"raw": found(2.0)})
    assert read_best(run, 20).name == "raw of step 10"


def test_a_denoiser_keeps_none(tmp_path):
    train(tmp_path / "run", optim__steps=1, log__validate_every=1)
    train(tmp_path / "captions", **CAPTION, optim__steps=1, log__validate_every=1)
    assert not (tmp_path / "run" / FILE).exists() and (tmp_path / "captions" / FILE).is_file()
