"""The learning-rate range test: train for some steps while the rate grows, and see where the loss falls and breaks.

Smith (arXiv 1506.01186, section 3.3), with the exponential ramp of fastai. The loss of a step's batch depends on the
noise levels that the batch happens to meet more than on the weights, and smoothing it with an average over past steps
would lag behind the ramp and move the answer to higher rates. So after every step the loss is taken on the same
held-out images with the same noise at the same levels: two points of the curve differ by the weights alone.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, median

import numpy as np
import torch
from torch.utils.data import default_collate

from attndiff.drawn import SOFTWARE
from attndiff.errors import UserError
from attndiff.training.batches import commonest_shape
from attndiff.training.config import OptimConfig, TrainConfig
from attndiff.training.run.loop import Trainer
from attndiff.training.run.progress import progress_bar
from attndiff.training.run.step import SkippedStep
from attndiff.training.state.resume import TRIAL_FILES

STEPS = 100
RANGE = 1e-2, 1e2  # factors of the configured rates at the first and last step: 25 steps for a factor of ten
HELD_OUT = 64  # samples that the loss is taken on
# A network that predicts nothing has two to three times the loss of one trained for so few steps.
DIVERGED = 2.0  # times the lowest loss
WINDOW = 9  # steps that a slope is fitted to, a factor of 2.1 in the rate
LEAST_FALL = 0.02  # of the first loss


@dataclass
class LRRange:
    """The curve of a test and what follows from it.

    Args:
        rates: The configured learning rates by their settings' names; all of them grow together.
        factors: Of the configured rates, one a step.
        losses: Held-out loss after each step.
        batch_losses: Loss of each step's batch, before the step.
        diverged_at: Factor at which the loss diverged, or None if it did not.
    """

    rates: dict[str, float]
    factors: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)
    diverged_at: float | None = None

    def suggestion(self) -> float | None:
        """Factor at which the loss falls fastest, or None if it falls nowhere.

        The steepest fall of the logarithm of the loss over the logarithm of the rate, before the lowest loss, each
        slope from a line through `WINDOW` steps.
        """
        if len(self.losses) < WINDOW:
            return None
        windows = [slice(i, i + WINDOW) for i in range(len(self.losses) - WINDOW + 1)]
        rate, loss = np.log(self.factors), np.log(self.losses)
        level = [loss[w].mean() for w in windows]
        lowest = int(np.argmin(level))
        if level[lowest] > math.log(self.losses[0]) + math.log1p(-LEAST_FALL):
            return None
        slopes = [np.polyfit(rate[w], loss[w], 1)[0] for w in windows[: lowest + 1]]
        return self.factors[int(np.argmin(slopes)) + WINDOW // 2]

    def overrides(self, factor: float) -> list[str]:
        """The settings to type for the rates at a factor, two digits each."""
        return [f"{name}={rate * factor:.2g}" for name, rate in self.rates.items()]

    def lines(self, out: Path) -> list[str]:
        """The result as text; ``out`` is the folder that holds the curve."""
        lr, suggestion = self.rates["optim.lr"], self.suggestion()
        end = f"diverged at {self.diverged_at * lr:.2g}" if self.diverged_at else "did not diverge"
        lines = [f"curve:       {out / 'lr_range.png'}, optim.lr from {lr * RANGE[0]:.2g}; the loss {end}"]
        if suggestion is None:
            return [*lines, "suggestion:  none, the loss fell at no rate; test again around another optim.lr"]
        lowest = int(np.argmin(self.losses))
        lines += [
            f"suggestion:  optim.lr {suggestion * lr:.2g}, where the loss fell fastest "
            f"(it was lowest at {self.factors[lowest] * lr:.2g})",
            f"to use it:   {' '.join(self.overrides(suggestion))}",
        ]
        if not self.diverged_at and lowest >= len(self.losses) - WINDOW:
            lines.append("note:        the loss still fell at the end; test again with this setting to see beyond it")
        return lines

    def to_json(self) -> dict:
        """The curve over each configured rate, the point of divergence and the suggestion."""
        suggestion = self.suggestion()
        return {
            "rates": {name: [rate * factor for factor in self.factors] for name, rate in self.rates.items()},
            "held_out_loss": self.losses,
            "batch_loss": self.batch_losses,
            "diverged_at": self.diverged_at and self.diverged_at * self.rates["optim.lr"],
            "suggestion": suggestion and {name: rate * suggestion for name, rate in self.rates.items()},
        }


def range_config(config: TrainConfig) -> TrainConfig:
    """The settings of the test of a run: its own, but as many steps as the test has, and not compiled.

    Compiling changes no loss and takes longer than it saves in so few steps.
    """
    optim = config.optim.model_copy(update={"steps": STEPS, "minutes": None, "compile": False})
    return config.model_copy(update={"optim": optim})


def range_test(trainer: Trainer) -> LRRange:
    """Run the test and write ``lr_range.png`` and ``lr_range.json`` into ``out``, beside whatever is there.

    Args:
        trainer: Made from `range_config`; its weights are of no use afterwards.

    Raises:
        UserError: If the loss is not finite at the first step.
    """
    low, high = RANGE
    factors = [low * (high / low) ** (i / (STEPS - 1)) for i in range(STEPS)]
    found, batch = LRRange(tested_rates(trainer.config.optim)), fixed_batch(trainer)
    main = trainer.accelerator.is_main_process
    with progress_bar(STEPS, main) as bar:
        try:
            for factor, loss in zip(factors, trainer.trial(factors)):
                held_out = held_out_loss(trainer, batch)
                if _add(found, factor, held_out, loss):
                    break
                bar.set_postfix_str(f"held-out loss {held_out:.4f}, lr {factor * trainer.config.optim.lr:.1e}", False)
                bar.update()
        except SkippedStep:
            if not found.factors:  # not the rate's doing
                raise
            found.diverged_at = factors[len(found.factors)]
    if main:
        trainer.out.mkdir(parents=True, exist_ok=True)
        picture, table = (trainer.out / name for name in TRIAL_FILES)
        table.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False), encoding="utf-8")
        draw(found, picture)
    return found


def _add(found: LRRange, factor: float, held_out: float, loss: float) -> bool:
    """Note a step; whether the loss has diverged. The median of three steps decides: one bad step is none yet."""
    if not math.isfinite(held_out) and not found.factors:
        raise UserError(
            f"one step at optim.lr {factor * found.rates['optim.lr']:.2g} breaks the model; lower optim.lr."
        )
    if math.isfinite(held_out):
        found.factors.append(factor)
        found.losses.append(held_out)
        found.batch_losses.append(loss)
    if not math.isfinite(held_out) or median(found.losses[-3:]) > DIVERGED * min(found.losses):
        found.diverged_at = factor
    return found.diverged_at is not None


def tested_rates(optim: OptimConfig) -> dict[str, float]:
    """The learning rates that a config's optimizers use, by setting."""
    rates = {"optim.lr": optim.lr}
    return rates | {"optim.adamw_lr": optim.adamw_lr} if optim.optimizer == "muon" else rates


