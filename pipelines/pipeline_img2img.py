"""An image drawn anew from under some noise: the model keeps what the noise leaves visible and draws the rest.

Shapes: N images, B = N * num_images_per_prompt results, C channels, H and W of the images, h and w of the latents.
"""

from typing import Any

import torch

from attndiff.pipelines.base import ImagePipeline
from attndiff.pipelines.call.conditioning import GivenCondition
from attndiff.pipelines.call.images import padded, rows_for
from attndiff.pipelines.call.options import Callback, CallOptions
from attndiff.pipelines.call.output import AttnDiffPipelineOutput, as_output


class AttnDiffImg2ImgPipeline(ImagePipeline):
    """Draw images anew, with any model that makes images; its arguments are those of `ImagePipeline`.

    On the weights of a pipeline that is open already: ``AttnDiffImg2ImgPipeline.from_pipe(pipeline)``.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        output_attention_maps: bool = False,
    ) -> AttnDiffPipelineOutput | tuple:
        """Draw anew.

        Args:
            prompt: What the results show, for a model that reads captions; one for all images or one each.
            image: Pictures, an array ``(N, H, W, C)`` or a tensor ``(N, C, H, W)`` in [0, 1]; any size, of which the
                results are too. Of a model of values in units, pictures and arrays hold such values.
            strength: The noise to begin under, as noise / (noise + signal) in (0, 1]: a little changes little, and 1
                leaves nothing of the image. Sampling begins at this very level, whatever the number of steps.
            num_inference_steps: Steps from noise alone, by default as of `AttnDiffPipeline`; ``strength`` of them are
                taken, rounded down, but at least one.
            guidance_scale: How far to lead away from the unconditional prediction; as of `AttnDiffPipeline`.
            guidance_interval: The noise levels to do so at, likewise.
            class_labels: Numbers or names of classes, for a model that knows classes.
            negative_prompt: What to lead away from instead of the learned null.
            num_images_per_prompt: Results for each image, side by side.
            generator: Source of the noise; a list of one for each result gives the images that single calls give.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; as of `AttnDiffPipeline`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.
            callback_on_step_end: As of `AttnDiffPipeline`.
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
            strength=strength,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            output_attention_maps=output_attention_maps,
        )
        pixels = self.given_pixels(image)
        given = GivenCondition(prompt, class_labels, negative_prompt).of_images(len(pixels))
        with self.calling(options) as solver:
            guided = self.do_classifier_free_guidance, self.do_autoguidance
            encoded = self.encode(given, num_images_per_prompt, *guided)
            batch = encoded.positive.rows or len(pixels) * num_images_per_prompt
            pixels = rows_for(pixels, batch // num_images_per_prompt).repeat_interleave(num_images_per_prompt, dim=0)
            height, width = pixels.shape[-2:]
            whole = padded(pixels, self.unet.size_multiple * self.vae_scale_factor)
            noise = self.prepare_latents(batch, *whole.shape[-2:], generator, None, 1.0)
            latents = solver.noisy_state(self.encode_pixels(whole), noise)
            latents, maps = self.sample(solver, latents, encoded, options)
            if output_type == "latent":
                return as_output(latents, maps, return_dict)
            images = self.decode_latents(latents, output_type, (height, width))
        return as_output(images, maps, return_dict)
