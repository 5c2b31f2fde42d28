"""Offloaded networks, where parts of them are called that are not their ``forward``."""

from torch import nn


def to_its_device(module: nn.Module) -> None:
    """Bring a network to where it computes, as a call of it does: hooks of ``accelerate`` wrap nothing but that."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
