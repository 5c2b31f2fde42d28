"""What a run saves, of a network of two layers."""

import torch
from torch import nn

from attndiff.training.config import OptimConfig
from attndiff.training.optim import make_optimizers
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.checkpoint import RunState


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
