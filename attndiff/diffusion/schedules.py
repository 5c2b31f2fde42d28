"""How the state of diffusers' stock schedulers maps to an objective, and which of their configs fit it.

The network is handed the noise level of a step and never the scheduler's own time, which is anything from 0 to 1000
(truncated to integers by some schedulers), ``ln(sigma) / 4`` or ``250 ln(sigma)``. Schedulers are told apart by
config, since one class samples several objectives.

Shapes: B batch, C channels, H rows, W columns.
"""

import math

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from attndiff.diffusion.objectives import Objective

LINEAR_BETAS = {  # arXiv 2006.11239, section 4: the noise ends at 157 times the signal
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}
UNCLIPPED = {"clip_sample": False, "thresholding": False}
UNBENT = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "invert_sigmas": False,
}
MULTISTEP = {"final_sigmas_type": "zero", "lower_order_final": True, **UNCLIPPED}
FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, **MULTISTEP, **UNBENT}
EDM_SOLVER = {"prediction_type": "epsilon", "sigma_schedule": "karras", **MULTISTEP}
BETA_SOLVER = {"use_flow_sigmas": False, "use_dynamic_shifting": False, **MULTISTEP, **LINEAR_BETAS}
FINITE = {"solver_type": "bh2"}  # UniPC's bh1 divides infinity by infinity in the step to zero noise
TRAILING = {"timestep_spacing": "trailing"}  # begins at pure noise; Heun's linspace ends its steps below 0.01

BETA_SCHEDULERS = {
    "DDIMScheduler": {**UNCLIPPED, **LINEAR_BETAS, **TRAILING, "set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": BETA_SOLVER,
    "UniPCMultistepScheduler": {**BETA_SOLVER, **FINITE},
    "HeunDiscreteScheduler": {**UNCLIPPED, **LINEAR_BETAS, **TRAILING},
}
REQUIRED_CONFIG = {  # objective -> scheduler class -> config entries; entries that a class lacks count as fitting
    "flow": {
        "FlowMatchEulerDiscreteScheduler": UNBENT,
        "FlowMatchHeunDiscreteScheduler": {},
        "UniPCMultistepScheduler": {**FLOW_SOLVER, **FINITE},
        "DPMSolverMultistepScheduler": FLOW_SOLVER,
    },
    "edm": {"EDMEulerScheduler": EDM_SOLVER, "EDMDPMSolverMultistepScheduler": EDM_SOLVER},
    "epsilon": {name: {"prediction_type": "epsilon", **needs} for name, needs in BETA_SCHEDULERS.items()},
    "v": {name: {"prediction_type": "v_prediction", **needs} for name, needs in BETA_SCHEDULERS.items()},
}


def check_scheduler(scheduler: SchedulerMixin, objective: Objective) -> None:
    """Refuse a scheduler that would sample the objective wrongly.

    Raises:
        ValueError: If the class does not sample this objective, or a config entry does not fit; names the entry, its
            value and the value needed.
    """
    kind = type(scheduler).__name__
    fitting = REQUIRED_CONFIG[objective.name]
    if kind not in fitting:
        raise ValueError(
            f"scheduler: {kind} does not sample the objective {objective.name!r}; use one of {', '.join(fitting)}."
        )
    needs = dict(fitting[kind])
    if objective.name == "edm":
        needs["sigma_data"] = objective.sigma_data
    elif scheduler.config.get("timestep_spacing") == "leading":
        needs["timestep_spacing"] = "trailing"  # leading steps begin below the noise that sampling begins with
    for entry, needed in needs.items():
        value = scheduler.config.get(entry, needed)
        if value != needed and not (isinstance(needed, float) and math.isclose(value, needed, rel_tol=1e-6)):
            raise ValueError(
                f"scheduler: {kind} has {entry}={value!r} but the objective {objective.name!r} needs {needed!r}; make "
                f"it with {kind}.from_config(scheduler.config, {entry}={needed!r})."
            )


def check_student(student: dict, scheduler: SchedulerMixin, guidance_scale: float) -> None:
    """Refuse what a few-step student cannot be sampled with.

    Args:
        student: As a pipeline stores it.
        scheduler: One that `check_scheduler` accepts.
        guidance_scale: Of the call.

    Raises:
        ValueError: If the scheduler would follow its prediction as a velocity, or guidance would be applied twice.
    """
    if not scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            "scheduler: this model is a few-step student, whose every call leads to a clean image; sample it with "
            "FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)."
        )
    if guidance_scale > 1 and student["guidance_scale"] > 1:
        raise ValueError(
            f"guidance_scale {guidance_scale:g}: this few-step student has a guidance of "
            f"{student['guidance_scale']:g} built in; leave guidance_scale out, or give 1."
        )


