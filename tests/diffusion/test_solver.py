"""Every stock scheduler with every objective it samples, against the exact denoiser of Gaussian pixels."""

from functools import partial

import diffusers
import pytest
import torch

from attndiff.diffusion.compatibility import REQUIRED_CONFIG, check_scheduler, default_scheduler
from attndiff.diffusion.objectives import make_objective
from attndiff.diffusion.sampler import sampling_steps
from attndiff.diffusion.solver import Solver

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
BETAS = {"beta_start": 0.0001, "beta_end": 0.02}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
UNCLIPPED = {"clip_sample": False}

# Bounds of the error of the samples' standard deviation at 8, 35 and 100 steps; pixels have 0.05, 0.3 and 0.8. The
# floor of first-order solvers and of the last step to zero noise dominates: what is measured lies 1 to 15 % below.
FLOW_BOUNDS = [
    ("FlowMatchEulerDiscreteScheduler", {}, (0.125, 0.031, 0.011)),
    ("FlowMatchHeunDiscreteScheduler", {}, (0.035, 0.0063, 0.0009)),
    ("UniPCMultistepScheduler", FLOW, (0.035, 0.0075, 0.0004)),
    ("UniPCMultistepScheduler", {**FLOW, "solver_order": 3}, (0.035, 0.0075, 0.0004)),
    ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 0.5}, (0.023, 0.0013, 0.0003)),
    ("DPMSolverMultistepScheduler", FLOW, (0.035, 0.0075, 0.0009)),
    ("DPMSolverMultistepScheduler", {**FLOW, "solver_order": 3}, (0.035, 0.0068, 0.0009)),
]
EDM_BOUNDS = [
    ("EDMEulerScheduler", {}, (0.23, 0.06, 0.022)),
    ("EDMDPMSolverMultistepScheduler", {}, (0.068, 0.0095, 0.0012)),
]
BETA_BOUNDS = [
    ("DDIMScheduler", {**UNCLIPPED, **TRAILING}, (0.19, 0.046, 0.018)),
    ("DPMSolverMultistepScheduler", {}, (0.135, 0.03, 0.0145)),
    ("DPMSolverMultistepScheduler", KARRAS, (0.093, 0.0115, 0.0013)),
    ("UniPCMultistepScheduler", {}, (0.135, 0.03, 0.0145)),
    ("UniPCMultistepScheduler", {**KARRAS, **TRAILING}, (0.123, 0.0047, 0.0011)),
    ("HeunDiscreteScheduler", {**BETAS, **TRAILING}, (0.122, 0.0293, 0.0122)),
]
# Sampling begins with pure noise where the process still holds some signal: 1/80 (EDM), 1/157 (betas) of the mean.
MEAN_BOUND = {"flow": 1e-4, "x0": 1e-4, "edm": 0.0075, "epsilon": 0.0045, "v": 0.0045}

PAIRS = [
    *[("flow", *row) for row in FLOW_BOUNDS],
    *[
        ("x0", name, {**config, "prediction_type": "sample"}, bounds)
        for name, config, bounds in FLOW_BOUNDS
        if not name.startswith("FlowMatch")
    ],
    *[("edm", *row) for row in EDM_BOUNDS],
    *[("epsilon", *row) for row in BETA_BOUNDS],
    *[("v", name, {**config, "prediction_type": "v_prediction"}, bounds) for name, config, bounds in BETA_BOUNDS],
]

MEANS, DEVIATIONS, NORMALS = torch.tensor([-0.6, 0.0, 0.5]), torch.tensor([0.05, 0.3, 0.8]), torch.tensor([-2.0, 2.0])
# One image whose pixels are all combinations: (1, 1, 9, 2), the last axis the noise that a pixel begins with.
MEAN = MEANS.repeat_interleave(3).reshape(1, 1, 9, 1)
DEVIATION = DEVIATIONS.repeat(3).reshape(1, 1, 9, 1)


def signal_and_noise(objective, level):
    """Factors of image and noise in the objective's noisy image."""
    if objective.name in ("flow", "x0"):
        return 1 - level, level
    if objective.name == "edm":
        return torch.ones_like(level), level
    return (1 + level**2).rsqrt(), level * (1 + level**2).rsqrt()


def exact_prediction(objective, x, level):
    """What a perfect network predicts: the posterior mean of a Gaussian pixel, turned into the objective's target."""
    signal, noise = signal_and_noise(objective, level)
    gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + noise**2)
    x0 = MEAN + gain * (x - signal * MEAN)
    return objective.target(x0, (x - signal * x0) / noise, level.reshape(1))


