"""What is measured of images: themselves, and where they have alpha what is seen of them on white and on black."""

from collections.abc import Callable
from functools import partial

import torch

from attndiff.alpha import GROUNDS, has_alpha, laid_over

View = Callable[[torch.Tensor], torch.Tensor]


def as_they_are(images: torch.Tensor) -> torch.Tensor:
    """The view of images without alpha."""
    return images


def views(data: dict | None) -> dict[str, View]:
    """Views of images ``(..., C, H, W)``, by what the name of a measure of them ends in.

    Args:
        data: What a pipeline keeps about its data; with alpha, images are premultiplied and views have a channel less.
    """
    if not has_alpha(data):
        return {"": as_they_are}
    return {f"_on_{name}": partial(laid_over, ground=ground) for name, ground in GROUNDS.items()}


def on_white(data: dict | None) -> View:
    """The view of images on white, on which transparent ones are looked at most."""
    return views(data).get("_on_white", as_they_are)


def on_turns(images: torch.Tensor, data: dict | None) -> torch.Tensor:
    """Images ``(N, C, H, W)``, each in one view, the views by turns: what is to know all views learns from these."""
    seen = [view(images) for view in views(data).values()]
    return torch.stack([seen[i % len(seen)][i] for i in range(len(images))])
