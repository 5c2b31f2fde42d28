"""Images of twice or four times the size.

Shapes: N images, B = N * num_images_per_prompt, C channels, h and w of the small images, H and W of the large ones.
"""

from typing import Any

import torch

from attndiff.alpha import clipped, is_premultiplied
from attndiff.pipelines.call.conditioning import GivenCondition
from attndiff.pipelines.call.images import padded, rows_for
from attndiff.pipelines.call.options import CallOptions
from attndiff.pipelines.call.output import AttnDiffPipelineOutput, as_output
from attndiff.pipelines.tiled import TiledPipeline
from attndiff.tasks.resampling import back_project, enlarge_by

DRAWING_STEPS = 6  # of a result that is drawn


class AttnDiffUpscalePipeline(TiledPipeline):
    """Enlarge images by the factor that the model was made for; its arguments are those of `ImagePipeline`."""

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float = 1.0,
        back_projections: int = 8,
        tile_size: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> AttnDiffPipelineOutput | tuple:
        """Enlarge.

        Args:
            image: The small images: pictures, an array ``(N, h, w, C)`` or a tensor ``(N, C, h, w)`` in [0, 1]; any
                size. Of a model of values in units, pictures and arrays hold such values.
            prompt: What they show, for a model that reads captions; one for all or one each.
            class_labels: Likewise of a model that knows classes.
            num_inference_steps: 1 draws the mean of what the images may have been, in one call of the network; more
                draw one of them, sharper and less certain.
            guidance_scale: How far to lead away from the unconditional prediction; 1 is not at all.
            back_projections: Rounds in which the result is made to agree with the small image; 0 leaves it as it is.
            tile_size: Pixels a side of the parts of the small images that the network sees at once, a quarter of which
                they share with their neighbours; twice as large as those it learned from by default.
            num_images_per_prompt: Results for each image, side by side.
            generator: Source of the noise of more than one step; a list of one for each result.
            output_type: ``"pil"``, ``"np"``, ``"pt"``; as of `AttnDiffPipeline`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.

        Raises:
            ValueError: If an argument is wrong.
        """
        options = CallOptions(
            num_inference_steps,
            guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type=output_type,
        )
        if not isinstance(back_projections, int) or back_projections < 0:
            raise ValueError(f"back_projections must be a whole number from 0, not {back_projections!r}.")
        small = self.given_pixels(image)
        side = self.side_of_tiles(tile_size, self.scale)
        with self.calling(options) as solver:
            guided = self.do_classifier_free_guidance, self.do_autoguidance
            given = GivenCondition(prompt, class_labels).of_images(len(small))
            encoded = self.encode(given, num_images_per_prompt, *guided)
            batch = encoded.positive.rows or len(small) * num_images_per_prompt
            small = rows_for(small, batch // num_images_per_prompt).repeat_interleave(num_images_per_prompt, dim=0)
            enlarged = enlarge_by(padded(small, self.unet.size_multiple), self.scale)
            residual = self.made_beside(solver, encoded, options, enlarged, side)
            large = enlarged + residual * self.config.task["residual_std"]
            height, width = (length * self.scale for length in small.shape[-2:])
            alpha = is_premultiplied(self.config.data)
            large = back_project(clipped(large[..., :height, :width], alpha), small, back_projections, alpha)
            images = self.decode_latents(large, output_type)
        return as_output(images, None, return_dict)

    def own_defaults(self, steps: int | None = None, guidance_scale: float | None = None) -> tuple[int, float]:
        """Steps and guidance as given, else those of a result that is drawn rather than the mean of all."""
        return DRAWING_STEPS if steps is None else steps, 1.0 if guidance_scale is None else guidance_scale

    @property
    def scale(self) -> int:
        """How many times the sides of the result are those of the image."""
        return self.config.task["scale"]
