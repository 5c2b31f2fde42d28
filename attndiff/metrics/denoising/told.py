"""A model's denoised images by what it is told of them."""

from collections.abc import Callable

import torch

from attndiff.condition import Condition
from attndiff.diffusion.conditioned import ConditionedNetwork
from attndiff.tasks.prompts import Value, prompt_of

# Noisy images (B, C, H, W) of native levels (B,) to denoised ones, float32.
Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# What denoises images of these captions or numbers of classes, one an image; None for the learned null.
Tell = Callable[[list[Value]], Denoise]


def tells(pipeline) -> Tell:
    """How a pipeline of pixels denoises, without guidance."""

    def tell(values: list[Value]) -> Denoise:
        network, objective = ConditionedNetwork(pipeline.unet), pipeline.objective
        network.prepare(_condition(pipeline, values))

        def denoise(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            coordinate = objective.coordinate(level[:1])  # one level a batch
            return objective.denoised(x, network(objective.scale_input(x, level), coordinate), level)

        return denoise

    return tell


def _condition(pipeline, values: list[Value]) -> Condition:
    """What the network is told of values that are all given, or all None."""
    if pipeline.condition_encoder is None:
        return Condition()
    if values[0] is None:
        return Condition.encoded(pipeline.condition_encoder, batch_size=len(values))
    arguments = prompt_of(pipeline).arguments(values)
    tokens, mask, _, _ = pipeline.encode_prompt(**arguments, do_classifier_free_guidance=False)
    return Condition(tokens, mask)
