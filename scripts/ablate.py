"""The open choices of the network, settled on real data: every arm at its best of three learning rates, two seeds.

    python scripts/ablate.py --minutes 20 --out model_cards/ablation.json

All arms see the same images, captions, noise and order, train for the same time on one thread, end with the learning
rate at zero, and are compared by one figure: the mean squared error of the denoised held-out image over eight noise
levels. diffusers' `UNet2DConditionModel` is an arm under the same rules. Short runs choose each arm's learning rate;
the best arms of ours, the base among them, and the best of diffusers' then train at full length with two seeds. A
difference within the spread of the seeds is a tie, and then the simpler form wins.

The time of a run is its number of steps times the arm's seconds a step, measured first with all arms taking turns: a
busy machine then slows a run down, but takes nothing from the arm that happened to meet it. Runs that are already in
the output file are not repeated, so the command can be stopped and started again.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from bench.peers import Adapted
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from attndiff.nn import blocks
from attndiff.training.batches import DrawnDataset, training_loader
from attndiff.training.build import Parts, build
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.evaluation.validation import validate
from attndiff.training.optim import make_optimizers, set_lr

BATCH = 32
WARMUP = 50  # steps
DECAY = 0.4  # share of a run, at its end, over which the learning rate falls to zero


class ChannelGroupNorm(nn.GroupNorm):
    """GroupNorm of ``(B, H, W, C)`` images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class RMSNorm(nn.RMSNorm):
    """RMSNorm that computes in the precision of its input; mixed ones leave the fused kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class LerpUpsample(nn.Module):
    """The skip mixed in by a learned lerp (HDiT, arXiv 2401.11605, 4.3) instead of added."""

    def __init__(self, added: blocks.Upsample):
        super().__init__()
        self.proj = added.proj
        self.mix = nn.Parameter(torch.full((added.proj.out_features // 4,), 0.5))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return torch.lerp(skip, blocks.depth_to_space(self.proj(x), 2).to(skip.dtype), self.mix.to(skip.dtype))


def lerped_skips(unet: nn.Module) -> nn.Module:
    """The base of the arms, which each change one thing of it."""
    unet.upsamplers = nn.ModuleList(LerpUpsample(upsampler) for upsampler in unet.upsamplers)
    return unet


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


def diffusers_network(unet: nn.Module) -> nn.Module:
    """diffusers' text-to-image U-Net in the place of ours, with no more parameters.

    As ours it has three levels and attends from half the resolution down.
    """
    return Adapted(
        UNet2DConditionModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=(64, 96, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=unet.config.cross_attention_dim,
            attention_head_dim=4,
            norm_num_groups=16,
        )
    )


@dataclass
class Arm:
    """One form of the network or the optimizer.

    Args:
        change: Makes the arm's network from the base.
        optimizer: ``"muon"`` or ``"adamw"``.
        lrs: The three learning rates.
        base: Makes the base from the network as it is now.
    """

    change: Callable[[nn.Module], nn.Module] = lambda unet: unet
    optimizer: str = "muon"
    lrs: tuple[float, float, float] = (1e-3, 2e-3, 4e-3)
    base: Callable[[nn.Module], nn.Module] = lerped_skips


ADAMW_LRS = (1e-3, 2e-3, 4e-3)
ARMS = {
    "base": Arm(),
    "AdamW for all": Arm(optimizer="adamw", lrs=ADAMW_LRS),
    "RMS norm": Arm(conv_norms(RMSNorm)),
    "group norm": Arm(conv_norms(lambda dim: ChannelGroupNorm(16, dim))),
    "no norm, weight-normalised": Arm(weight_normalised),
    "additive skips": Arm(base=lambda unet: unet),
    "diffusers UNet2DConditionModel": Arm(diffusers_network),
    "diffusers UNet2DConditionModel, AdamW": Arm(diffusers_network, "adamw", (2e-4, 5e-4, 1e-3)),
}


def make_run(arm: Arm, lr: float, seed: int) -> tuple[TrainConfig, Parts]:
    """Config and parts of one run."""
    overrides = [f"seed={seed}", f"optim.lr={lr}", f"optim.batch_size={BATCH}", "optim.steps=1000000"]
    config = load_config("emoji-xs", [*overrides, f"optim.optimizer={arm.optimizer}", "optim.compile=false"])
    parts = build(config)
    parts.model.unet = arm.change(arm.base(parts.model.unet))
    return config, parts


def training_step(parts: Parts, optimizers: list, batch: dict, clip: float) -> float:
    """One step of one run; its loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = parts.model(batch).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(parts.model.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def draw_for(config: TrainConfig, parts: Parts) -> DrawnDataset:
    """The training images as a run meets them."""
    return DrawnDataset(parts.images, parts.conditioning, config.seed, config.condition.dropout)


def step_seconds(names: list[str], rounds: int) -> dict[str, float]:
    """Seconds of a training step by arm, the lower quartile of rounds in which all arms take turns."""
    torch.set_num_threads(1)
    steps = {}
    for name in names:
        config, parts = make_run(ARMS[name], ARMS[name].lrs[0], 0)
        loader = iter(training_loader(config, draw_for(config, parts), 1, 0, 1, 0))
        steps[name] = (config, parts, make_optimizers(parts.model, config.optim), loader)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 2):
        for name, (config, parts, optimizers, loader) in steps.items():
            start = time.process_time()
            training_step(parts, optimizers, next(loader), config.optim.clip)
            if turn >= 2:  # the first ones warm up
                times[name].append(time.process_time() - start)
    return {name: statistics.quantiles(values, n=4)[0] for name, values in times.items()}


