"""Held-out loss per noise level: a mean over all levels says nothing of which detail a model still gets wrong.

The same images, noise and levels at every call, so that two evaluations differ by the weights alone.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from attndiff.metrics.grounds import View, as_they_are, views
from attndiff.progress import progress
from attndiff.training.batches import Batch, DrawnDataset, collate_by_shape
from attndiff.training.heads import Head
from attndiff.training.heads.denoising import mean_of_samples

SEED = 20
AT_MOST = 256  # held-out images


@dataclass
class Validation:
    """Held-out errors.

    Args:
        loss: Mean training loss (the objective's own weight).
        per_level: Mean squared error of the denoised image in [-1, 1], at each of `noise_over_signal`; empty for what
            does not denoise.
        noise_over_signal: The levels, eight quantiles of the training distribution; likewise.
        n: Images per level.
        of_views: The same as `per_level` of what is seen of images with alpha, by ``_on_white`` and ``_on_black``.
    """

    loss: float
    per_level: list[float]
    noise_over_signal: list[float]
    n: int
    of_views: dict[str, list[float]] = field(default_factory=dict)

    @property
    def x0_error(self) -> float:
        """Mean over levels: one number that compares objectives."""
        return sum(self.per_level) / len(self.per_level)

    def to_json(self) -> dict:
        """Everything as JSON."""
        known = {key: value for key, value in asdict(self).items() if key != "of_views"}
        if not self.per_level:
            return known
        for end, errors in self.of_views.items():
            known |= {f"per_level{end}": errors, f"x0_error{end}": sum(errors) / len(errors)}
        return {**known, "x0_error": self.x0_error}


@torch.no_grad()
def validate(
    model: Head,
    dataset: DrawnDataset,
    accelerator: Accelerator,
    data: dict | None = None,
    doing: str = "Held-out loss",
) -> Validation:
    """Evaluate on `AT_MOST` held-out images, evenly spread over them and shared out over all processes.

    Args:
        model: Encoder, network and loss head, unwrapped.
        dataset: Held-out samples without dropout or flips.
        accelerator: For the device, precision and the sum over processes.
        data: What a pipeline keeps about its data; None where samples are latents.
        doing: What the progress bar says of it.
    """
    normals = model.measured_at()
    n = min(AT_MOST, len(dataset))
    # The first ones would be of one kind where files lie in folders by class.
    chosen = np.linspace(0, len(dataset) - 1, n).round().astype(int).tolist()
    mine = chosen[accelerator.process_index :: accelerator.num_processes]
    seen = {"": as_they_are} | views(data) if model.denoises else {}
    sums = torch.zeros(1 + len(seen), len(normals), dtype=torch.float64)  # on the CPU: Apple's GPUs have no float64
    was_training = model.training
    model.eval()
    with progress(None, doing, len(mine) * len(normals), "image", shown=accelerator.process_index == 0) as bar:
        for start in range(0, len(mine), 64):
            for batch in collate_by_shape([dataset[(i, SEED)] for i in mine[start : start + 64]]):
                batch = dataset.conditioning.embed({k: v.to(accelerator.device) for k, v in batch.items()})
                sums += _sums(model, batch, normals, accelerator, seen.values(), bar)
    model.train(was_training)
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu()
    sums /= n
    if not model.denoises:
        return Validation(sums[0].mean().item(), [], [], n)
    ratios = model.noise_over_signal(torch.tensor(normals)).tolist()
    per_level, *others = sums[1:].tolist()
    return Validation(sums[0].mean().item(), per_level, ratios, n, dict(zip([*seen][1:], others, strict=True)))


def _sums(
    model: Head, batch: Batch, normals: list[float], accelerator: Accelerator, seen: Iterable[View], bar: tqdm
) -> torch.Tensor:
    """Losses, and errors in every view, ``(1 + views, levels)`` of a batch, summed over its samples; on the CPU."""
    columns = []
    for normal in normals:
        with accelerator.autocast():
            measured = model.measures(batch, normal)
        pairs = [(view(measured["denoised"]), view(batch["images"])) for view in seen]  # none without views
        errors = [mean_of_samples((made - real).square()).sum() for made, real in pairs]
        columns.append(torch.stack([measured["loss"].sum(), *errors]))
        bar.update(len(measured["loss"]))
    return torch.stack(columns, dim=1).cpu().double()