def default_scheduler(objective: Objective) -> SchedulerMixin:
    """The stock scheduler that samples an objective most accurately in 12 to 20 calls of the network.

    Largest error of the standard deviation of samples of Gaussian pixels (standard deviations 0.05, 0.3, 0.8) from
    their exact denoiser, after 12, 16 and 20 calls (Heun: 11, 15, 19):

    | flow                      | 12    | 16    | 20    |
    |---------------------------|-------|-------|-------|
    | FlowMatchEuler            | 0.083 | 0.063 | 0.051 |
    | FlowMatchHeun, shift 0.5  | 0.027 | 0.020 | 0.015 |
    | DPM-Solver++              | 0.026 | 0.021 | 0.016 |
    | DPM-Solver++, shift 0.5   | 0.014 | 0.009 | 0.006 |
    | UniPC                     | 0.026 | 0.021 | 0.016 |
    | UniPC, shift 0.5          | 0.014 | 0.009 | 0.006 |

    On mixtures of narrow modes, where the denoiser is far from linear, UniPC with shift 0.5 is the best of these too:
    a root mean square distance to the exact quantiles of 0.014 after 12 calls where DPM-Solver++ has 0.046 and UniPC
    without a shift 0.029 (modes -0.9, 0.1, 0.95 of widths 0.02, 0.2, 0.03).

    EDM: EDMDPMSolver 0.073, 0.047, 0.030 and EDMEuler 0.159, 0.122, 0.100. Epsilon and v: UniPC on Karras levels 0.103,
    0.053, 0.027, DPM-Solver++ on them 0.089, 0.058, 0.037, DDIM 0.124 (13 calls), 0.093 (17), 0.080.

    Returns:
        A new scheduler that `check_scheduler` accepts.
    """
    if objective.name == "edm":
        return EDMDPMSolverMultistepScheduler(sigma_data=objective.sigma_data)
    if objective.name == "flow":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=0.5)
    prediction = "epsilon" if objective.name == "epsilon" else "v_prediction"
    return UniPCMultistepScheduler(prediction_type=prediction, use_karras_sigmas=True, timestep_spacing="trailing")


