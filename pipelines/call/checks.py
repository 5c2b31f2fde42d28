"""What a pipeline call is refused for, each in one sentence that names the argument and says what works."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch


def check_numbers(
    num_inference_steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    num_images_per_prompt: int,
) -> None:
    """Raise ValueError unless steps and counts are positive, the guidance finite and its interval within [0, 1]."""
    for name, value in {
        "num_inference_steps": num_inference_steps,
        "num_images_per_prompt": num_images_per_prompt,
    }.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
    check_guidance(guidance_scale)
    interval = tuple(guidance_interval) if isinstance(guidance_interval, Sequence) else ()
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(
            "guidance_interval must be two rising numbers within [0, 1], where 0 is no noise and 1 is noise alone, "
            f"not {guidance_interval!r}."
        )


def check_guidance(guidance_scale: float) -> None:
    """Raise ValueError unless a guidance scale is a finite number."""
    if not isinstance(guidance_scale, Real) or not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number such as 3.0, not {guidance_scale!r}.")


def check_strength(strength: float) -> None:
    """Raise ValueError unless it is a share of noise that leaves something to draw."""
    if not isinstance(strength, Real) or not 0 < strength <= 1:
        raise ValueError(
            f"strength must be above 0, which would leave the image as it is, and at most 1, not {strength!r}."
        )


def check_choice(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raise ValueError unless all of ``given`` are known."""
    unknown = [repr(value) for value in given if value not in known]
    if unknown:
        raise ValueError(f"{name} can be {', '.join(known)}; there is no {', '.join(unknown)}.")


def check_size(height: int, width: int, multiple: int) -> None:
    """Raise ValueError unless both sides are positive multiples of ``multiple``."""
    wrong = [
        (name, size)
        for name, size in {"height": height, "width": width}.items()
        if not isinstance(size, Integral) or size < 1 or size % multiple
    ]
    if wrong:
        hints = " and ".join(f"{name} {size!r} ({nearest_sizes(size, multiple)})" for name, size in wrong)
        raise ValueError(f"height and width must be multiples of {multiple} pixels for this model: change {hints}.")


def nearest_sizes(size: int, multiple: int) -> str:
    """The nearest sides that work, in words."""
    if not isinstance(size, Real) or not math.isfinite(size) or size < multiple:
        return f"the smallest is {multiple}"
    below = int(size) // multiple * multiple
    return f"nearest are {below} and {below + multiple}"


def check_generators(generator: torch.Generator | list[torch.Generator] | None, batch: int) -> None:
    """Raise ValueError unless it is a generator, or a list of one for each image."""
    if generator is None:
        return
    given = generator if isinstance(generator, list) else [generator]
    wrong = [one for one in given if not isinstance(one, torch.Generator)]
    if wrong:
        raise ValueError(f"generator must be a torch.Generator or a list of them, not {type(wrong[0]).__name__}.")
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(f"generator is a list of {len(generator)} for {batch} images: give one for each.")
