"""The open choices of the network, settled on real data: every arm at its best of three learning rates, two seeds.

    python scripts/ablate.py --minutes 20 --out model_cards/ablation.json

All arms see the same images, captions, noise and order, train for the same wall time with one thread count, end with
the learning rate at zero, and are compared by one figure: the mean squared error of the denoised held-out image over
eight noise levels. diffusers' `UNet2DConditionModel` is an arm under the same rules. A difference within the spread of
the seeds is a tie, and then the simpler form wins.

Runs that are already in the output file are not repeated, so the command can be stopped and started again.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from bench import Adapted, peer_unet
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from attndiff import blocks
from attndiff.training.batches import DrawnDataset, training_loader
from attndiff.training.build import Parts, build
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.optim import make_optimizers, set_lr
from attndiff.training.validation import validate

BATCH = 64


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


def train(arm: Arm, lr: float, seed: int, minutes: float) -> dict:
    """Train one run for ``minutes`` of wall time and evaluate it."""
    config, parts = make_run(arm, lr, seed)
    accelerator = Accelerator(cpu=True)
    optimizers = make_optimizers(parts.model, config.optim)
    dataset = DrawnDataset(parts.images, parts.conditioning, seed, config.condition.dropout)
    start, images = time.perf_counter(), 0
    for batch in training_loader(config, dataset, 1, 0, 1, 0):
        spent = (time.perf_counter() - start) / (60 * minutes)
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


def run_all(names: list[str], minutes: float, search_minutes: float, out: Path) -> dict:
    """Find each arm's best learning rate in short runs, then train it at full length with two seeds."""
    results = json.loads(out.read_text()) if out.is_file() else {}

    def once(name: str, lr: float, seed: int, length: float) -> dict:
        key = f"{name} | lr {lr:g} | seed {seed} | {length:g} min"
        if key not in results:
            results[key] = train(ARMS[name], lr, seed, length)
            print(key, results[key], flush=True)
            out.write_text(json.dumps(results, indent=1))
        return results[key]

    table = {}
    for name in names:
        best = min(ARMS[name].lrs, key=lambda lr: once(name, lr, 0, search_minutes)["x0_error"])
        finals = [once(name, best, seed, minutes) for seed in (0, 1)]
        errors = [f["x0_error"] for f in finals]
        table[name] = {"lr": best, "x0_error": sum(errors) / 2, "spread": abs(errors[0] - errors[1])}
        table[name] |= {"images": finals[0]["images"], "parameters": finals[0]["parameters"]}
    return table


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--search-minutes", type=float, default=5)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("model_cards/ablation.json"))
    options = parser.parse_args()
    table = run_all(options.arms, options.minutes, options.search_minutes, options.out)
    print("| arm | learning rate | error of the clean image | seeds differ by | images seen | parameters |")
    print("|---|---|---|---|---|---|")
    for name, row in sorted(table.items(), key=lambda item: item[1]["x0_error"]):
        numbers = f"{row['lr']:g} | {row['x0_error']:.5f} | {row['spread']:.5f} | {row['images']}"
        print(f"| {name} | {numbers} | {row['parameters'] / 1e6:.2f} M |")


if __name__ == "__main__":
    main()
