"""Sampling from text, from a class, or from nothing.

Shapes: P prompts, B = P * num_images_per_prompt images, S condition tokens, C channels, h and w of the latents.
"""

import torch

from attndiff.pipelines.base import ImagePipeline
from attndiff.pipelines.call.conditioning import GivenCondition
from attndiff.pipelines.call.options import Callback, CallOptions
from attndiff.pipelines.call.output import AttnDiffPipelineOutput, as_output


class AttnDiffPipeline(ImagePipeline):
    """Sample images from captions, classes, or unconditionally; its arguments are those of `ImagePipeline`."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        sigmas: list[float] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        output_attention_maps: bool = False,
    ) -> AttnDiffPipelineOutput | tuple:
        """Sample images.

        Args:
            prompt: One caption or several; what goes beyond the tokenizer's length is cut, with a warning, and an empty
                one is no condition.
            class_labels: Numbers or names of classes, one for each prompt.
            height: Pixels; that of the training images by default. Multiples of the network's ``size_multiple`` work.
            width: Likewise.
            num_inference_steps: Steps of the scheduler; by default 20, or the most that a few-step student was made
                for.
            guidance_scale: How far to lead away from the unconditional prediction; 1 is not at all. By default 3, or 1
                for a student.
            guidance_interval: The noise levels to do so at, as noise / (noise + signal): 0 is clean, 1 noise alone
                (arXiv 2404.07724).
            negative_prompt: What to lead away from instead of the learned null; one for all prompts or one for each.
            num_images_per_prompt: Images of every prompt, side by side in the result.
            generator: Source of the noise; a list of one for each image gives the images that single calls give.
            latents: Standard normal noise ``(B, C, h, w)`` to begin with instead.
            prompt_embeds: Condition tokens ``(P, S, C)`` instead of a prompt; not where a guide has its own encoder,
                which cannot read them.
            prompt_attention_mask: ``(P, S)`` bool, true for tokens that count; all by default.
            negative_prompt_embeds: Tokens to lead away from, instead of a negative prompt.
            negative_prompt_attention_mask: Their mask.
            sigmas: The objective's noise levels to step through instead of ``num_inference_steps``, falling, without 0.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see `to_output`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.
            callback_on_step_end: Called as ``callback(pipeline, step, timestep, tensors)`` after every step; what it
                returns replaces the tensors.
            callback_on_step_end_tensor_inputs: Which tensors it is given.
            output_attention_maps: Record which token each pixel attended to; the pixels stay the same.

        Raises:
            ValueError: If an argument is wrong, or the scheduler does not fit the objective.
        """
        options = CallOptions(
            *self.own_defaults(num_inference_steps, guidance_scale),
            guidance_interval=guidance_interval,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            sigmas=sigmas,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            output_attention_maps=output_attention_maps,
        )
        given = GivenCondition(
            prompt,
            class_labels,
            negative_prompt,
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        )
        with self.calling(options) as solver:
            guided = self.do_classifier_free_guidance, self.do_autoguidance
            encoded = self.encode(given, num_images_per_prompt, *guided)
            batch = encoded.positive.rows or num_images_per_prompt
            latents = self.prepare_latents(batch, height, width, generator, latents, solver.noise_scale)
            latents, maps = self.sample(solver, latents, encoded, options)
            images = self.decode_latents(latents, output_type)
        return as_output(images, maps, return_dict)
