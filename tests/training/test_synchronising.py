"""What a step waits for, and what an Apple GPU cannot hold."""

import contextlib
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from runs import settings
from torch.overrides import TorchFunctionMode

from attndiff.training.config import make_config
from attndiff.training.evaluation.validation import validate
from attndiff.training.run.loop import Trainer
from attndiff.training.state import checkpoint
from attndiff.training.state.checkpoint import save_checkpoint

APPLE = torch.device("cpu", 0)  # another name of the CPU than that of tensors made nowhere in particular
READS = (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__bool__, torch.Tensor.__float__, torch.Tensor.__int__)


class NoFloat64(TorchFunctionMode):
    """Refuse float64 on `APPLE`, and follow what is made from tensors there."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def __torch_function__(self, function, types, arguments=(), settings=None):
        settings = settings or {}
        result = function(*arguments, **settings)
        if function is torch.Tensor.cpu:
            return result.clone()
        given = [*arguments, *settings.values()]
        flat = [x for value in given for x in (value if isinstance(value, (list, tuple)) else [value])]
        there = any(x == APPLE if isinstance(x, torch.device) else getattr(x, "there", False) for x in flat)
        if there and torch.is_tensor(result):
            if result.dtype is torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it.")
            result.there = True
            self.made += 1
        return result


def test_a_validation_makes_no_float64_on_the_device_and_sums_as_with_it(tmp_path):
    trainer = Trainer(make_config(settings(tmp_path / "run")))
    model, data = trainer.parts.model, trainer.held_out
    expected = validate(model, data, trainer.accelerator)
    apple = SimpleNamespace(device=APPLE, process_index=0, num_processes=1, autocast=contextlib.nullcontext)
    with NoFloat64() as watched:
        assert validate(model, data, apple) == expected
    assert watched.made > 100


class Counted(TorchFunctionMode):
    """Count how often the host asks for a number, which waits for the device."""

    reads = 0

    def __torch_function__(self, function, types, arguments=(), settings=None):
        self.reads += function in READS
        return function(*arguments, **(settings or {}))


def test_a_step_reads_loss_and_norm_at_once(tmp_path):
    trainer = Trainer(make_config(settings(tmp_path / "run")))
    state = trainer._prepare()
    trainer.gradients.apply = trainer.gradients.drop  # what optimizers read are their own step counts, on the CPU
    stepper = trainer._make_stepper(0)
    with Counted() as counted:
        first = stepper.take(state, 0)
    assert counted.reads == 1 and first.loss > 0 and first.gradient_norm > 0


def test_a_process_that_is_alone_asks_nobody_whether_to_stop(tmp_path, monkeypatch):
    inner, asked = Accelerator.reduce, []

    def reduce(*arguments, **settings):
        asked.append(arguments)
        return inner(*arguments, **settings)

    monkeypatch.setattr(Accelerator, "reduce", reduce)
    changes = {"log__validate_every": 6, "log__checkpoint_every": 6}
    trainer = Trainer(make_config(settings(tmp_path / "run", **changes)))
    trainer.run()
    assert len(asked) == trainer.config.optim.steps  # the losses


def test_a_process_that_writes_nothing_keeps_nothing_of_a_checkpoint(tmp_path, monkeypatch):
    """But it takes part in putting every tensor together, one after the other."""
    trainer = Trainer(make_config(settings(tmp_path / "run")))
    state, gathered = trainer._prepare(), []
    monkeypatch.setattr(checkpoint, "gathered_on_host", lambda tensor: gathered.append(tensor) or tensor)
    assert not any(state.tensors(keep=False).values())
    everything = len(gathered)
    save_checkpoint(tmp_path / "checkpoints", state, keep=1, main=False)
    assert len(gathered) == 2 * everything == 2 * sum(map(len, state.tensors().values()))
    assert not (tmp_path / "checkpoints").exists()
