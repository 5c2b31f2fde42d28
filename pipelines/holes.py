"""Holes of pictures: soft edges, the part of a large picture around one, and room beside a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from attndiff.pipelines.call.inputs import describe_type

PICTURES = ("1", "L", "LA", "P", "RGB", "RGBA")  # modes of 8 bits a channel at most
RESIZED = {"1": "L", "LA": "RGBA", "P": "RGBA"}  # as what pictures of these modes are made larger or smaller


def soft_edges(mask: torch.Tensor, blur_factor: float) -> torch.Tensor:
    """How much of what is drawn is seen: all of it in the hole, and less and less of it outside.

    Args:
        mask: ``(N, 1, H, W)`` of 0 and 1, 1 in the hole.
        blur_factor: Standard deviation of the Gaussian in pixels; 0 leaves the edge sharp.

    Returns:
        ``(N, 1, H, W)`` in [0, 1], 0 where what was given stays.
    """
    if not blur_factor:
        return mask
    pictures = [Image.fromarray((one[0].cpu().numpy() * 255).astype(np.uint8)) for one in mask]
    blurred = np.stack([np.asarray(VaeImageProcessor.blur(picture, blur_factor)) for picture in pictures])
    # A straight edge has a half on it, which twice is all.
    return torch.maximum(mask, (2 * torch.from_numpy(blurred)[:, None].to(mask) / 255).clamp(max=1))


def with_room(image: Image.Image, left: int, top: int, right: int, bottom: int) -> tuple[Image.Image, Image.Image]:
    """A picture with empty room beside it, and the mask of that room.

    Args:
        image: Of any size and mode.
        left, top, right, bottom: Pixels to be added.

    Raises:
        ValueError: If there is no room, or less than none on a side.
    """
    added = {"left": left, "top": top, "right": right, "bottom": bottom}
    wrong = [name for name, value in added.items() if not isinstance(value, int) or value < 0]
    if wrong or not any(added.values()):
        raise ValueError(f"{wrong[0] if wrong else 'left, top, right or bottom'} must be a whole number of pixels.")
    size = image.width + left + right, image.height + top + bottom
    larger, mask = Image.new(image.mode, size), Image.new("L", size, 255)
    larger.paste(image, (left, top))
    mask.paste(0, (left, top, left + image.width, top + image.height))
    return larger, mask


@dataclass
class Cutouts:
    """The parts of pictures around their holes, each at the size at which a model draws.

    Args:
        pictures: Whole.
        seen: Of each, how much of what is drawn is seen, as a mask of 8 bits.
        boxes: Left, top, right and bottom of each part, in pixels.
        size: Width and height at which it is drawn.
    """

    pictures: list[Image.Image]
    seen: list[Image.Image]
    boxes: list[tuple[int, int, int, int]]
    size: tuple[int, int]

    @classmethod
    def around(cls, image: Any, mask_image: Any, size: tuple[int, int], padding: int, blur_factor: float) -> "Cutouts":
        """The smallest parts of the shape of ``size`` that hold each hole and so many pixels beside it.

        Where a picture has no room for that shape, the part is of another and is stretched.

        Args:
            image: A picture, or a list of them.
            mask_image: Likewise, white in the hole; one for all or one each.
            size: Width and height at which the model draws.
            padding: Pixels.
            blur_factor: As of `soft_edges`.

        Raises:
            ValueError: If they are no pictures of one size each, nothing is white, or ``padding`` is below 0.
        """
        if not isinstance(padding, int) or padding < 0:
            raise ValueError(f"padding_mask_crop must be a whole number of pixels from 0, not {padding!r}.")
        pictures, masks = _pictures(image, "image"), _pictures(mask_image, "mask_image")
        if len(masks) not in (1, len(pictures)):
            raise ValueError(f"mask_image has {len(masks)} pictures for {len(pictures)}: give one, or one each.")
        masks = masks * len(pictures) if len(masks) == 1 else masks
        for picture, mask in zip(pictures, masks, strict=True):
            if picture.size != mask.size:
                sides = f"{mask.width} x {mask.height}, and the image {picture.width} x {picture.height}"
                raise ValueError(f"mask_image is {sides}.")
        holes = [torch.from_numpy(np.asarray(mask.convert("L")) > 127)[None, None].float() for mask in masks]
        if not all(hole.any() for hole in holes):
            raise ValueError("mask_image: nothing is white, so that there is nothing to draw; leave it out.")
        soft = [(soft_edges(hole, blur_factor)[0, 0] * 255).ceil().byte().numpy() for hole in holes]
        seen = [Image.fromarray(one) for one in soft]
        boxes = [VaeImageProcessor.get_crop_region(one, *size, pad=padding) for one in seen]
        return cls(pictures, seen, boxes, size)

    @property
    def images(self) -> list[Image.Image]:
        """The parts, at ``size``."""
        whole = [picture.convert(RESIZED.get(picture.mode, picture.mode)) for picture in self.pictures]
        return [
            one.crop(box).resize(self.size, Image.Resampling.LANCZOS)
            for one, box in zip(whole, self.boxes, strict=True)
        ]

    @property
    def masks(self) -> list[Image.Image]:
        """White at every pixel of ``size`` that covers some of what is to be drawn."""
        parts = [np.asarray(one.crop(box)) > 0 for one, box in zip(self.seen, self.boxes, strict=True)]
        shares = [Image.fromarray(one.astype(np.float32)).resize(self.size, Image.Resampling.BOX) for one in parts]
        return [Image.fromarray((np.asarray(share) > 0).astype(np.uint8) * 255) for share in shares]

    def put_back(self, drawn: Sequence[Image.Image]) -> list[Image.Image]:
        """The pictures with what was drawn in their holes; every other pixel as it came.

        Args:
            drawn: One or several for each picture, those of one side by side.
        """
        results = []
        for i, part in enumerate(drawn):
            turn = i * len(self.pictures) // len(drawn)
            box, whole = self.boxes[turn], self.pictures[turn].convert(part.mode)
            over = whole.copy()
            over.paste(part.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS), box)
            results.append(Image.composite(over, whole, self.seen[turn]))
        return results


def _pictures(given: Any, name: str) -> list[Image.Image]:
    """One or several pictures as a list."""
    pictures = list(given) if isinstance(given, (list, tuple)) else [given]
    for one in pictures:
        if not isinstance(one, Image.Image) or one.mode not in PICTURES:
            other = f"mode {one.mode}" if isinstance(one, Image.Image) else describe_type(one)
            raise ValueError(f"{name}: padding_mask_crop is for pictures (PIL.Image) of 8 bits, not {other}.")
    return pictures
