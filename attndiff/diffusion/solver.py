"""A stock scheduler of diffusers as the solver of an objective: all that is asked of one stands here.

The network is handed the noise level of a step and never the scheduler's own time, which is anything from 0 to 1000
(truncated to integers by some schedulers), ``ln(sigma) / 4`` or ``250 ln(sigma)``.

Shapes: B batch, C channels, H rows, W columns.
"""

import copy
import inspect
import math

import numpy as np
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, SchedulerMixin

from attndiff.diffusion.compatibility import check_scheduler
from attndiff.diffusion.objectives import Objective
from attndiff.diffusion.paths import StraightPath


class Solver:
    """Leads the state of a scheduler from noise to an image, by an objective's predictions.

    Args:
        scheduler: A stock one; it is copied, because it keeps state.
        objective: What the network predicts.

    Raises:
        ValueError: If the scheduler would sample the objective wrongly.
    """

    def __init__(self, scheduler: SchedulerMixin, objective: Objective):
        check_scheduler(scheduler, objective)
        self.scheduler, self.objective = copy.deepcopy(scheduler), objective
        self._is_straight = isinstance(objective.path, StraightPath)
        self._takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """Prepare for sampling from pure noise, around the known faults of the stock schedules.

        Flow levels are ``1, 1 - 1/n, ..., 1/n`` before the config's shift (the stock ones of the Euler and Heun
        schedulers waste their last step below 0.001, those of DPM-Solver++ begin at 0.999), and EDM's are the ramp of
        arXiv 2206.00364, Eq. 5, at ``i / n`` rather than ``i / (n - 1)``, which wastes a step below 0.002. DDIM steps
        by a whole stride of its 1000 times, or its steps would not join: it takes up to a few steps more than asked
        for.

        Args:
            num_inference_steps: Steps, at least 1; schedulers of order 2 call the network ``2 n - 1`` times.
            device: Where the timesteps are put.
            sigmas: Native levels of the objective to use as they are, falling, without the final 0; they replace
                ``num_inference_steps``. Those of EDM begin at the scheduler's ``sigma_max``.

        Raises:
            ValueError: If the number of steps is not positive, or ``sigmas`` do not fall or leave the scheduler's
                range.
        """
        scheduler = self.scheduler
        if sigmas is not None:
            self._check_sigmas(sigmas)
            num_inference_steps = len(sigmas)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}.")
        scheduler.set_timesteps(num_inference_steps, device=device)
        if isinstance(scheduler, DDIMScheduler):
            last = scheduler.config.num_train_timesteps - 1
            scheduler.timesteps = torch.arange(last, -1, -((last + 1) // num_inference_steps), device=device)
            return
        levels = sigmas
        if sigmas is None and (self._is_straight or self.objective.name == "edm"):
            levels = self._default_levels(num_inference_steps)
        if levels is not None:
            self._set_levels(torch.as_tensor(np.array(levels), dtype=torch.float32), device)
        scheduler.set_begin_index(0)  # looking the index up by timestep fails where timesteps repeat

    def begin_under(self, share: float, sigmas: list[float] | None = None) -> None:
        """Begin under less than pure noise, with as many steps as are set; to be called after `set_timesteps`.

        The first level is the one that was asked for, so that every share gives another image, but for DDIM, whose
        thousand levels have the nearest one.

        Args:
            share: Noise as a part of noise and signal, in (0, 1].
            sigmas: The levels that are set, where a student has some of its own: they are shrunk alike.
        """
        scheduler, highest, last = self.scheduler, self.level(0), self.level(len(self.timesteps) - 1)
        level = highest.cpu()
        if share < 1:
            asked = self.objective.level_from_log_ratio(torch.tensor(share / (1 - share)).log())
            level = torch.minimum(asked, level)
        if isinstance(scheduler, DDIMScheduler):
            levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
            first = int((levels.log() - level.log()).abs().argmin())
            stride = max(1, (first + 1) // len(self.timesteps))
            scheduler.num_inference_steps = scheduler.config.num_train_timesteps // stride
            stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps  # by which it steps
            scheduler.timesteps = torch.arange(first, -1, -stride, device=highest.device)
            return
        steps = len(scheduler.sigmas.unique()) - 1  # those of order 2 have each level but the first twice
        levels = (
            self._levels_from(float(level), float(last), steps) if sigmas is None else float(level) * np.array(sigmas)
        )
        self._set_levels(torch.as_tensor(levels, dtype=torch.float32), highest.device)
        scheduler.set_begin_index(0)

    def noisy_state(self, image: torch.Tensor, noise: torch.Tensor, index: int = 0) -> torch.Tensor:
        """The scheduler's state ``(B, C, H, W)`` before a step, of an image under standard normal noise.

        After the last step that is the image itself.
        """
        if index == len(self.timesteps):
            return image
        level = self.level(index)
        noisy = self.objective.add_noise(image, noise, level.expand(len(image)))
        if isinstance(self.scheduler, HeunDiscreteScheduler):  # its state is not scaled to unit variance
            return noisy * (1 + level**2).sqrt()
        return noisy

    @property
    def timesteps(self) -> torch.Tensor:
        """The scheduler's own time of every call of the network."""
        return self.scheduler.timesteps

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return getattr(self.scheduler, "init_noise_sigma", 1.0)  # flow schedulers have none

    def level(self, index: int) -> torch.Tensor:
        """Native level of a call of the network, a float32 scalar on the timesteps' device."""
        timestep = self.timesteps[index]
        if isinstance(self.scheduler, DDIMScheduler):
            signal = self.scheduler.alphas_cumprod[int(timestep)]
            return ((1 - signal) / signal).sqrt().to(timestep.device, torch.float32)
        return self.scheduler.sigmas[index].to(timestep.device, torch.float32)

    def noisy_image(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The scheduler's state ``(B, C, H, W)`` as the noisy image of the objective's own convention.

        To be called once before every `step`, because some schedulers note the call.
        """
        if self._is_straight:
            return latents
        scaled = self.scheduler.scale_model_input(latents, self.timesteps[index])
        # EDM schedulers precondition by themselves, as the objective does; the others reach its variance-preserving
        # form.
        return latents if self.objective.name == "edm" else scaled

    def step(
        self,
        prediction: torch.Tensor,
        index: int,
        latents: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """The state ``(B, C, H, W)`` after a step by the network's prediction, in the precision of ``latents``.

        `check_scheduler` lets only schedulers through that read predictions as the objective means them.
        """
        settings = {"generator": generator} if self._takes_generator else {}
        output = prediction.to(latents.dtype)  # several schedulers return their state in the dtype of the prediction
        return self.scheduler.step(output, self.timesteps[index], latents, return_dict=False, **settings)[0]

    # Noise levels

    def _default_levels(self, steps: int) -> np.ndarray:
        """Levels ``(steps,)`` of an even schedule whose last step is as long as the others, in its own terms."""
        config = self.scheduler.config
        ends = (config.sigma_max, config.sigma_min) if self.objective.name == "edm" else (1.0, 0.0)
        return self._levels_from(*ends, steps)

    def _levels_from(self, first: float, last: float, steps: int) -> np.ndarray:
        """Levels ``(steps,)`` that fall from one on, spaced as those from noise alone are."""
        ramp, config = np.arange(steps) / steps, self.scheduler.config
        if self._is_straight:
            shift = config.get("shift", config.get("flow_shift", 1.0))
            even = first / (shift - (shift - 1) * first) * (1 - ramp)
            return shift * even / (1 + (shift - 1) * even)
        rho = config.get("rho", 7.0)  # arXiv 2206.00364, Eq. 5
        high, low = first ** (1 / rho), (last if last < first else first / 2) ** (1 / rho)
        return (high + ramp * (low - high)) ** rho

    def _set_levels(self, levels: torch.Tensor, device: torch.device | str | None) -> None:
        """Replace the scheduler's levels by ``levels (n,)`` and a final 0."""
        scheduler = self.scheduler
        if self._is_straight:
            levels = levels.clamp(max=1 - 1e-6)  # multistep solvers take the logarithm of the signal
            timesteps = levels * scheduler.config.num_train_timesteps
        else:
            timesteps = levels.log() / 4
        if scheduler.order == 2:  # a second call at every level but the first
            levels = torch.cat([levels[:1], levels[1:].repeat_interleave(2)])
            timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        scheduler.sigmas = torch.cat([levels, torch.zeros(1)])
        scheduler.timesteps = timesteps.to(device)

    def _check_sigmas(self, sigmas: list[float]) -> None:
        """Raise ValueError unless ``sigmas`` can be the levels of this scheduler."""
        if isinstance(self.scheduler, DDIMScheduler):
            raise ValueError("sigmas: DDIMScheduler takes none; give num_inference_steps or use another scheduler.")
        try:
            values = np.asarray(sigmas, dtype=float)
        except (TypeError, ValueError):
            values = np.empty(0)
        sigma_max = self.scheduler.config.get("sigma_max")
        highest = 1.0 if self._is_straight else {"edm": sigma_max}.get(self.objective.name, math.inf)
        falling = values.ndim == 1 and len(values) > 0 and bool((np.diff(values) < 0).all())
        if not falling or not 0 < values[-1] <= values[0] <= highest:
            raise ValueError(
                f"sigmas must be a falling list of numbers above 0 and at most {highest:g}, without the final 0."
            )
        if self.objective.name == "edm" and not math.isclose(values[0], highest):
            raise ValueError(
                f"sigmas must begin at {highest:g}, the scheduler's sigma_max, which scales the first noise."
            )
