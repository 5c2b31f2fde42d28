"""Power-function averages of the weights, right from step 1, and any other length rebuilt after the run.

Karras et al., arXiv 2312.02696, section 3: the average's length grows with the run, so that a short run does not keep
the random weights it began with, and the average of any other length is a sum of snapshots of two of them.
"""

import copy
import os
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from attndiff.errors import UserError
from attndiff.training.parallel.sharding import gathered_on_host, like


def sigma_rel_to_gamma(sigma_rel: float) -> float:
    """The exponent gamma of a relative width, as a share of the run (arXiv 2312.02696, Eq. 126)."""
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def power_beta(gamma: float, step: int) -> float:
    """Decay of the average at a step counted from 1 (Eq. 127); 0 at step 1: the first weights are the average."""
    return (1 - 1 / step) ** (gamma + 1)


class PowerEMA:
    """Power-function averages of a module's parameters.

    Args:
        module: What is averaged; floating-point parameters only.
        sigma_rels: Relative widths of the averages, as a share of the run.
    """

    def __init__(self, module: nn.Module, sigma_rels: tuple[float, ...] = (0.05, 0.10)):
        self.gammas = {sigma: sigma_rel_to_gamma(sigma) for sigma in sigma_rels}
        self.names = [name for name, _ in module.named_parameters()]
        self.averages = {s: [p.detach().clone().float() for p in module.parameters()] for s in sigma_rels}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the weights after optimizer step ``step`` (from 1) into every average."""
        weights = [p.detach().float() for p in module.parameters()]
        for sigma, average in self.averages.items():
            torch._foreach_lerp_(average, weights, 1 - power_beta(self.gammas[sigma], step))

    def state_dict(self, sigma_rel: float) -> dict[str, torch.Tensor]:
        """The averaged parameters of one width by name."""
        return dict(zip(self.names, self.averages[sigma_rel], strict=True))

    def load_state_dict(self, sigma_rel: float, state: dict[str, torch.Tensor]) -> None:
        """Restore the averages of one width from ``state_dict``."""
        own = zip(self.names, self.averages[sigma_rel], strict=True)
        self.averages[sigma_rel] = [like(state[name].detach().clone().float(), average) for name, average in own]

    def whole(self) -> "PowerEMA":
        """A copy whose averages are unsharded and lie in main memory; all processes ask together."""
        unsharded = copy.copy(self)
        unsharded.averages = {sigma: list(map(gathered_on_host, own)) for sigma, own in self.averages.items()}
        return unsharded

    def save_snapshots(self, folder: Path | str, step: int) -> None:
        """Write the averages after ``step``, one safetensors file per width, for `rebuild_average`.

        Eight or more snapshots of two widths, evenly spread over a run, rebuild most others (section 3.2).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for sigma in self.averages:
            path = folder / f"ema-{step:09d}-{sigma:.3f}.safetensors"
            partial = path.with_suffix(".partial")
            save_file(self.state_dict(sigma), partial, metadata={"step": str(step), "sigma_rel": repr(sigma)})
            os.replace(partial, path)


def rebuild_average(folder: Path | str, sigma_rel: float, step: int | None = None) -> dict[str, torch.Tensor]:
    """The average of any width from the snapshots of a run, as if it had been kept (arXiv 2312.02696, section 3.2).

    Args:
        folder: Where `PowerEMA.save_snapshots` wrote.
        sigma_rel: Width wanted, as a share of the run; at least the smallest one kept for a good fit.
        step: Step at which the average ends; the last snapshot's by default.

    Returns:
        Float32 parameters by name.

    Raises:
        UserError: If there is no snapshot up to that step.
    """
    snapshots = {path: _read_header(path) for path in sorted(Path(folder).glob("ema-*.safetensors"))}
    last = max((at for at, _ in snapshots.values()), default=0) if step is None else step
    snapshots = {path: header for path, header in snapshots.items() if header[0] <= last}
    if not snapshots:
        raise UserError(f"{folder} holds no weight averages up to step {step}; give the folder of a run's snapshots.")
    steps, gammas = (np.array(column, dtype=np.float64) for column in zip(*snapshots.values(), strict=True))
    average: dict[str, torch.Tensor] = {}
    weights = posthoc_weights(steps, gammas, last, sigma_rel_to_gamma(sigma_rel))
    for path, weight in zip(snapshots, weights, strict=True):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict: it does not iterate
                term = file.get_tensor(name).float() * float(weight)
                average[name] = average[name] + term if name in average else term
    return average


def posthoc_weights(steps: np.ndarray, gammas: np.ndarray, step: float, gamma: float) -> np.ndarray:
    """Weights of snapshots whose sum is nearest to an average (arXiv 2312.02696, Algorithm 3).

    Args:
        steps: Steps of the snapshots ``(n,)``.
        gammas: Their exponents ``(n,)``.
        step: Step of the average wanted.
        gamma: Its exponent.

    Returns:
        ``(n,)``, the least-squares solution over the averages' profiles in time, scaled to a sum of 1.
    """
    products = profile_product(steps[:, None], gammas[:, None], steps[None], gammas[None])  # (n, n)
    weights = np.linalg.lstsq(products, profile_product(steps, gammas, step, gamma), rcond=None)[0]
    return weights / weights.sum()


def profile_product(step_a, gamma_a, step_b, gamma_b) -> np.ndarray:
    """Integral over time of the product of two power-function profiles (Eq. 151); the arguments broadcast."""
    ratio = (step_a / step_b) ** np.where(step_a < step_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(step_a, step_b))


def _read_header(path: Path) -> tuple[int, float]:
    """Step and exponent of a snapshot."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]), sigma_rel_to_gamma(float(metadata["sigma_rel"]))
