"""Tensors that a caller made in place of the pipeline: condition tokens with their mask, and latents.

A call and what its callback returns are held to the same. Shapes: P rows, S condition tokens, C channels.
"""

from collections.abc import Mapping, Sequence

import torch

from attndiff.condition import Condition
from attndiff.pipelines.call.checks import check_choice
from attndiff.pipelines.call.inputs import describe_type


def check_floats(name: str, given: torch.Tensor, what: str) -> None:
    """Raise ValueError unless it is a floating-point tensor of finite numbers; ``what`` says of which."""
    if not isinstance(given, torch.Tensor) or not given.is_floating_point():
        kind = given.dtype if isinstance(given, torch.Tensor) else describe_type(given)
        raise ValueError(f"{name} must be a floating-point tensor of {what}, not {kind}.")
    if not given.float().isfinite().all():
        raise ValueError(f"{name} must be {what}, and holds numbers that are not finite.")


def check_latents(latents: torch.Tensor | None, shape: Sequence[int], what: str = "standard normal noise") -> None:
    """Raise ValueError unless given latents are a floating tensor of this shape, all finite."""
    if latents is None:
        return
    check_floats("latents", latents, what)
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents must have the shape {tuple(shape)} for this call, not {tuple(latents.shape)}.")


def given_tokens(
    name: str,
    embeds: torch.Tensor,
    mask: torch.Tensor | None,
    width: int | None,
    rows: int | None = None,
    device: torch.device | None = None,
) -> Condition:
    """Condition tokens as the network takes them.

    Args:
        name: What the names of the arguments begin with, ``"prompt"`` or ``"negative_prompt"``.
        embeds: ``(P, S, C)``.
        mask: ``(P, S)``, true or 1 for tokens that count; all by default.
        width: C, if it is known.
        rows: P, if it is settled by something else.
        device: Where they are put; tensors that are there already stay the same objects.

    Raises:
        ValueError: If one is no such tensor, or a row has no token that counts.
    """
    check_floats(f"{name}_embeds", embeds, "condition tokens")
    shape = tuple(embeds.shape)
    fits = len(shape) == 3 and min(shape) > 0 and shape[0] == (rows or shape[0]) and shape[2] == (width or shape[2])
    if not fits:
        wanted = f"({rows or 'prompts'}, tokens, {width or 'channels'})"
        raise ValueError(f"{name}_embeds must have the shape {wanted} for this call, not {shape}.")
    return Condition(embeds.to(device), _counting(f"{name}_attention_mask", mask, shape[:2], device))


def _counting(name: str, mask, shape: tuple[int, int], device: torch.device | None) -> torch.Tensor | None:
    """A mask ``(P, S)`` as bool.

    Masks of other libraries are added to scores, 0 for what counts, and would say the opposite of what they mean here.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor):
        raise ValueError(f"{name} must be a tensor, true for tokens that count, not {describe_type(mask)}.")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have the shape {shape}, a number for each token, not {tuple(mask.shape)}.")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} must be true or 1 for tokens that count and false or 0 for others, nothing else.")
    if not mask.bool().any(dim=1).all():
        raise ValueError(f"{name} leaves a row without a token that counts: it must be true or 1 for those that do.")
    return mask.to(device, torch.bool)


def returned_tensors(returned, tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
    """What a callback has put in the place of tensors.

    Args:
        returned: By the callback.
        tensors: All that it may change, by name.

    Raises:
        ValueError: If it is neither None nor such tensors by name.
    """
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise ValueError(
            "callback_on_step_end must return the tensors that it changes by name, or None, not "
            f"{describe_type(returned)}."
        )
    check_choice("what callback_on_step_end returns", list(returned), list(tensors))
    return {name: value for name, value in returned.items() if value is not tensors[name]}
