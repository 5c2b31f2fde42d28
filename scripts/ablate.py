"""The open choices of the network, settled on real data: every arm at its best of three learning rates, two seeds.

    python scripts/ablate.py --minutes 20 --out model_cards/ablation.json

All arms see the same images, captions, noise and order, train for the same time on one thread, end with the learning
rate at zero, and are compared by one figure: the mean squared error of the denoised held-out image over eight noise
levels. diffusers' `UNet2DConditionModel` is an arm under the same rules. Short runs choose each arm's learning rate;
the best arms of ours, the base among them, and the best of diffusers' then train at full length with two seeds. A
difference within the spread of the seeds is a tie, and then the simpler form wins.

`campaigns.equal_time` says how time is counted. Runs that are already in the output file are not repeated, so the
command can be stopped and started again.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from bench.peers import Adapted
from campaigns.equal_time import Campaign, Trial
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from attndiff.nn import blocks
from attndiff.training.batches import DrawnDataset
from attndiff.training.build import Parts, build
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.evaluation.validation import validate

EMOJI = "emoji"  # the data of all runs
BATCH = 32


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


def make(trial: Trial, opened: Parts | None) -> tuple[TrainConfig, Parts]:
    """Config and parts of a run."""
    arm = ARMS[trial.arm]
    overrides = [f"seed={trial.seed}", f"optim.lr={trial.lr}", f"optim.batch_size={BATCH}", "optim.steps=1000000"]
    others = [f"optim.optimizer={arm.optimizer}", "optim.compile=false", "condition.grounding_steps=0"]
    config = load_config("emoji-xs", [*overrides, *others])
    parts = build(config)
    parts.model.unet = arm.change(arm.base(parts.model.unet))
    return config, parts


def measure(config: TrainConfig, parts: Parts) -> dict:
    """The held-out error, and the size of the network."""
    result = validate(parts.model, DrawnDataset(parts.validation, parts.conditioning, 0), Accelerator(cpu=True))
    parameters = sum(p.numel() for p in parts.model.unet.parameters())
    return {"error": result.x0_error, "parameters": parameters, "n": result.n}


def choose_rates(campaign: Campaign, names: list[str], minutes: float) -> dict[str, tuple[float, float]]:
    """Each arm's best learning rate of three, and its error there."""
    wanted = [Trial(name, EMOJI, lr, 0, minutes) for name in names for lr in ARMS[name].lrs]
    errors = {(trial.arm, trial.lr): result["error"] for trial, result in zip(wanted, campaign.run(wanted))}
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
    campaign = Campaign(options.out, make, measure, options.workers, options.rounds)
    campaign.time_steps([Trial(name, EMOJI, ARMS[name].lrs[0], 0, options.minutes) for name in options.arms])
    rates = choose_rates(campaign, options.arms, options.search_minutes)
    print(f"\n| arm | best learning rate | error after {options.search_minutes:g} min |\n|---|---|---|")
    for name, (lr, error) in sorted(rates.items(), key=lambda item: item[1][1]):
        print(f"| {name} | {lr:g} | {error:.5f} |")
    best = finalists(rates, options.finalists)
    runs = campaign.run([Trial(name, EMOJI, rates[name][0], seed, options.minutes) for name in best for seed in (0, 1)])
    print("\n| arm | error of the clean image, two seeds | mean | steps | parameters |\n|---|---|---|---|---|")
    for name, a, b in zip(best, runs[::2], runs[1::2]):
        errors = f"{a['error']:.5f}, {b['error']:.5f} | {(a['error'] + b['error']) / 2:.5f}"
        print(f"| {name} | {errors} | {a['steps']} | {a['parameters'] / 1e6:.2f} M |")


if __name__ == "__main__":
    main()
