"""The open choices of the network, settled on real data: every arm at its best of three learning rates, two seeds.

    python scripts/ablate.py --minutes 20 --out model_cards/ablation.json

All arms see the same images, captions, noise and order, train for the same time on one thread, end with the learning
rate at zero, and are compared by one figure: the mean squared error of the denoised held-out image over eight noise
levels. diffusers' `UNet2DConditionModel` is an arm under the same rules. Short runs choose each arm's learning rate;
the best arms of ours, the default among them, and the best of diffusers' then train at full length with two seeds. A
difference within the spread of the seeds is a tie, and then the simpler form wins.

Time is the processor time of a run, so that two runs side by side, or a busy machine, treat no arm better than another.
Runs that are already in the output file are not repeated, so the command can be stopped and started again.
"""

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from attndiff import blocks
from attndiff.training.batches import DrawnDataset, training_loader
from attndiff.training.bench.peers import Adapted, peer_unet
from attndiff.training.build import Parts, build
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.optim import make_optimizers, set_lr
from attndiff.training.validation import validate

BATCH = 32


class ChannelGroupNorm(nn.GroupNorm):
    """GroupNorm of ``(B, H, W, C)`` images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class AdditiveUpsample(blocks.Upsample):
    """The skip added instead of mixed in."""

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return skip + blocks.depth_to_space(self.proj(x), 2)


def conv_norms(make: Callable[[int], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """Replace the norms of the convolution blocks."""

    def change(unet: nn.Module) -> nn.Module:
        for module in unet.modules():
            if isinstance(module, blocks.ConvBlock):
                module.norm = make(module.norm.normalized_shape[0])
        return unet

    return change


def weight_normalised(unet: nn.Module) -> nn.Module:
    """No norm in the convolution blocks; their convolutions are weight-normalised (arXiv 1602.07868) instead."""
    for module in unet.modules():
        if isinstance(module, blocks.ConvBlock):
            module.norm = nn.Identity()
            nn.init.normal_(module.conv_out.weight, std=1e-3)
            weight_norm(module.conv_in)
            weight_norm(module.conv_out)
    return unet


def additive_skips(unet: nn.Module) -> nn.Module:
    """Skips added instead of mixed by a learned lerp."""
    for module in unet.upsamplers:
        module.__class__ = AdditiveUpsample
    return unet


def diffusers_network(unet: nn.Module) -> nn.Module:
    """diffusers' network in the place of ours, with no more parameters."""
    return Adapted(peer_unet(unet.config.cross_attention_dim))


@dataclass
class Arm:
    """One form of the network or the optimizer.

    Args:
        change: Makes the arm's network from the default one.
        optimizer: ``"muon"`` or ``"adamw"``.
        lrs: The three learning rates.
    """

    change: Callable[[nn.Module], nn.Module] = lambda unet: unet
    optimizer: str = "muon"
    lrs: tuple[float, float, float] = (1e-3, 2e-3, 4e-3)


ADAMW_LRS = (5e-4, 1e-3, 2e-3)
ARMS = {
    "default": Arm(),
    "AdamW for all": Arm(optimizer="adamw", lrs=ADAMW_LRS),
    "RMS norm": Arm(conv_norms(nn.RMSNorm)),
    "group norm": Arm(conv_norms(lambda dim: ChannelGroupNorm(16, dim))),
    "no norm, weight-normalised": Arm(weight_normalised),
    "additive skips": Arm(additive_skips),
    "diffusers UNet2DConditionModel": Arm(diffusers_network),
    "diffusers UNet2DConditionModel, AdamW": Arm(diffusers_network, "adamw", (2e-4, 5e-4, 1e-3)),
}


def make_run(arm: Arm, lr: float, seed: int) -> tuple[TrainConfig, Parts]:
    """Config and parts of one run."""
    overrides = [f"seed={seed}", f"optim.lr={lr}", f"optim.batch_size={BATCH}", "optim.steps=1000000"]
    config = load_config("emoji-xs", [*overrides, f"optim.optimizer={arm.optimizer}", "optim.compile=false"])
    parts = build(config)
    parts.model.unet = arm.change(parts.model.unet)
    return config, parts


