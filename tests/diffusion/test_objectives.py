"""Identities that tie noise, target, prediction and weight of every objective together."""

import json
import math

import pytest
import torch

from attndiff.diffusion.objectives import LEAST_LEVEL, OBJECTIVES, make_objective

NAMES = list(OBJECTIVES)
LOG_RATIOS = torch.linspace(-5, 5, 41)  # ln(noise / signal)


def images(rows: int = 41, deviation: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean images of a given standard deviation and standard normal noise, both ``(rows, 3, 8, 8)``."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, rows, 3, 8, 8, generator=generator)
    return deviation * x0, noise


@pytest.mark.parametrize("name", NAMES)
def test_target_restores_the_image(name):
    objective = make_objective({"name": name, "sigma_data": 0.4})
    x0, noise = images()
    level = objective.level_from_log_ratio(LOG_RATIOS)
    x = objective.add_noise(x0, noise, level)
    restored = objective.denoised(x, objective.target(x0, noise, level), level)
    tolerance = 2e-6 * (1 + LOG_RATIOS.exp())  # rounding of x grows with the noise
    assert ((restored - x0).abs().amax((1, 2, 3)) < tolerance).all()


@pytest.mark.parametrize("name", NAMES)
def test_level_and_log_ratio_are_inverse(name):
    objective = make_objective({"name": name})
    assert torch.allclose(objective.log_ratio(objective.level_from_log_ratio(LOG_RATIOS)), LOG_RATIOS, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_level_is_the_ratio_of_noise_to_signal(name):
    """The coordinate is a quarter of ln(noise / signal) of the noisy image, whatever the objective."""
    objective = make_objective({"name": name})
    level = objective.level_from_log_ratio(LOG_RATIOS)
    ones, zeros = torch.ones(41, 1, 1, 1), torch.zeros(41, 1, 1, 1)
    signal = objective.add_noise(ones, zeros, level).flatten()
    noise = objective.add_noise(zeros, ones, level).flatten()
    assert torch.allclose(4 * objective.coordinate(level), (noise / signal).log(), atol=1e-4)
    assert (objective.coordinate(level).diff() > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_coordinate_is_finite_at_the_ends(name):
    objective = make_objective({"name": name})
    ends = torch.tensor([0.0, 1.0]) if name in ("flow", "x0") else torch.tensor([0.0, 1e9])
    low, high = objective.coordinate(ends).tolist()
    assert low == pytest.approx(-math.log(1000) / 4) and high == pytest.approx(math.log(1000) / 4)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_drawn_as_configured(name):
    objective = make_objective({"name": name, "noise_mean": -0.7, "noise_std": 1.3})
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    drawn = objective.log_ratio(objective.draw_levels(normal))
    assert drawn.mean().item() == pytest.approx(-0.7, abs=0.03)
    assert drawn.std().item() == pytest.approx(1.3, abs=0.03)
    assert objective.draw_levels(normal).dtype == torch.float32


@pytest.mark.parametrize("name", ["flow", "x0", "edm"])
def test_network_input_has_unit_variance(name):
    objective = make_objective({"name": name, "sigma_data": 0.3})
    x0, noise = images(deviation=0.3)
    level = objective.level_from_log_ratio(LOG_RATIOS)
    scaled = objective.scale_input(objective.add_noise(x0, noise, level), level)
    assert scaled.square().mean((1, 2, 3)).sqrt().sub(1).abs().max() < 0.25  # 192 values a row
    assert scaled.square().mean().sqrt().item() == pytest.approx(1, abs=0.02)


def test_edm_target_and_weighted_loss_have_unit_variance():
    objective = make_objective({"name": "edm", "sigma_data": 0.3})
    x0, noise = images(rows=400, deviation=0.3)
    for log_ratio in (-4.0, -1.0, 1.0, 4.0):
        level = torch.full((400,), math.exp(log_ratio))
        assert objective.target(x0, noise, level).std().item() == pytest.approx(1, abs=0.02)
        assert torch.equal(objective.weight(level), torch.ones(400))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_the_image_error_as_the_paper_does(name, gamma):
    """weight * error of the prediction^2 = min(snr, gamma) * error of the image^2 (arXiv 2303.09556, section 3.4)."""
    objective = make_objective({"name": name, "sigma_data": 0.4, "min_snr_gamma": gamma})
    x0, noise = images()
    level = objective.level_from_log_ratio(LOG_RATIOS)
    x, target = objective.add_noise(x0, noise, level), objective.target(x0, noise, level)
    error = 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    image_error = objective.denoised(x, target + error, level) - objective.denoised(x, target, level)
    ours = objective.weight(level) * error.square().mean((1, 2, 3))
    snr = (-2 * LOG_RATIOS).exp()
    paper = snr.clamp(max=gamma) * image_error.square().mean((1, 2, 3))
    assert torch.allclose(ours, paper, rtol=2e-2)


def test_an_error_of_the_image_weighs_as_that_of_the_velocity_it_implies():
    flow, image = (make_objective({"name": name}) for name in ("flow", "x0"))
    x0, noise = images()
    level = flow.level_from_log_ratio(LOG_RATIOS)
    x = flow.add_noise(x0, noise, level)
    velocity = flow.target(x0, noise, level) + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    error = (velocity - flow.target(x0, noise, level)).square().mean((1, 2, 3))
    theirs = (flow.denoised(x, velocity, level) - x0).square().mean((1, 2, 3)) * image.weight(level)
    far = level > LEAST_LEVEL
    assert torch.allclose(theirs[far], error[far], rtol=1e-3) and (theirs[~far] < error[~far]).all()


@pytest.mark.parametrize("name", sorted({*NAMES} - {"x0"}))
def test_default_weight_is_one(name):
    assert torch.equal(make_objective({"name": name}).weight(torch.tensor([0.1, 0.9])), torch.ones(2))


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip(name):
    objective = make_objective({"name": name, "sigma_data": 0.37, "min_snr_gamma": 5.0})
    again = make_objective(json.loads(json.dumps(objective.to_config())))
    assert type(again) is type(objective) and again == objective


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_images_keep_their_dtype(name):
    objective = make_objective({"name": name})
    x0, noise = (x.bfloat16() for x in images(rows=4))
    level = objective.draw_levels(torch.zeros(4))
    x = objective.add_noise(x0, noise, level)
    for result in (x, objective.scale_input(x, level), objective.target(x0, noise, level)):
        assert result.dtype == torch.bfloat16
    assert objective.coordinate(level).dtype == torch.float32


def test_unknown_objectives_are_refused():
    with pytest.raises(ValueError, match="objective 'flo' is unknown; choose one of flow, x0, edm, epsilon, v"):
        make_objective({"name": "flo"})
    with pytest.raises(ValueError, match=r"objective .edm.: .*sigma_dat"):
        make_objective({"name": "edm", "sigma_dat": 1.0})
