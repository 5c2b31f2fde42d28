"""What lies between a loss and the weights: gradients summed, judged, clipped and applied.

A step is taken in two halves, so that every process can look at the sum before any weight changes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from attndiff.training.parallel.sharding import whole


class Gradients:
    """Those of one process, of several with a whole copy each (DDP), or of shares (FSDP2).

    Args:
        accelerator: For the other processes.
        model: What is called, prepared: its parameters hold the gradients.
        optimizers: That apply them.
        clip: Norm of all gradients together, at most.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizers: list[torch.optim.Optimizer], clip: float
    ):
        self.accelerator, self.model, self.optimizers, self.clip = accelerator, model, optimizers, clip

    @contextmanager
    def passing(self, last: bool) -> Iterator[None]:
        """Around the passes over a micro-batch; only the last one waits for the other processes."""
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""
        self.accelerator.backward(loss)

    def clipped_norm(self) -> torch.Tensor:
        """The norm ``()`` of all gradients together, the same on every process; they are clipped to ``clip``."""
        return whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip))

    def apply(self) -> None:
        """Change the weights."""
        for optimizer in self.optimizers:
            optimizer.step()
        self.drop()

    def drop(self) -> None:
        """Forget them."""
        for parameter in self.model.parameters():
            parameter.grad = None

    def of(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """All of one parameter's gradient; all processes ask together."""
        return None if parameter.grad is None else whole(parameter.grad)

    def not_finite(self, module: nn.Module) -> str:
        """The parameter nearest to the loss whose gradient is not finite; all processes ask together."""
        gradients = ((name, self.of(p)) for name, p in module.named_parameters() if p.requires_grad)
        bad = [name for name, gradient in gradients if gradient is not None and not gradient.isfinite().all()]
        return bad[-1] if bad else "none"
