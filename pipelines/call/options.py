"""How to sample: what every pipeline's call takes, whatever it is told to draw."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from attndiff.diffusion.guidance import EVERYWHERE
from attndiff.pipelines.call.checks import check_choice, check_numbers, check_strength
from attndiff.pipelines.call.postprocess import OUTPUT_TYPES

Callback = Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks


@dataclass(frozen=True)
class CallOptions:
    """Arguments of a call by their names there, where they are explained.

    Raises:
        ValueError: If one cannot be, in any pipeline.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = EVERYWHERE
    num_images_per_prompt: int = 1
    generator: torch.Generator | list[torch.Generator] | None = None
    sigmas: list[float] | None = None
    strength: float | None = None
    output_type: str = "pil"
    callback_on_step_end: Callback | None = None
    callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",)
    output_attention_maps: bool = False

    def __post_init__(self):
        steps, scale = self.num_inference_steps, self.guidance_scale
        check_numbers(steps, scale, self.guidance_interval, self.num_images_per_prompt)
        check_choice("output_type", [self.output_type], OUTPUT_TYPES)
        if self.strength is not None:
            check_strength(self.strength)
        if not (self.callback_on_step_end is None or callable(self.callback_on_step_end)):
            raise ValueError(
                f"callback_on_step_end must be a function, not {type(self.callback_on_step_end).__name__}."
            )

    @property
    def shown_tensors(self) -> list[str]:
        """Names of the tensors that the callback is given."""
        callback = self.callback_on_step_end
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            return callback.tensor_inputs
        return list(self.callback_on_step_end_tensor_inputs)
