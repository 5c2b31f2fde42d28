"""Maps of the parts of images.

Shapes: N images, C channels, K parts, H and W of the images, S maps of an ensemble.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from attndiff.pipelines.call.checks import check_choice
from attndiff.pipelines.call.conditioning import GivenCondition
from attndiff.pipelines.call.images import padded
from attndiff.pipelines.call.options import CallOptions
from attndiff.pipelines.tiled import TiledPipeline
from attndiff.tasks.part_maps import as_pictures, as_shares, entropy

DRAWING_STEPS = 5  # of a map that is drawn
TYPES = ("pil", "np", "pt")


@dataclass
class SegmentationOutput(BaseOutput):
    """What a call returns.

    Args:
        images: The maps: pictures in palette colours whose pixels are the numbers of parts, or numbers ``(N, H, W)``
            as array or tensor, int64, as ``output_type`` says.
        prediction: How likely each part is, ``(N, K, H, W)`` float32 in [0, 1], as tensor or array likewise.
        uncertainty: ``(N, H, W)`` float32, from 0 where all is said for one part to 1 where nothing is known.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    prediction: np.ndarray | torch.Tensor
    uncertainty: np.ndarray | torch.Tensor


class AttnDiffSegmentPipeline(TiledPipeline):
    """Tell the parts of images apart; its arguments are those of `ImagePipeline`."""

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        num_inference_steps: int = 1,
        guidance_scale: float = 1.0,
        ensemble_size: int = 1,
        tile_size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> SegmentationOutput | tuple:
        """Read the parts.

        Args:
            image: Pictures, an array ``(N, H, W, C)`` or a tensor ``(N, C, H, W)`` in [0, 1]; any size. Of a model of
                values in units, pictures and arrays hold such values.
            prompt: What they show, for a model that reads captions; one for all or one each.
            class_labels: Likewise of a model that knows classes.
            num_inference_steps: 1 says how likely each part is, in one call of the network; more draw a map that may be
                right.
            guidance_scale: How far to lead away from the unconditional prediction; 1 is not at all.
            ensemble_size: Maps that are drawn of each image, whose mean is taken; more than one needs more than one
                step, and then ``uncertainty`` is also where they differ.
            tile_size: Pixels a side of the parts of the images that the network sees at once, a quarter of which they
                share with their neighbours; twice as large as those it learned from by default.
            generator: Source of the noise of more than one step; a list of one for each of the N * S maps.
            output_type: ``"pil"`` gives pictures, ``"np"`` and ``"pt"`` numbers.
            return_dict: Return `SegmentationOutput` rather than a tuple.

        Raises:
            ValueError: If an argument is wrong.
        """
        options = CallOptions(
            num_inference_steps, guidance_scale, num_images_per_prompt=ensemble_size, generator=generator
        )
        check_choice("output_type", [output_type], TYPES)
        if ensemble_size > 1 and num_inference_steps == 1:
            raise ValueError("ensemble_size: in one step all maps are the same; give num_inference_steps above 1.")
        pixels = self.given_pixels(image)
        side = self.side_of_tiles(tile_size)
        with self.calling(options) as solver:
            guided = self.do_classifier_free_guidance, self.do_autoguidance
            given = GivenCondition(prompt, class_labels).of_images(len(pixels))
            encoded = self.encode(given, ensemble_size, *guided)
            aligned = padded(pixels, self.unet.size_multiple).repeat_interleave(ensemble_size, dim=0)
            made = self.made_beside(solver, encoded, options, aligned, side)
        made = made[..., : pixels.shape[-2], : pixels.shape[-1]].unflatten(0, (len(pixels), ensemble_size))
        output = as_maps(as_shares(made).mean(1), output_type)  # of (N, S, K, H, W)
        return output if return_dict else (output.images, output.prediction, output.uncertainty)

    def own_defaults(self, steps: int | None = None, guidance_scale: float | None = None) -> tuple[int, float]:
        """Steps and guidance as given, else those of a map that is drawn rather than the mean of all."""
        return DRAWING_STEPS if steps is None else steps, 1.0 if guidance_scale is None else guidance_scale

    @property
    def image_channels(self) -> int:
        """Channels of the images that it reads."""
        return self.unet.config.in_channels - self.unet.config.out_channels


def as_maps(shares: torch.Tensor, output_type: str) -> SegmentationOutput:
    """The output that says how likely each part is, ``(N, K, H, W)``."""
    numbers, uncertainty = shares.argmax(1), entropy(shares)
    if output_type == "pt":
        return SegmentationOutput(numbers, shares, uncertainty)
    images = as_pictures(numbers) if output_type == "pil" else numbers.cpu().numpy()
    return SegmentationOutput(images, shares.cpu().numpy(), uncertainty.cpu().numpy())
