"""The loop alone, with a network that is a formula: no pipeline is needed to sample."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from attndiff.diffusion.objectives import make_objective
from attndiff.diffusion.sampler import sampling_steps
from attndiff.diffusion.solver import Solver

MEAN, DEVIATION = 0.3, 0.2


def gaussian_velocity(x, level):
    """The exact prediction for pixels of a normal distribution: noise minus the posterior mean of the image."""
    signal = 1 - level
    gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + level**2)
    x0 = MEAN + gain * (x - signal * MEAN)
    return (x - signal * x0) / level - x0


def solver_of(steps, **settings):
    solver = Solver(FlowMatchEulerDiscreteScheduler(**settings), make_objective({"name": "flow"}))
    solver.set_timesteps(steps)
    return solver


def test_gaussian_noise_becomes_the_gaussian():
    noise = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    *_, last = sampling_steps(gaussian_velocity, solver_of(200), noise)
    assert last.index == 199
    assert last.latents.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert last.latents.std().item() == pytest.approx(DEVIATION, rel=0.03)


def test_the_network_is_asked_once_a_step_at_falling_levels():
    levels = []
    steps = list(
        sampling_steps(lambda x, level: levels.append(level.item()) or x, solver_of(4), torch.ones(1, 1, 2, 2))
    )
    assert levels == pytest.approx([1, 0.75, 0.5, 0.25], abs=1e-5)
    assert [step.index for step in steps] == [0, 1, 2, 3]


def test_latents_can_be_put_in_place_of_a_steps():
    put = torch.full((1, 1, 2, 2), 0.5)
    seen = []
    for step in sampling_steps(lambda x, level: seen.append(x) or x, solver_of(3), torch.ones(1, 1, 2, 2)):
        if step.index == 0:
            step.latents = put
    assert seen[1] is put and not torch.equal(seen[2], put)


def test_leaving_early_asks_no_more():
    calls = []
    for step in sampling_steps(lambda x, level: calls.append(1) or x, solver_of(5), torch.ones(1, 1, 2, 2)):
        if step.index == 1:
            break
    assert len(calls) == 2


def test_noise_that_a_scheduler_adds_comes_from_the_generator():
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        solver = solver_of(3, stochastic_sampling=True)
        *_, last = sampling_steps(gaussian_velocity, solver, torch.ones(1, 1, 2, 2), generator)
        return last.latents

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