def fixed_batch(trainer: Trainer) -> dict[str, torch.Tensor]:
    """`HELD_OUT` samples from all over the held-out images, their levels at even quantiles of the training levels."""
    data, n = trainer.held_out, HELD_OUT
    alike = commonest_shape(data)
    batch = default_collate([data[(int(alike[i * len(alike) // n]), i)] for i in range(n)])
    # An odd stride over a power of two visits every quantile once, unrelated to the order of the images.
    quantiles = [(29 * i % n + 0.5) / n for i in range(n)]
    batch["normal"] = torch.tensor([NormalDist().inv_cdf(q) for q in quantiles])
    return data.conditioning.embed({key: value.to(trainer.accelerator.device) for key, value in batch.items()})


@torch.no_grad()
def held_out_loss(trainer: Trainer, batch: dict[str, torch.Tensor]) -> float:
    """Mean loss of a batch, the same number on every process."""
    with trainer.accelerator.autocast():
        loss = trainer.parts.model(batch).mean()
    return trainer.accelerator.reduce(loss, "mean").item()


def draw(found: LRRange, path: Path) -> None:
    """Draw the loss over ``optim.lr``, the suggestion and the point of divergence."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lr, suggestion = found.rates["optim.lr"], found.suggestion()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    rates = [factor * lr for factor in found.factors]
    axes.plot(rates, found.batch_losses, ".", color="0.75", label="batch of the step")
    axes.plot(rates, found.losses, label="held out, same noise at every step")
    if suggestion:
        axes.axvline(suggestion * lr, color="tab:green", label=f"suggestion {suggestion * lr:.2g}")
    if found.diverged_at:
        axes.axvline(found.diverged_at * lr, color="tab:red", label=f"diverged at {found.diverged_at * lr:.2g}")
    axes.set(xlabel="optim.lr", ylabel="loss", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": SOFTWARE})
    pyplot.close(figure)
