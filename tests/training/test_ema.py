"""Power-function averages of the weights, and any other length rebuilt from snapshots."""

import numpy as np
import pytest
import torch
from torch import nn

from attndiff.errors import UserError
from attndiff.training.state.averages import PowerEMA, power_beta, rebuild_average, sigma_rel_to_gamma

STEPS = 400


def module_with(value: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(value.clone())
    return module


def weights_of_a_run() -> torch.Tensor:
    """``(STEPS, 5)``: weights that settle while they wander."""
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(1, STEPS + 1).sqrt()[:, None]
    return 3 / times + (torch.randn(STEPS, 5, generator=generator) / times).cumsum(0) * 0.3


def run_through(ema: PowerEMA, weights: torch.Tensor, each=None) -> None:
    for step, value in enumerate(weights, start=1):
        ema.update(module_with(value), step)
        if each is not None:
            each(step)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_width_of_the_profile_is_the_one_asked_for(sigma_rel):
    gamma = sigma_rel_to_gamma(sigma_rel)
    width = ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5  # standard deviation of t^gamma over [0, 1]
    assert width == pytest.approx(sigma_rel, rel=1e-6)


def test_first_step_replaces_the_random_start():
    ema = PowerEMA(module_with(torch.full((3,), 1e6)))
    ema.update(module_with(torch.tensor([1.0, 2.0, 3.0])), step=1)
    for sigma in (0.05, 0.10):
        assert ema.state_dict(sigma)["weight"].tolist() == [1.0, 2.0, 3.0]


def test_constant_weights_stay_constant():
    ema = PowerEMA(module_with(torch.zeros(2)))
    run_through(ema, torch.tensor([0.3, -7.0]).repeat(50, 1))
    assert torch.allclose(ema.state_dict(0.10)["weight"], torch.tensor([0.3, -7.0]), rtol=1e-6)


def test_average_is_the_closed_form():
    """Step k of T counts with (1 - beta_k) prod_{j > k} beta_j = (k^(g+1) - (k-1)^(g+1)) / T^(g+1)."""
    ema, weights = PowerEMA(module_with(torch.zeros(5)), (0.10,)), weights_of_a_run()
    run_through(ema, weights)
    edges = (np.arange(STEPS + 1) / STEPS) ** (sigma_rel_to_gamma(0.10) + 1)
    expected = torch.from_numpy(np.diff(edges)) @ weights.double()
    assert torch.allclose(ema.state_dict(0.10)["weight"].double(), expected, atol=1e-5)


def test_linear_weights_average_to_the_mean_time():
    gamma, average = sigma_rel_to_gamma(0.05), 0.0
    for step in range(1, 100_001):
        beta = power_beta(gamma, step)
        average = beta * average + (1 - beta) * step
    assert average / 100_000 == pytest.approx((gamma + 1) / (gamma + 2), abs=1e-4)


def test_state_round_trip_does_not_share_memory():
    ema, other = PowerEMA(module_with(torch.ones(2))), PowerEMA(module_with(torch.zeros(2)))
    other.load_state_dict(0.05, ema.state_dict(0.05))
    ema.update(module_with(torch.full((2,), 9.0)), step=1)
    assert other.state_dict(0.05)["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.12, 0.18])
@pytest.mark.parametrize("end", [STEPS, 300])
def test_rebuilt_average_matches_the_kept_one(tmp_path, sigma_rel, end):
    weights = weights_of_a_run()
    kept = PowerEMA(module_with(torch.zeros(5)), (sigma_rel,))
    run_through(kept, weights[:end])
    pair = PowerEMA(module_with(torch.zeros(5)), (0.05, 0.10))
    run_through(pair, weights, lambda step: pair.save_snapshots(tmp_path, step) if step % 25 == 0 else None)

    rebuilt = rebuild_average(tmp_path, sigma_rel, step=end)["weight"]
    direct = kept.state_dict(sigma_rel)["weight"]
    spread = weights[end // 2 : end].std(0)
    assert ((rebuilt - direct).abs() < 0.02 * spread).all(), (rebuilt - direct) / spread


def test_rebuild_without_snapshots_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no weight averages"):
        rebuild_average(tmp_path, 0.05)
