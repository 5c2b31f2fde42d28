"""Muon with matrices of one shape orthogonalised together.

torch's own takes one matrix after the other, and small matrices leave most of a processor idle: those of the preset xs
take half of the time, or less, when they are stacked. What is computed is the same within rounding.

Shapes: N matrices of m rows and n columns, m <= n once they are turned.
"""

from collections import defaultdict

import torch
from torch.distributed.tensor import DTensor

from attndiff.device import cpu_is_faster_in_bfloat16

# Values that are orthogonalised at once: more of them leave the processor's cache.
AT_ONCE = 1 << 21


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` (Jordan et al. 2024), its state and its settings, faster where matrices share shapes.

    The scale of an update is that of arXiv 2502.16982, section 2.2, with which AdamW's rates carry over.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One step, as of torch; matrices that are spread over processes are left to it."""
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                at_once = max(1, AT_ONCE // shape.numel())
                for start in range(0, len(parameters), at_once):
                    self._step_alike(group, parameters[start : start + at_once])
        return None

    def _step_alike(self, group: dict, parameters: list[torch.nn.Parameter]) -> None:
        """Momentum (Nesterov's), orthogonalisation, decay and step of matrices ``(m, n)`` of one shape.

        One matrix after the other where memory is gone through, so that it is gone through once.
        """
        dtype = working_precision(parameters[0].device)
        updates = parameters[0].new_empty((len(parameters), *parameters[0].shape), dtype=dtype)
        for parameter, update in zip(parameters, updates, strict=True):
            momentum = self._momentum(parameter).lerp_(parameter.grad, 1 - group["momentum"])
            update.copy_(parameter.grad.lerp(momentum, group["momentum"]))
        turned = orthogonalised(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        lr, scale = group["lr"], 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, turned, strict=True):
            if group["weight_decay"]:
                parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(update, alpha=-lr * scale)

    def _momentum(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        return state["momentum_buffer"]


def working_precision(device: torch.device) -> torch.dtype:
    """bfloat16, of which the iterations need no more, except on processors that would lose by it."""
    if device.type == "cpu" and not cpu_is_faster_in_bfloat16():
        return torch.float32
    return torch.bfloat16


def orthogonalised(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """About ``U V^T`` of each matrix ``U S V^T``, by Newton-Schulz iterations of a quintic (Jordan et al. 2024).

    Args:
        matrices: ``(N, m, n)``, in the precision to compute in.
        coefficients: a, b and c of ``a x + b x^3 + c x^5``.
        steps: Iterations.
        eps: The least norm that is divided by.

    Returns:
        ``(N, m, n)``.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    x = x.mT if tall else x  # (N, m, n)
    for _ in range(steps):
        gram = x @ x.mT  # (N, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
