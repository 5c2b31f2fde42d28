"""Which stock schedulers of diffusers sample an objective, with which config, and which does it best.

They are told apart by config, since one class samples several objectives.
"""

import math

from diffusers import EDMDPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler

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
IMAGE_SOLVER = {**FLOW_SOLVER, "prediction_type": "sample"}
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
    "x0": {
        "UniPCMultistepScheduler": {**IMAGE_SOLVER, **FINITE},
        "DPMSolverMultistepScheduler": IMAGE_SOLVER,
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
    if objective.name in ("flow", "x0"):
        kind = REQUIRED_CONFIG[objective.name]["UniPCMultistepScheduler"]["prediction_type"]
        return UniPCMultistepScheduler(prediction_type=kind, use_flow_sigmas=True, flow_shift=0.5)
    prediction = "epsilon" if objective.name == "epsilon" else "v_prediction"
    return UniPCMultistepScheduler(prediction_type=prediction, use_karras_sigmas=True, timestep_spacing="trailing")