def exact_solution(objective, x, level):
    """Where the probability-flow equation takes ``x`` from ``level`` to zero noise."""
    signal, noise = signal_and_noise(objective, level)
    return MEAN + (x - signal * MEAN) * DEVIATION / (signal**2 * DEVIATION**2 + noise**2).sqrt()


def sample(solver):
    """Samples ``(1, 1, 9, 2)`` and the exact solution from the same noise."""
    seen = []

    def predict(x, level):
        seen.append((x, level))
        return exact_prediction(solver.objective, x, level)

    noise = NORMALS.expand(1, 1, 9, 2) * float(solver.noise_scale)
    *_, last = sampling_steps(predict, solver, noise)
    return last.latents, exact_solution(solver.objective, *seen[0])


def solver_of(objective, scheduler, steps=None, sigmas=None):
    solver = Solver(scheduler, objective)
    solver.set_timesteps(steps, sigmas=sigmas)
    return solver


def make(name, config):
    return getattr(diffusers, name)(**config)


@pytest.mark.parametrize(("steps", "column"), [(8, 0), (35, 1), (100, 2)])
@pytest.mark.parametrize(
    ("objective", "name", "config", "bounds"), PAIRS, ids=[f"{p[0]}-{p[1]}-{'-'.join(p[2])}" for p in PAIRS]
)
def test_samples_of_an_exact_denoiser(objective, name, config, bounds, steps, column):
    objective = make_objective({"name": objective})
    samples, solution = sample(solver_of(objective, make(name, config), steps))
    mean, deviation = samples.mean(-1, keepdim=True), (samples[..., 1:] - samples[..., :1]) / 4
    mean_bound = MEAN_BOUND[objective.name]
    assert (mean - MEAN).abs().max() <= mean_bound
    assert (deviation - DEVIATION).abs().max() <= bounds[column]
    assert (samples - solution).abs().max() <= 2 * bounds[column] + mean_bound  # noise of 2 standard deviations


@pytest.mark.parametrize("objective", ["flow", "x0", "edm", "epsilon", "v"])
def test_every_listed_scheduler_is_tested(objective):
    assert set(REQUIRED_CONFIG[objective]) == {pair[1] for pair in PAIRS if pair[0] == objective}


@pytest.mark.parametrize(
    ("objective", "bound"), [("flow", 0.0095), ("x0", 0.0095), ("edm", 0.05), ("epsilon", 0.058), ("v", 0.058)]
)
def test_default_scheduler_at_16_steps(objective, bound):
    objective = make_objective({"name": objective, "sigma_data": 0.4})
    samples, solution = sample(solver_of(objective, default_scheduler(objective), 16))
    assert (samples - solution).abs().max() <= 2 * bound


@pytest.mark.parametrize("objective", ["flow", "x0", "edm", "epsilon", "v"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps_stay_finite_and_in_range(objective, steps):
    objective = make_objective({"name": objective})
    for pair in PAIRS:
        if pair[0] == objective.name:
            samples, _ = sample(solver_of(objective, make(pair[1], pair[2]), steps))
            assert samples.isfinite().all() and samples.abs().max() < 2.5, pair[1:3]


def test_two_flow_steps_divide_the_way_evenly():
    objective = make_objective({"name": "flow"})

    def levels(name, config):
        solver = solver_of(objective, make(name, config), 2)
        return [solver.level(i).item() for i in range(len(solver.timesteps))]

    for name, config in (("FlowMatchEulerDiscreteScheduler", {}), ("DPMSolverMultistepScheduler", FLOW)):
        assert levels(name, config) == pytest.approx([1.0, 0.5], abs=2e-6)
    assert levels("FlowMatchHeunDiscreteScheduler", {}) == pytest.approx([1.0, 0.5, 0.5], abs=2e-6)


def test_repeated_timesteps_skip_no_step():
    """Rounded timesteps repeat where steps are many; a scheduler that looks its place up by them skips the first."""
    solver = solver_of(make_objective({"name": "epsilon"}), make("UniPCMultistepScheduler", KARRAS), 2000)
    assert solver.timesteps[0] == solver.timesteps[1]
    solver.step(torch.zeros(1), 0, torch.zeros(1))
    assert solver.scheduler.step_index == 1


def test_convergence_orders_above_the_floor():
    """Halving the steps of a broad Gaussian halves Euler's error and quarters the second-order ones at least."""
    objective = make_objective({"name": "flow"})
    for name, config, order in (
        ("FlowMatchEulerDiscreteScheduler", {}, 1),
        ("FlowMatchHeunDiscreteScheduler", {}, 2),
        ("UniPCMultistepScheduler", FLOW, 2),
    ):
        errors = []
        for steps in (20, 40):
            samples, solution = sample(solver_of(objective, make(name, config), steps))
            errors.append((samples - solution)[..., 2::3, :].abs().max().item())  # pixels of deviation 0.8
        assert errors[0] / errors[1] >= 0.85 * 2**order, (name, errors)


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] != "DDIMScheduler"], ids=lambda p: f"{p[0]}-{p[1]}")
def test_own_sigmas_are_used_as_they_are(pair):
    objective, scheduler = make_objective({"name": pair[0]}), make(pair[1], pair[2])
    sigmas = {"flow": [0.9, 0.5, 0.2], "x0": [0.9, 0.5, 0.2], "edm": [80.0, 2.0, 0.1]}.get(pair[0], [100.0, 3.0, 0.2])
    solver = solver_of(objective, scheduler, sigmas=sigmas)
    samples, _ = sample(solver)
    levels = {float(solver.level(i)) for i in range(len(solver.timesteps))}
    assert sorted(levels, reverse=True) == pytest.approx(sigmas)
    assert samples.isfinite().all()


