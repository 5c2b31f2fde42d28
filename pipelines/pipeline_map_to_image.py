"""Images of maps of parts.

Shapes: N maps, B = N * num_images_per_prompt, K parts, H and W of the images.
"""

from typing import Any

import torch

from attndiff.pipelines.call.conditioning import GivenCondition
from attndiff.pipelines.call.images import padded
from attndiff.pipelines.call.options import CallOptions
from attndiff.pipelines.call.output import AttnDiffPipelineOutput, as_output
from attndiff.pipelines.tiled import TiledPipeline
from attndiff.tasks.part_maps import as_channels, as_numbers


class AttnDiffMapToImagePipeline(TiledPipeline):
    """Draw images that have the parts of a map; its arguments are those of `ImagePipeline`."""

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        tile_size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> AttnDiffPipelineOutput | tuple:
        """Draw.

        Args:
            image: Maps of the numbers of parts: pictures with palette or of one channel, or whole numbers ``(N, H, W)``
                as array or tensor; any size. The model's number for no known part leaves it to the model.
            prompt: What the results show, for a model that reads captions; one for all or one each.
            class_labels: Likewise of a model that knows classes.
            num_inference_steps: As of `AttnDiffPipeline`.
            guidance_scale: How far to lead away from the unconditional prediction; 1 is not at all.
            num_images_per_prompt: Results for each map, side by side.
            tile_size: Pixels a side of the parts of the maps that the network sees at once, a quarter of which they
                share with their neighbours; twice as large as those it learned from by default.
            generator: Source of the noise; a list of one for each result.
            output_type: ``"pil"``, ``"np"``, ``"pt"``; as of `AttnDiffPipeline`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.

        Raises:
            ValueError: If an argument is wrong.
        """
        steps, guidance_scale = self.own_defaults(num_inference_steps, guidance_scale)
        options = CallOptions(
            steps, guidance_scale, num_images_per_prompt=num_images_per_prompt, generator=generator,
            output_type=output_type,
        )  # fmt: skip
        parts, void = self.config.task["parts"], self.config.task.get("void")
        channels = as_channels(as_numbers(image, parts, void), parts).to(self._execution_device)
        side = self.side_of_tiles(tile_size)
        with self.calling(options) as solver:
            guided = self.do_classifier_free_guidance, self.do_autoguidance
            given = GivenCondition(prompt, class_labels).of_images(len(channels))
            encoded = self.encode(given, num_images_per_prompt, *guided)
            aligned = padded(channels, self.unet.size_multiple).repeat_interleave(num_images_per_prompt, dim=0)
            made = self.made_beside(solver, encoded, options, aligned, side)
            images = self.decode_latents(made, output_type, tuple(channels.shape[-2:]))
        return as_output(images, None, return_dict)