def train(name: str, lr: float, seed: int, steps: int) -> dict:
    """Train one run on one thread, and evaluate it."""
    torch.set_num_threads(1)
    config, parts = make_run(ARMS[name], lr, seed)
    optimizers = make_optimizers(parts.model, config.optim)
    loader = iter(training_loader(config, draw_for(config, parts), 1, 0, 1, 0))
    for step in range(steps):
        set_lr(optimizers, min(1, (step + 1) / WARMUP) * min(1, (1 - step / steps) / DECAY))
        if not math.isfinite(training_step(parts, optimizers, next(loader), config.optim.clip)):
            return {"x0_error": math.inf, "steps": step}
    result = validate(parts.model, DrawnDataset(parts.validation, parts.conditioning, 0), Accelerator(cpu=True))
    parameters = sum(p.numel() for p in parts.model.unet.parameters())
    return {"x0_error": result.x0_error, "steps": steps, "parameters": parameters, "n": result.n}


class Ablation:
    """Runs beside each other in processes, each result written as soon as it is there.

    Args:
        out: JSON file: seconds a step by arm, and all runs so far.
        names: The arms.
        workers: Runs side by side.
        rounds: Turns of the arms when their steps are timed.
    """

    def __init__(self, out: Path, names: list[str], workers: int, rounds: int):
        self.out, self.workers = out, workers
        self.found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {"step_seconds": {}, "runs": {}}
        if not self.found["step_seconds"].keys() >= set(names):
            self.found["step_seconds"] = step_seconds(names, rounds)
            self._write()

    def run(self, wanted: list[tuple[str, float, int]], minutes: float) -> list[dict]:
        """The results of the wanted (arm, learning rate, seed), training those that are missing."""
        runs = self.found["runs"]
        steps = {name: round(60 * minutes / seconds) for name, seconds in self.found["step_seconds"].items()}
        keys = [f"{name} | lr {lr:g} | seed {seed} | {minutes:g} min" for name, lr, seed in wanted]
        with ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn")) as pool:
            missing = {pool.submit(train, *w, steps[w[0]]): key for w, key in zip(wanted, keys) if key not in runs}
            for future in as_completed(missing):
                runs[missing[future]] = future.result()
                print(missing[future], future.result(), flush=True)
                self._write()
        return [runs[key] for key in keys]

    def _write(self) -> None:
        self.out.write_text(json.dumps(self.found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def choose_rates(campaign: Ablation, names: list[str], minutes: float) -> dict[str, tuple[float, float]]:
    """Each arm's best learning rate of three, and its error there."""
    wanted = [(name, lr, 0) for name in names for lr in ARMS[name].lrs]
    errors = {w[:2]: result["x0_error"] for w, result in zip(wanted, campaign.run(wanted, minutes))}
    return {name: min((errors[name, lr], lr) for lr in ARMS[name].lrs)[::-1] for name in names}


def finalists(rates: dict[str, tuple[float, float]], ours: int) -> list[str]:
    """The base, the best others of ours, and the best of diffusers'."""
    ranked = sorted(rates, key=lambda name: rates[name][1])
    theirs = [name for name in ranked if name.startswith("diffusers")]
    others = [name for name in ranked if name != "base" and name not in theirs]
    return [name for name in ("base", *theirs[:1], *others[: ours - 1]) if name in rates]


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="length of a finalist's run")
    parser.add_argument("--search-minutes", type=float, default=4, help="length of a run that chooses a learning rate")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--finalists", type=int, default=3, help="arms of ours that train at full length")
    parser.add_argument("--rounds", type=int, default=16, help="turns of the arms when their steps are timed")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--out", type=Path, default=Path("model_cards/ablation.json"))
    options = parser.parse_args()
    campaign = Ablation(options.out, options.arms, options.workers, options.rounds)
    rates = choose_rates(campaign, options.arms, options.search_minutes)
    print(f"\n| arm | best learning rate | error after {options.search_minutes:g} min |\n|---|---|---|")
    for name, (lr, error) in sorted(rates.items(), key=lambda item: item[1][1]):
        print(f"| {name} | {lr:g} | {error:.5f} |")
    best = finalists(rates, options.finalists)
    runs = campaign.run([(name, rates[name][0], seed) for name in best for seed in (0, 1)], options.minutes)
    print("\n| arm | error of the clean image, two seeds | mean | steps | parameters |\n|---|---|---|---|---|")
    for name, a, b in zip(best, runs[::2], runs[1::2]):
        errors = f"{a['x0_error']:.5f}, {b['x0_error']:.5f} | {(a['x0_error'] + b['x0_error']) / 2:.5f}"
        print(f"| {name} | {errors} | {a['steps']} | {a['parameters'] / 1e6:.2f} M |")


if __name__ == "__main__":
    main()