def set_timesteps(
    scheduler: SchedulerMixin,
    objective: Objective,
    num_inference_steps: int,
    device: torch.device | str | None = None,
    sigmas: list[float] | None = None,
) -> None:
    """Prepare a scheduler for sampling from pure noise, around the known faults of the stock schedules.

    Flow levels are ``1, 1 - 1/n, ..., 1/n`` before the config's shift (the stock ones of the Euler and Heun
    schedulers waste their last step below 0.001, those of DPM-Solver++ begin at 0.999), and EDM's are the ramp of
    arXiv 2206.00364, Eq. 5, at ``i / n`` rather than ``i / (n - 1)``, which wastes a step below 0.002. DDIM steps by
    a whole stride of its 1000 times, or its steps would not join: it takes up to a few steps more than asked for.

    Args:
        scheduler: One that `check_scheduler` accepts.
        objective: What the network predicts.
        num_inference_steps: Steps, at least 1; schedulers of order 2 call the network ``2 n - 1`` times.
        device: Where the timesteps are put.
        sigmas: Native levels of the objective to use as they are, falling, without the final 0; they replace
            ``num_inference_steps``. Those of EDM begin at the scheduler's ``sigma_max``.

    Raises:
        ValueError: If the number of steps is not positive, or ``sigmas`` do not fall or leave the scheduler's range.
    """
    if sigmas is not None:
        _check_sigmas(scheduler, objective, sigmas)
        num_inference_steps = len(sigmas)
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}.")
    scheduler.set_timesteps(num_inference_steps, device=device)
    if isinstance(scheduler, DDIMScheduler):
        last = scheduler.config.num_train_timesteps - 1
        scheduler.timesteps = torch.arange(last, -1, -((last + 1) // num_inference_steps), device=device)
        return
    levels = sigmas
    if sigmas is None and objective.name in ("flow", "edm"):
        levels = _default_levels(scheduler, objective, num_inference_steps)
    if levels is not None:
        _set_levels(scheduler, objective, torch.as_tensor(np.array(levels), dtype=torch.float32), device)
    scheduler.set_begin_index(0)  # looking the index up by timestep fails where timesteps repeat


def level_at(scheduler: SchedulerMixin, objective: Objective, index: int, timestep: torch.Tensor) -> torch.Tensor:
    """Native level of a call of the network, a float32 scalar on the timestep's device.

    Args:
        scheduler: After `set_timesteps`.
        objective: What the network predicts.
        index: Position of the timestep in ``scheduler.timesteps``.
        timestep: That timestep.
    """
    if isinstance(scheduler, DDIMScheduler):
        signal = scheduler.alphas_cumprod[int(timestep)]
        return ((1 - signal) / signal).sqrt().to(timestep.device, torch.float32)
    return scheduler.sigmas[index].to(timestep.device, torch.float32)


def scheduler_input(
    scheduler: SchedulerMixin,
    objective: Objective,
    latents: torch.Tensor,
    timestep: torch.Tensor,
) -> torch.Tensor:
    """The scheduler's state ``(B, C, H, W)`` as the noisy image of the objective's own convention.

    To be called once before every ``scheduler.step``, because some schedulers note the call.
    """
    if objective.name == "flow":
        return latents
    scaled = scheduler.scale_model_input(latents, timestep)
    # EDM schedulers precondition by themselves, as the objective does; the others reach its variance-preserving form.
    return latents if objective.name == "edm" else scaled


def scheduler_output(
    scheduler: SchedulerMixin,
    objective: Objective,
    prediction: torch.Tensor,
    latents: torch.Tensor,
    timestep: torch.Tensor,
) -> torch.Tensor:
    """The network's prediction ``(B, C, H, W)`` as ``scheduler.step`` takes it.

    `check_scheduler` lets only schedulers through that read predictions as the objective means them. The result has
    the dtype of the latents because several schedulers return theirs in the dtype of the prediction.
    """
    return prediction.to(latents.dtype)


def _default_levels(scheduler: SchedulerMixin, objective: Objective, steps: int) -> np.ndarray:
    """Levels ``(steps,)`` of an even schedule whose last step is as long as the others, in the schedule's own terms."""
    config = scheduler.config
    ramp = np.arange(steps) / steps
    if objective.name == "edm":
        high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
        return (high + ramp * (low - high)) ** config.rho
    shift = config.get("shift", config.get("flow_shift", 1.0))
    return shift * (1 - ramp) / (1 + (shift - 1) * (1 - ramp))


def _set_levels(scheduler: SchedulerMixin, objective: Objective, levels: torch.Tensor, device) -> None:
    """Replace a scheduler's levels by ``levels (n,)`` and a final 0."""
    if objective.name == "flow":
        levels = levels.clamp(max=1 - 1e-6)  # multistep solvers take the logarithm of the signal
        timesteps = levels * scheduler.config.num_train_timesteps
    else:
        timesteps = levels.log() / 4
    if scheduler.order == 2:  # a second call at every level but the first
        levels = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
        timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
    scheduler.sigmas = torch.cat([levels, torch.zeros(1)])
    scheduler.timesteps = timesteps.to(device)


def _check_sigmas(scheduler: SchedulerMixin, objective: Objective, sigmas: list[float]) -> None:
    """Raise ValueError unless ``sigmas`` can be the levels of this scheduler."""
    if isinstance(scheduler, DDIMScheduler):
        raise ValueError("sigmas: DDIMScheduler takes none; give num_inference_steps or use another scheduler.")
    try:
        values = np.asarray(sigmas, dtype=float)
    except (TypeError, ValueError):
        values = np.empty(0)
    highest = {"flow": 1.0, "edm": scheduler.config.get("sigma_max")}.get(objective.name, math.inf)
    falling = values.ndim == 1 and len(values) > 0 and bool((np.diff(values) < 0).all())
    if not falling or not 0 < values[-1] <= values[0] <= highest:
        raise ValueError(
            f"sigmas must be a falling list of numbers above 0 and at most {highest:g}, without the final 0."
        )
    if objective.name == "edm" and not math.isclose(values[0], highest):
        raise ValueError(f"sigmas must begin at {highest:g}, the scheduler's sigma_max, which scales the first noise.")
