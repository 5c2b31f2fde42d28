"""Held-out loss per noise level: a mean over all levels says nothing of which detail a model still gets wrong.

The same images, noise and levels at every call, so that two evaluations differ by the weights alone.
"""

from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from attndiff.progress import progress
from attndiff.training.batches import Batch, DrawnDataset, collate_by_shape
from attndiff.training.heads import Head

LEVELS = 8
SEED = 20
AT_MOST = 256  # held-out images


@dataclass
class Validation:
    """Held-out errors.

    Args:
        loss: Mean training loss (the objective's own weight).
        per_level: Mean squared error of the denoised image in [-1, 1], at each of `noise_over_signal`.
        noise_over_signal: The levels, eight quantiles of the training distribution.
        n: Images per level.
    """

    loss: float
    per_level: list[float]
    noise_over_signal: list[float]
    n: int

    @property
    def x0_error(self) -> float:
        """Mean over levels: one number that compares objectives."""
        return sum(self.per_level) / len(self.per_level)

    def to_json(self) -> dict:
        """Everything as JSON."""
        return {**asdict(self), "x0_error": self.x0_error}


@torch.no_grad()
def validate(model: Head, dataset: DrawnDataset, accelerator: Accelerator, doing: str = "Held-out loss") -> Validation:
    """Evaluate on `AT_MOST` held-out images, evenly spread over them and shared out over all processes.

    Args:
        model: Encoder, network and loss head, unwrapped.
        dataset: Held-out samples without dropout or flips.
        accelerator: For the device, precision and the sum over processes.
        doing: What the progress bar says of it.
    """
    quantiles = [(i + 0.5) / LEVELS for i in range(LEVELS)]
    normals = [NormalDist().inv_cdf(q) for q in quantiles]
    n = min(AT_MOST, len(dataset))
    # The first ones would be of one kind where files lie in folders by class.
    chosen = np.linspace(0, len(dataset) - 1, n).round().astype(int).tolist()
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(2, LEVELS, dtype=torch.float64)  # on the CPU: Apple's GPUs have no float64
    was_training = model.training
    model.eval()
    with progress(None, doing, len(mine) * LEVELS, "image", shown=accelerator.process_index == 0) as bar:
        for start in range(0, len(mine), 64):
            for batch in collate_by_shape([dataset[(i, SEED)] for i in mine[start : start + 64]]):
                batch = dataset.conditioning.embed({k: v.to(accelerator.device) for k, v in batch.items()})
                sums += _sums(model, batch, normals, accelerator, bar)
    model.train(was_training)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu()
    sums /= n
    ratios = model.noise_over_signal(torch.tensor(normals)).tolist()
    return Validation(sums[0].mean().item(), sums[1].tolist(), ratios, n)


def _sums(model: Head, batch: Batch, normals: list[float], accelerator: Accelerator, bar: tqdm) -> torch.Tensor:
    """Losses and x0 errors ``(2, levels)`` of a batch at every level, summed over its samples; float64, on the CPU."""
    columns = []
    for normal in normals:
        with accelerator.autocast():
            measured = model.measures(batch, normal)
        columns.append(torch.stack([measured["loss"].sum(), measured["x0_error"].sum()]))
        bar.update(len(measured["loss"]))
    return torch.stack(columns, dim=1).cpu().double()
