"""Images with a hole that is drawn anew, and the rest as it was given.

Shapes: N images, B = N * num_images_per_prompt, C channels, H rows, W columns.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from attndiff.diffusion.solver import Solver
from attndiff.pipelines.base import ImagePipeline
from attndiff.pipelines.call.conditioning import EncodedCondition, GivenCondition
from attndiff.pipelines.call.images import as_mask, padded, rows_for, stacked
from attndiff.pipelines.call.options import CallOptions
from attndiff.pipelines.call.output import AttnDiffPipelineOutput, as_output
from attndiff.pipelines.call.postprocess import is_picture
from attndiff.pipelines.holes import Cutouts, soft_edges, with_room

RESAMPLED = 0.6  # the noise under which a model that knows no masks draws again, as noise / (noise + signal)


class AttnDiffInpaintPipeline(ImagePipeline):
    """Fill the holes of images; its arguments are those of `ImagePipeline`.

    A model that was trained to is told mask and image. With any other that makes images, by
    ``AttnDiffInpaintPipeline.from_pipe(pipeline)``, the given pixels are put back under the noise of every step, and
    the end of the way is gone several times, so that the hole comes to fit them (arXiv 2201.09865, section 4).
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        mask_image: Any,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        resamplings: int = 10,
        padding_mask_crop: int | None = None,
        blur_factor: float = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> AttnDiffPipelineOutput | tuple:
        """Draw what is masked; every other pixel is returned as it came, to the last bit.

        Args:
            image: Pictures, an array ``(N, H, W, C)`` or a tensor ``(N, C, H, W)`` in [0, 1]; any size. Of a model of
                values in units, pictures and arrays hold such values.
            mask_image: White where it is to be drawn: pictures, an array ``(N, H, W)`` or a tensor ``(N, 1, H, W)``.
            prompt: What they show, for a model that reads captions; one for all or one each.
            class_labels: Likewise of a model that knows classes.
            num_inference_steps: Steps of the scheduler; 20 by default.
            guidance_scale: How far to lead away from the unconditional prediction; 1 is not at all.
            num_images_per_prompt: Results for each image, side by side.
            generator: Source of the noise; a list of one for each result.
            latents: Standard normal noise ``(B, C, H, W)`` to begin with instead.
            resamplings: How often a model that knows no masks draws the hole again from under `RESAMPLED` noise; one
                that was trained to fill holes needs none.
            padding_mask_crop: Of pictures that are larger than what the model draws: draw the part around each hole
                alone, with as many pixels beside it, at the model's own size, and put it back. None draws all.
            blur_factor: Standard deviation in pixels with which what is drawn fades into what was given outside of the
                hole, see `soft_edges`; 0 ends it at its edge.
            output_type: ``"pil"``, ``"np"``, ``"pt"``; as of `AttnDiffPipeline`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.

        Raises:
            ValueError: If an argument is wrong, or ``image`` and ``mask_image`` differ in size.
        """
        steps, guidance_scale = self.own_defaults(num_inference_steps, guidance_scale)
        options = CallOptions(
            steps, guidance_scale, num_images_per_prompt=num_images_per_prompt, generator=generator,
            output_type=output_type,
        )  # fmt: skip
        if not isinstance(resamplings, int) or resamplings < 0:
            raise ValueError(f"resamplings must be a whole number from 0, not {resamplings!r}.")
        if not isinstance(blur_factor, (int, float)) or not 0 <= blur_factor < float("inf"):
            raise ValueError(f"blur_factor must be a number of pixels from 0, not {blur_factor!r}.")
        if self.vae is not None:
            raise ValueError("image: this model draws latents, in which a hole has no sharp edge; take one of pixels.")
        cutouts = None
        if padding_mask_crop is not None:
            cutouts = self._cutouts(image, mask_image, padding_mask_crop, blur_factor, output_type)
            image, mask_image, blur_factor = cutouts.images, cutouts.masks, 0
        pixels = self.given_pixels(image)
        seen = soft_edges(as_mask(mask_image, tuple(pixels.shape[-2:])), blur_factor).to(pixels.device)
        with self.calling(options) as solver:
            guided = self.do_classifier_free_guidance, self.do_autoguidance
            given = GivenCondition(prompt, class_labels).of_images(len(pixels))
            encoded = self.encode(given, num_images_per_prompt, *guided)
            batch = encoded.positive.rows or len(pixels) * num_images_per_prompt
            seen = rows_for(seen, len(pixels), "mask_image")
            pixels, seen = (
                rows_for(part, batch // num_images_per_prompt).repeat_interleave(num_images_per_prompt, dim=0)
                for part in (pixels, seen)
            )
            mask = (seen > 0).to(seen)
            known = padded(torch.cat([mask, pixels * (1 - mask)], dim=1), self.unet.size_multiple)
            noise = self.prepare_latents(batch, *known.shape[-2:], generator, latents, 1.0)
            if self.knows_masks:
                drawn, _ = self.sample(solver, noise * solver.noise_scale, encoded, options, known)
            else:
                drawn = self._around(solver, noise, encoded, options, known, resamplings)
            drawn = drawn[..., : pixels.shape[-2], : pixels.shape[-1]]
            images = self.decode_latents(torch.lerp(pixels, drawn, seen), output_type)
        images = _given_back(images, image, mask)
        return as_output(cutouts.put_back(images) if cutouts else images, None, return_dict)

    def outpaint(
        self, image: Any, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, **call: Any
    ) -> AttnDiffPipelineOutput | tuple:
        """Draw what may lie beside pictures; they themselves are returned as they came.

        Args:
            image: A picture (``PIL.Image``), or a list of them of one size.
            left, top, right, bottom: Pixels to be added on each side.
            call: Arguments of `__call__`.

        Raises:
            ValueError: If an argument is wrong.
        """
        pictures = list(image) if isinstance(image, (list, tuple)) else [image]
        for picture in pictures:
            if not isinstance(picture, Image.Image):
                raise ValueError(
                    f"image must be a picture (PIL.Image) or a list of them, not {type(picture).__name__}."
                )
        larger, masks = zip(*(with_room(picture, left, top, right, bottom) for picture in pictures), strict=True)
        return self(list(larger), list(masks), **call)

    def _cutouts(self, image: Any, mask_image: Any, padding: int, blur_factor: float, output_type: str) -> Cutouts:
        """The parts of pictures that are drawn alone; raises ValueError where there can be none, `Cutouts.around`."""
        if output_type != "pil":
            raise ValueError(f"output_type must be pil with padding_mask_crop, not {output_type!r}.")
        if not is_picture(self.config.data, self.image_channels):
            raise ValueError("padding_mask_crop is for models of pictures of 8 bits, and this draws other values.")
        height, width = self.image_size
        return Cutouts.around(image, mask_image, (width, height), padding, blur_factor)

    @property
    def knows_masks(self) -> bool:
        """Whether the model was trained to fill holes."""
        return self.unet.config.in_channels > self.unet.config.out_channels

    def _around(
        self,
        solver: Solver,
        noise: torch.Tensor,
        encoded: EncodedCondition,
        options: CallOptions,
        known: torch.Tensor,
        resamplings: int,
    ) -> torch.Tensor:
        """Draw ``(B, C, H, W)`` with what is known put back before every step.

        Args:
            solver: From `calling`.
            noise: Standard normal, ``(B, C, H, W)``.
            encoded: From `encode`.
            options: Of the call.
            known: Mask and image, ``(B, 1 + C, H, W)``.
            resamplings: As of `__call__`.
        """
        hole, image = known[:, :1] > 0.5, known[:, 1:]
        drawn, steps = image, len(solver.timesteps)
        for turn in range(1 + resamplings):
            if turn:  # from under less noise, which leaves what was drawn to be seen
                solver.set_timesteps(max(1, int(steps * RESAMPLED)), noise.device)
                solver.begin_under(RESAMPLED)
                noise = self.prepare_latents(len(noise), *noise.shape[-2:], options.generator, None, 1.0)
                self._num_timesteps = len(solver.timesteps)
            keep = partial(_put_back, solver, hole, image, noise)
            state = solver.noisy_state(drawn, noise) if turn else noise * solver.noise_scale
            drawn, _ = self.sample(solver, keep(0, state), encoded, options, keep=keep)
        return drawn


def _put_back(
    solver: Solver, hole: torch.Tensor, image: torch.Tensor, noise: torch.Tensor, index: int, state: torch.Tensor
) -> torch.Tensor:
    """The state before a step with the image, under the noise of then, outside of the hole."""
    return torch.where(hole, state, solver.noisy_state(image, noise, index))


def _given_back(images, given, mask: torch.Tensor):
    """The results with the given pixels themselves, not what became of them on the way through [-1, 1].

    Args:
        images: Results of a call, of any output type.
        given: The argument ``image``.
        mask: ``(B, 1, H, W)``, 1 where it was drawn.
    """
    kind = torch.Tensor if isinstance(images, torch.Tensor) else np.ndarray
    known = mask.cpu() < 0.5
    if isinstance(images, np.ndarray) and images.dtype.kind == "u":
        return images  # of shares of 1
    if isinstance(images, list):
        several = isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) == 4
        sources = given if several else [given]
        return [_pasted(image, sources[i * len(sources) // len(images)], known[i, 0]) for i, image in enumerate(images)]
    sources = stacked(list(given)) if isinstance(given, (list, tuple)) and isinstance(given[0], kind) else given
    sources = sources[None] if getattr(sources, "ndim", 0) == 3 else sources
    if not isinstance(sources, kind):
        return images
    turns = [i * len(sources) // len(images) for i in range(len(images))]
    if kind is torch.Tensor:
        return torch.where(known.to(images.device), sources.to(images.device, images.dtype)[turns], images)
    return np.where(known.permute(0, 2, 3, 1).numpy(), sources[turns].astype(images.dtype), images)


def _pasted(image, source, known: torch.Tensor):
    """A picture, or values in units, with the known pixels ``(H, W)`` of what it was made of, if that is the same."""
    if isinstance(image, np.ndarray) and isinstance(source, np.ndarray) and image.dtype.kind == "f":
        return np.where(known.numpy()[..., None], source.astype(image.dtype), image)
    if not isinstance(image, Image.Image) or not isinstance(source, Image.Image):
        return image
    hole = Image.fromarray((~known.numpy()).astype(np.uint8) * 255)
    return Image.composite(image, source.convert(image.mode), hole)
