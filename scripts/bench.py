"""Side by side with diffusers' `UNet2DConditionModel`: training and sampling speed.

    python scripts/bench.py --json bench.json

The two networks take turns step by step, so that a noisy machine hurts both alike; reported are medians, their spread
and ratios, attndiff over diffusers. Text of 24 tokens conditions both; the optimizer is AdamW for both; batches are
synthetic, since speed does not depend on what is in them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attndiff.encoder import ConditionEncoder
from attndiff.objectives import FlowMatching
from attndiff.presets import PRESETS
from attndiff.training.model import DenoisingModel
from attndiff.unet import AttentionUNet2DModel

SIZE, TOKENS, VOCABULARY = 32, 24, 2048


class Adapted(nn.Module):
    """diffusers' network behind the call that our denoising model makes."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet

    def forward(self, sample, noise_level, encoder_hidden_states, encoder_attention_mask, pooled_projections):
        return self.unet(sample, noise_level, encoder_hidden_states, encoder_attention_mask=encoder_attention_mask)


def peer_unet(cross_attention_dim: int) -> UNet2DConditionModel:
    """The layout of diffusers' text-to-image U-Net, narrowed until it has no more parameters than `xs`."""
    return UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_arms() -> dict[str, DenoisingModel]:
    """Both networks, each with the same condition encoder and loss."""
    torch.manual_seed(0)
    preset = PRESETS["xs"]
    hidden = preset["encoder"]["hidden_size"]
    networks = {"attndiff xs": AttentionUNet2DModel(**preset["unet"]), "diffusers": Adapted(peer_unet(hidden))}
    return {
        name: DenoisingModel(network, ConditionEncoder(**preset["encoder"], vocab_size=VOCABULARY), FlowMatching())
        for name, network in networks.items()
    }


def make_batch(size: int) -> dict[str, torch.Tensor]:
    """Random images, noise and captions."""
    shape = (size, 3, SIZE, SIZE)
    return {
        "images": torch.randn(shape),
        "noise": torch.randn(shape),
        "level": torch.randn(size),
        "drop": torch.zeros(size, dtype=torch.bool),
        "input_ids": torch.randint(2, VOCABULARY, (size, TOKENS)),
        "attention_mask": torch.ones(size, TOKENS, dtype=torch.int64),
    }


def training_step(model: DenoisingModel, batch: dict, precision: torch.dtype) -> Callable[[], None]:
    """Forward, backward and AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            loss = model(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward_pass(model: DenoisingModel, batch: dict) -> Callable[[], None]:
    """One evaluation while sampling, in float32."""
    level = torch.full((batch["images"].shape[0],), 0.5)

    @torch.no_grad()
    def step() -> None:
        model.predict(batch["noise"], level, batch)

    return step


def interleave(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, the arms taking turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def summary(times: list[float], images: int) -> dict[str, float]:
    """Images per second at the median, and at the slowest and fastest quarter."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"images_per_second": images / middle, "slow_quarter": images / high, "fast_quarter": images / low}


def flops(model: DenoisingModel) -> float:
    """FLOPs of one image's forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(make_batch(1))
    return float(counter.get_total_flops())


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json")
    options = parser.parse_args()

    arms, batch = make_arms(), make_batch(options.batch)
    report = {
        name: {"parameters": sum(p.numel() for p in arm.parameters()), "forward_gflop": flops(arm) / 1e9}
        for name, arm in arms.items()
    }
    measured = {
        "training_float32": {n: training_step(a, batch, torch.float32) for n, a in arms.items()},
        "training_bfloat16": {n: training_step(a, batch, torch.bfloat16) for n, a in arms.items()},
        "forward_float32": {n: forward_pass(a, batch) for n, a in arms.items()},
    }
    ratios = {}
    for what, steps in measured.items():
        times = interleave(steps, options.rounds)
        for name, values in times.items():
            report[name][what] = summary(values, options.batch)
        ours, theirs = (report[name][what]["images_per_second"] for name in arms)
        ratios[what] = {"diffusers": ours / theirs}
        print(f"{what}: {ours:.1f} against {theirs:.1f} images/s, {ours / theirs:.2f} x", flush=True)
    hardware = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    result = {"hardware": hardware, "batch": options.batch, "arms": report, "ratios": ratios}
    if options.json:
        with open(options.json, "w") as stream:
            json.dump(result, stream, indent=1)
    print(json.dumps(result["arms"], indent=1))


if __name__ == "__main__":
    main()
