"""From noise to an image, step by step, for any network and any solver."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from attndiff.diffusion.solver import Solver

# A noisy image ``(B, C, H, W)`` and its level to the objective's prediction, of the image's shape.
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class SamplingStep:
    """What a step has led to.

    Args:
        index: Number of the step, from 0.
        timestep: The scheduler's own time of it.
        latents: ``(B, C, H, W)``; whoever goes through the steps may put others in their place.
    """

    index: int
    timestep: torch.Tensor
    latents: torch.Tensor


def sampling_steps(
    predict: Predict,
    solver: Solver,
    latents: torch.Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> Iterator[SamplingStep]:
    """Take the solver's steps, one an item; the latents of the last are the sample.

    To leave out the steps that remain, stop going through them.

    Args:
        predict: The network.
        solver: With its timesteps set.
        latents: ``(B, C, H, W)`` noise, at the solver's ``noise_scale``.
        generator: Source of the noise that some schedulers add at every step; a list of one for each image.
    """
    for index, timestep in enumerate(solver.timesteps):
        prediction = predict(solver.noisy_image(latents, index), solver.level(index))
        step = SamplingStep(index, timestep, solver.step(prediction, index, latents, generator))
        yield step
        latents = step.latents