@pytest.mark.parametrize("sigmas", [[], [0.5, 0.9], [0.5, 0.5], [1.2, 0.5], [0.5, 0.0], [0.5, float("nan")], 0.5])
def test_impossible_sigmas_are_refused(sigmas):
    objective = make_objective({"name": "flow"})
    with pytest.raises(ValueError, match=r"^sigmas must be a falling list"):
        solver_of(objective, default_scheduler(objective), 4, sigmas=sigmas)


def test_impossible_arguments_are_refused():
    objective = make_objective({"name": "v"})
    with pytest.raises(ValueError, match="num_inference_steps must be at least 1, not 0"):
        solver_of(objective, default_scheduler(objective), 0)
    edm = make_objective({"name": "edm"})
    with pytest.raises(ValueError, match="sigmas must begin at 80, the scheduler's sigma_max"):
        solver_of(edm, default_scheduler(edm), 2, sigmas=[20.0, 1.0])
    with pytest.raises(ValueError, match="sigmas: DDIMScheduler takes none"):
        ddim = make("DDIMScheduler", {**UNCLIPPED, **TRAILING, "prediction_type": "v_prediction"})
        solver_of(objective, ddim, 4, sigmas=[1.0, 0.5])


MISFITS = [
    ("flow", "DDIMScheduler", {}, "DDIMScheduler does not sample the objective 'flow'; use one of FlowMatchEuler"),
    ("edm", "FlowMatchEulerDiscreteScheduler", {}, "use one of EDMEulerScheduler, EDMDPMSolverMultistepScheduler"),
    ("flow", "UniPCMultistepScheduler", {}, "prediction_type='epsilon' but .* needs 'flow_prediction'"),
    ("flow", "UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas=False .* needs True"),
    ("flow", "UniPCMultistepScheduler", {**FLOW, "solver_type": "bh1"}, "solver_type='bh1' .* needs 'bh2'"),
    ("flow", "UniPCMultistepScheduler", {**FLOW, "lower_order_final": False}, "lower_order_final=False .* True"),
    ("flow", "DPMSolverMultistepScheduler", {**FLOW, **KARRAS}, "use_karras_sigmas=True .* needs False"),
    ("flow", "DPMSolverMultistepScheduler", {**FLOW, "final_sigmas_type": "sigma_min"}, "final_sigmas_type=.sigma_min"),
    ("flow", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting=True .* False"),
    ("flow", "FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas=True"),
    ("flow", "FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, "shift_terminal=0.1 .* needs None"),
    ("edm", "EDMEulerScheduler", {"sigma_data": 1.0}, "sigma_data=1.0 .* needs 0.5"),
    ("edm", "EDMEulerScheduler", {"prediction_type": "v_prediction"}, "prediction_type='v_prediction' .* 'epsilon'"),
    ("epsilon", "DDIMScheduler", TRAILING, "clip_sample=True .* needs False"),
    ("epsilon", "DDIMScheduler", UNCLIPPED, "timestep_spacing='leading' .* needs 'trailing'"),
    ("epsilon", "HeunDiscreteScheduler", TRAILING, "beta_start=0.00085 .* needs 0.0001"),
    ("epsilon", "UniPCMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule='squaredcos_cap_v2'"),
    ("epsilon", "UniPCMultistepScheduler", {"timestep_spacing": "leading"}, "timestep_spacing='leading'"),
    ("v", "DPMSolverMultistepScheduler", {}, "prediction_type='epsilon' .* needs 'v_prediction'"),
    ("v", "DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", **FLOW}, "prediction_type='flow_pred"),
    ("v", "DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "thresholding": True}, "thresholding=T"),
]


@pytest.mark.parametrize(("objective", "name", "config", "message"), MISFITS)
def test_misfits_are_refused_by_name(objective, name, config, message):
    with pytest.raises(ValueError, match=f"^scheduler: .*{message}"):
        check_scheduler(make(name, config), make_objective({"name": objective}))


def test_a_config_carried_over_to_another_class_is_refused():
    """``UniPC.from_config(FlowMatchEuler.config)`` silently predicts epsilon."""
    objective = make_objective({"name": "flow"})
    carried = diffusers.UniPCMultistepScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config)
    with pytest.raises(ValueError, match="prediction_type='epsilon'"):
        check_scheduler(carried, objective)


def test_saved_schedulers_still_fit(tmp_path):
    for name in ("flow", "x0", "edm", "epsilon", "v"):
        objective = make_objective({"name": name, "sigma_data": 0.123456789})
        default_scheduler(objective).save_pretrained(tmp_path / name)
        loaded = type(default_scheduler(objective)).from_pretrained(tmp_path / name)
        check_scheduler(loaded, objective)


def test_the_state_keeps_its_precision():
    objective = make_objective({"name": "flow"})
    solver = solver_of(objective, default_scheduler(objective), 2)
    latents = torch.zeros(1, 1, 2, 2)
    assert solver.step(latents.bfloat16(), 0, latents).dtype == torch.float32


def test_a_scheduler_that_is_handed_over_stays_as_it_was():
    objective = make_objective({"name": "flow"})
    scheduler = default_scheduler(objective)
    before = scheduler.timesteps.clone()
    sample(solver_of(objective, scheduler, 3))
    assert torch.equal(scheduler.timesteps, before) and scheduler.step_index is None


# Beginning under less than pure noise

IMAGE = (MEAN + 0.7 * DEVIATION).expand(1, 1, 9, 2)


def begun(pair, share, steps):
    objective = make_objective({"name": pair[0]})
    solver = solver_of(objective, make(*pair[1:3]), steps)
    solver.begin_under(share)
    return solver


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}-{'-'.join(p[2])}")
@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_from_an_image_under_noise_an_exact_denoiser_leads_where_its_equation_does(pair, share):
    solver = begun(pair, share, 35)
    level, noise = solver.level(0), NORMALS.expand(1, 1, 9, 2)
    near = 0.15 if pair[1] == "DDIMScheduler" else 1e-3  # which has a thousand levels
    assert solver.objective.log_ratio(level).exp().item() == pytest.approx(share / (1 - share), rel=near)
    state = solver.noisy_state(IMAGE, noise)
    noisy = solver.objective.add_noise(IMAGE, noise, level.reshape(1))
    predict = partial(exact_prediction, solver.objective)
    *_, last = sampling_steps(predict, solver, state)
    solution = exact_solution(solver.objective, noisy, level)
    assert (last.latents - solution).abs().max() <= 2 * pair[3][1] + MEAN_BOUND[pair[0]]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}-{'-'.join(p[2])}")
@pytest.mark.parametrize(("share", "steps"), [(1.0, 4), (0.3, 1), (1e-4, 3)])
def test_levels_fall_from_the_share_on_in_as_many_steps(pair, share, steps):
    solver = begun(pair, share, steps)
    levels = [solver.level(i).item() for i in range(len(solver.timesteps))]
    assert levels == sorted(levels, reverse=True) and levels[-1] > 0
    if share == 1:
        assert levels[0] == pytest.approx(solver_of(solver.objective, make(*pair[1:3]), steps).level(0).item())
    assert pair[1] == "DDIMScheduler" or len(set(levels)) == steps
    *_, last = sampling_steps(partial(exact_prediction, solver.objective), solver, solver.noisy_state(IMAGE, 0 * IMAGE))
    assert last.latents.isfinite().all()


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[1] != "DDIMScheduler"], ids=lambda p: f"{p[0]}-{p[1]}")
def test_shares_that_differ_by_little_begin_at_other_levels(pair):
    assert begun(pair, 0.834, 20).level(0) < begun(pair, 0.843, 20).level(0)