def train(name: str, lr: float, seed: int, minutes: float) -> dict:
    """Train one run for ``minutes`` of processor time on one thread, and evaluate it."""
    torch.set_num_threads(1)
    config, parts = make_run(ARMS[name], lr, seed)
    accelerator = Accelerator(cpu=True)
    optimizers = make_optimizers(parts.model, config.optim)
    dataset = DrawnDataset(parts.images, parts.conditioning, seed, config.condition.dropout)
    start, images = time.process_time(), 0
    for batch in training_loader(config, dataset, 1, 0, 1, 0):
        spent = (time.process_time() - start) / (60 * minutes)
        if spent >= 1:
            break
        set_lr(optimizers, min(1, images / (50 * BATCH) + 0.02) * min(1, (1 - spent) / 0.4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = parts.model(batch).mean()
        if not math.isfinite(loss.item()):
            return {"x0_error": math.inf, "images": images}
        loss.backward()
        nn.utils.clip_grad_norm_(parts.model.parameters(), config.optim.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        images += BATCH
    held_out = DrawnDataset(parts.validation, parts.conditioning, 0)
    result = validate(parts.model, held_out, accelerator)
    parameters = sum(p.numel() for p in parts.model.unet.parameters())
    return {"x0_error": result.x0_error, "images": images, "parameters": parameters, "n": result.n}


class Campaign:
    """Runs beside each other in processes, each result written as soon as it is there.

    Args:
        out: JSON file of all runs so far.
        workers: Runs side by side.
    """

    def __init__(self, out: Path, workers: int):
        self.out, self.workers = out, workers
        self.results = json.loads(out.read_text()) if out.is_file() else {}

    def run(self, wanted: list[tuple[str, float, int, float]]) -> list[dict]:
        """The results of the wanted (arm, learning rate, seed, minutes), training those that are missing."""
        keys = [f"{name} | lr {lr:g} | seed {seed} | {minutes:g} min" for name, lr, seed, minutes in wanted]
        with ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn")) as pool:
            missing = {pool.submit(train, *w): key for w, key in zip(wanted, keys) if key not in self.results}
            for future in as_completed(missing):
                self.results[missing[future]] = future.result()
                print(missing[future], future.result(), flush=True)
                self.out.write_text(json.dumps(dict(sorted(self.results.items())), indent=1) + "\n")
        return [self.results[key] for key in keys]


def choose_rates(campaign: Campaign, names: list[str], minutes: float) -> dict[str, tuple[float, float]]:
    """Each arm's best learning rate of three, and its error there."""
    wanted = [(name, lr, 0, minutes) for name in names for lr in ARMS[name].lrs]
    errors = {w[:2]: result["x0_error"] for w, result in zip(wanted, campaign.run(wanted))}
    return {name: min((errors[name, lr], lr) for lr in ARMS[name].lrs)[::-1] for name in names}


def finalists(rates: dict[str, tuple[float, float]], ours: int) -> list[str]:
    """The default, the best others of ours, and the best of diffusers'."""
    ranked = sorted(rates, key=lambda name: rates[name][1])
    theirs = [name for name in ranked if name.startswith("diffusers")]
    others = [name for name in ranked if name != "default" and name not in theirs]
    return [name for name in ("default", *theirs[:1], *others[: ours - 1]) if name in rates]


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="length of a finalist's run")
    parser.add_argument("--search-minutes", type=float, default=4, help="length of a run that chooses a learning rate")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--finalists", type=int, default=3, help="arms of ours that train at full length")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--out", type=Path, default=Path("model_cards/ablation.json"))
    options = parser.parse_args()
    campaign = Campaign(options.out, options.workers)
    rates = choose_rates(campaign, options.arms, options.search_minutes)
    print(f"\n| arm | best learning rate | error after {options.search_minutes:g} min |\n|---|---|---|")
    for name, (lr, error) in sorted(rates.items(), key=lambda item: item[1][1]):
        print(f"| {name} | {lr:g} | {error:.5f} |")
    best = finalists(rates, options.finalists)
    runs = campaign.run([(name, rates[name][0], seed, options.minutes) for name in best for seed in (0, 1)])
    print("\n| arm | error of the clean image, two seeds | mean | images seen | parameters |\n|---|---|---|---|---|")
    for name, a, b in zip(best, runs[::2], runs[1::2]):
        errors = f"{a['x0_error']:.5f}, {b['x0_error']:.5f} | {(a['x0_error'] + b['x0_error']) / 2:.5f}"
        print(f"| {name} | {errors} | {a['images']} | {a['parameters'] / 1e6:.2f} M |")


if __name__ == "__main__":
    main()
