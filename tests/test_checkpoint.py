"""A checkpoint comes back bit for bit, and a damaged one is never taken."""

import pytest
import torch
from torch import nn

from attndiff.training.checkpoint import RunState, newest_checkpoint, read_checkpoint, save_checkpoint
from attndiff.training.config import OptimConfig
from attndiff.training.ema import PowerEMA
from attndiff.training.optim import make_optimizers


def trained_state(steps: int, seed: int = 0) -> RunState:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    state = RunState(module, PowerEMA(module), make_optimizers(module, OptimConfig(steps=10)))
    train(state, steps)
    return state


def train(state: RunState, steps: int) -> None:
    for _ in range(steps):
        inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(state.step))
        state.module(inputs).square().sum().backward()
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.ema.update(state.module, state.step)


def test_resumed_training_is_bit_identical(tmp_path):
    straight = trained_state(6)
    half = trained_state(3)
    folder = save_checkpoint(tmp_path, half, keep=2)
    resumed = trained_state(0, seed=1)
    resumed.restore(*read_checkpoint(folder))
    train(resumed, 3)
    for name, tensors in straight.tensors().items():
        for key, value in tensors.items():
            assert torch.equal(value, resumed.tensors()[name][key]), (name, key)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "missing", "empty", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, kind):
    state = trained_state(1)
    whole = save_checkpoint(tmp_path, state, keep=3)
    train(state, 1)
    newer = save_checkpoint(tmp_path, state, keep=3)
    file = newer / ("manifest.json" if kind == "manifest" else "weights.safetensors")
    data = file.read_bytes()
    damaged = {"truncated": data[:-5], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "empty": b"", "manifest": b"{"}
    file.unlink() if kind == "missing" else file.write_bytes(damaged[kind])
    found, problems = newest_checkpoint(tmp_path)
    assert found == whole
    assert newer.name in problems[0]


def test_only_the_newest_are_kept(tmp_path):
    state = trained_state(0)
    for _ in range(4):
        train(state, 1)
        save_checkpoint(tmp_path, state, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]
