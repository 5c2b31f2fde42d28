"""Time to quality: how long each network needs to reach the held-out error that another ends with.

All train on the same images, captions and held-out images with the same loop, each with its authors' objective and its
best learning rate, then with two seeds. Three rates are tried in short runs, and twice or half of them as long as the
best is the largest or the least, so that no arm is held back by what it was offered. One held-out figure compares them
whatever they predict: the squared error of the clean image, averaged over eight ratios of noise to signal that are the
same for all. Rates stay constant after the warm-up and the figure is of the running average of the weights, as the
peers' authors train and as a curve over time demands.

Time on the CPU is the processor time of training alone, on one thread in float32, so that two runs side by side, or a
busy machine, treat no arm better than another; on CUDA it is the wall time, and the passes are bfloat16 autocast.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from attndiff.apps.bench.steps import autocast
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset
from attndiff.diffusion.objectives import FlowMatching, Objective
from attndiff.training.batches import DrawnDataset, training_loader
from attndiff.training.build import Parts, build
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.evaluation.samples import swapped
from attndiff.training.evaluation.validation import validate
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.optim import make_optimizers, set_lr
from attndiff.training.state.averages import PowerEMA
from bench.arms import matched_width
from bench.peers import PEERS

RECIPE = "emoji-xs"
BATCH, WARMUP, AVERAGE = 32, 20, 0.10
POINTS = 11  # of a curve, closer together at its start
HELD_OUT = 96  # images that every point of a curve is measured on; more would cost as much time as the training
PRECISION = {"cpu": "float32", "cuda": "bfloat16"}
Curve = list[tuple[float, float]]  # (seconds, held-out error)


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        peer: Name in `PEERS`, or None for attndiff.
        lr: Learning rate.
        seed: Of the weights and of the data.
        minutes: Of training.
        device: ``"cpu"`` or ``"cuda"``.
        preset: Of attndiff.
        overrides: Further settings of the recipe.
        points: Of the curve of held-out errors; 1 looks at the end alone.
        held_out: Images that every point is measured on.
    """

    peer: str | None
    lr: float
    seed: int
    minutes: float
    device: str = "cpu"
    preset: str = "xs"
    overrides: tuple[str, ...] = ()
    points: int = POINTS
    held_out: int = HELD_OUT

    @property
    def key(self) -> str:
        """As the result file names it."""
        return f"lr {self.lr:g}, seed {self.seed}, {self.minutes:g} min"


def make_run(run: Run) -> tuple[TrainConfig, Parts]:
    """Config and parts, the peer's network and objective in the place of ours."""
    settings = [f"seed={run.seed}", f"optim.lr={run.lr}", f"optim.batch_size={BATCH}", f"model.preset={run.preset}"]
    settings += ["optim.steps=1000000000", f"optim.optimizer={'adamw' if run.peer else 'muon'}", "optim.compile=false"]
    settings.append("condition.grounding_steps=0")  # all networks learn their words alike
    settings.append(f"optim.workers={8 if run.device == 'cuda' else 0}")
    config = load_config(RECIPE, [*settings, *run.overrides])
    parts = build(config)
    if run.peer is not None:
        peer, model = PEERS[run.peer], parts.model
        hidden = model.condition_encoder.config.hidden_size
        torch.manual_seed(run.seed)
        network = peer.make(matched_width(run.preset, run.peer, "parameters"), hidden)
        objective = peer.objective(sigma_data=model.objective.sigma_data)
        parts.model = peer.head(network, model.condition_encoder, objective)
    return config, parts


def train(run: Run) -> dict:
    """Train for the run's minutes; ``curve`` of (seconds, held-out error), ``images`` seen, ``n`` held-out images."""
    if run.device == "cpu":
        torch.set_num_threads(1)
    clock = time.process_time if run.device == "cpu" else time.perf_counter
    config, parts = make_run(run)
    model = parts.model.to(run.device)
    warm_up(config, parts, run.device)
    step, ema = training_loop(config, parts, run.device), PowerEMA(model, (AVERAGE,))
    checks = check_times(60 * run.minutes, run.points)
    parts.validation = spread(parts.validation, run.held_out)
    spent, images, curve = 0.0, 0, []
    while checks:
        start = clock()
        loss = next(step)
        images += config.optim.batch_size
        ema.update(model, images // config.optim.batch_size)
        spent += clock() - start
        if not math.isfinite(loss):
            return {"curve": curve, "images": images, "n": 0, "stopped": f"loss {loss}"}
        if spent >= checks[0]:
            checks = [t for t in checks if t > spent]
            result = held_out(parts, ema, run.device)
            curve.append((round(spent, 2), result.x0_error))
    return {"curve": curve, "images": images, "n": result.n, "per_level": result.per_level}


def warm_up(config: TrainConfig, parts: Parts, device: str) -> None:
    """Two passes that change nothing, before the clock runs: k-diffusion compiles its small functions in them."""
    for _, loss in zip(range(2), losses(config, parts, device)):
        loss.backward()
    parts.model.zero_grad(set_to_none=True)


def losses(config: TrainConfig, parts: Parts, device: str) -> Iterator[torch.Tensor]:
    """Losses of the run's batches."""
    dataset = DrawnDataset(parts.images, parts.conditioning, config.seed, config.condition.dropout)
    for batch in training_loader(config, dataset, 1, 0, 1, 0):
        with autocast(device, PRECISION[device]):
            loss = parts.model({key: value.to(device) for key, value in batch.items()}).mean()
        yield loss


def training_loop(config: TrainConfig, parts: Parts, device: str) -> Iterator[float]:
    """Losses of one training step after another."""
    optimizers = make_optimizers(parts.model, config.optim)
    for count, loss in enumerate(losses(config, parts, device)):
        set_lr(optimizers, min(1.0, (count + 1) / WARMUP))
        loss.backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), config.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def check_times(seconds: float, points: int) -> list[float]:
    """When to look at the held-out error: from 1/32 of the time to the end, at equal ratios, or at the end alone."""
    return [seconds * 32 ** (i / (points - 1) - 1) for i in range(points)] if points > 1 else [seconds]


def spread(images: ImageSet, count: int) -> Subset:
    """At most ``count`` of some images, at equal distances in their order."""
    count = min(count, len(images))
    return Subset(images, [i * len(images) // count for i in range(count)])


def held_out(parts: Parts, ema: PowerEMA, device: str):
    """`Validation` of the averaged weights at the noise-to-signal ratios that all arms share."""
    dataset = DrawnDataset(parts.validation, parts.conditioning, 0)
    accelerator = Accelerator(cpu=device == "cpu")
    with swapped(parts.model, ema.state_dict(AVERAGE)), at_levels_of(parts.model, FlowMatching()):
        return validate(parts.model, dataset, accelerator)


@contextmanager
def at_levels_of(model: DenoisingModel, reference: Objective) -> Iterator[None]:
    """Draw levels whose ratios of noise to signal are those that ``reference`` would draw."""
    own = model.objective
    model.objective = copy.copy(own)
    model.objective.draw_levels = lambda normal: own.level_from_log_ratio(
        reference.log_ratio(reference.draw_levels(normal))
    )
    try:
        yield
    finally:
        model.objective = own
