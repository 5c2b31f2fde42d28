"""What each optimisation of speed brings: every one undone alone, taking turns with the network as it is.

    python scripts/campaigns/optimisations.py --json model_cards/optimisations.json

Ratios of times are of the same round, with quartiles: above one, the optimisation saves that much. bfloat16 and
torch.compile, which are switched on by a setting, are measured against float32 without it. A table goes beside the JSON
with the ending ``.md``.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from attndiff.apps.bench.network import Network, make_batch
from attndiff.apps.bench.report import describe_hardware
from attndiff.apps.bench.steps import Step, training_step
from attndiff.apps.bench.timing import interleave, paired_ratio
from attndiff.device import cpu_computes_in_bfloat16
from attndiff.nn import blocks
from attndiff.training import optim
from attndiff.training.config import OptimConfig
from attndiff.training.heads.denoising import DenoisingModel

PRESET, COUNT = "xs", 16
BUILDS = 6  # of every network
AS_IT_IS, ONE_BY_ONE = "as it is", "muon, one matrix after the other"


@dataclass(frozen=True)
class Undone:
    """An optimisation that is taken back.

    Args:
        what: The optimisation.
        instead: What a network without it does.
        change: Changes the model.
        patched: An attribute, as ``(owner, name, value)``, that is another one while the step runs.
        precision: Of the step.
    """

    what: str
    instead: str
    change: Callable[[DenoisingModel], None] = lambda model: None
    patched: tuple[object, str, object] | None = None
    precision: str = "float32"

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Where the step runs."""
        if self.patched is None:
            yield
        else:
            with patch.object(*self.patched):
                yield


def rms_norms(model: DenoisingModel) -> None:
    for module in list(model.unet.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, nn.RMSNorm(child.normalized_shape, eps=1e-6))


def channels_first(self: blocks.Conv3x3, x: torch.Tensor) -> torch.Tensor:
    x = nn.Conv2d.forward(self, x.permute(0, 3, 1, 2).contiguous())
    return x.permute(0, 2, 3, 1).contiguous()


TRAINING = (
    Undone("LayerNorm over channels", "RMSNorm", rms_norms),
    Undone(
        "attention by torch's fused kernel",
        "matrix products",
        lambda model: model.unet.set_attention_backend("_native_math"),
    ),
    Undone(
        "attention's backward pass in bfloat16 by matrix products",
        "torch's fused kernel",
        lambda model: model.unet.set_attention_backend("native"),
        precision="bfloat16",
    ),
    Undone(
        "two matrix products that stay in bfloat16",
        "torch's own unfused attention, by way of float32",
        lambda model: model.unet.set_attention_backend("_native_math"),
        precision="bfloat16",
    ),
    Undone(
        "queries, keys and values by a matrix product each",
        "joined into one",
        lambda model: model.unet.fuse_qkv_projections(),
    ),
    Undone(
        "one memory layout throughout",
        "convolutions on contiguous (B, C, H, W)",
        patched=(blocks.Conv3x3, "forward", channels_first),
    ),
)
COMPILED = Undone("optim.compile", "without it", lambda model: model.unet.compile())


def step_of(undone: Undone) -> Step:
    """A training step with something taken back."""
    model = Network(PRESET).prepared("cpu")
    undone.change(model)
    step = training_step(model, make_batch(COUNT), "cpu", undone.precision)

    def run() -> None:
        with undone.in_force():
            step()

    return run


def sampling_steps() -> dict[str, Step]:
    """A network call with the keys and values of the condition kept from the first one, and without."""
    model, batch = Network(PRESET).prepared("cpu"), make_batch(COUNT)
    with torch.no_grad():
        encoded = model.condition_encoder(batch["input_ids"], batch["attention_mask"], drop=batch["drop"])
        cache = model.unet(None, encoder_hidden_states=encoded.tokens, return_condition_cache=True)
    rest = {"encoder_attention_mask": encoded.mask, "pooled_projections": encoded.pooled}
    coordinate = torch.zeros(COUNT)

    def call(**condition) -> Step:
        return torch.no_grad()(lambda: model.unet(batch["noise"], coordinate, **condition, **rest))

    return {AS_IT_IS: call(condition_cache=cache), "undone": call(encoder_hidden_states=encoded.tokens)}


def optimizer_steps() -> dict[str, Step]:
    """One step of Muon, of torch's own Muon and of AdamW on gradients that are there."""
    steps = {}
    for name in ("adamw", "muon", ONE_BY_ONE):
        model = Network(PRESET).build()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        with patch.object(optim, "Muon", torch.optim.Muon if name == ONE_BY_ONE else optim.Muon):
            kind = "adamw" if name == "adamw" else "muon"
            optimizers = optim.make_optimizers(model, OptimConfig(steps=1, optimizer=kind))
        steps[name] = lambda optimizers=optimizers: [optimizer.step() for optimizer in optimizers]
    return steps


def measure(rounds: int) -> dict[str, list[dict]]:
    """Rows of the tables: what, instead of what, and quartiles of the ratio of times."""
    training, as_it_is = measure_training(rounds)
    calls = interleave_anew(sampling_steps, 3 * rounds)
    optimizers = interleave_anew(optimizer_steps, rounds)
    return {
        "training step": training,
        "network call": [
            row("keys and values of the condition kept", "projected in every call", calls["undone"], calls[AS_IT_IS])
        ],
        "cost of Muon": [
            row("Muon's step", f"a training step of {COUNT} images with AdamW", optimizers["muon"], as_it_is),
            row("matrices of one shape together", "one by one", optimizers[ONE_BY_ONE], optimizers["muon"]),
        ],
    }


def measure_training(rounds: int) -> tuple[list[dict], list[float]]:
    """Rows of everything that concerns a training step, and the seconds of one as it is, in float32."""
    precisions = ("float32", "bfloat16") if cpu_computes_in_bfloat16() else ("float32",)
    undone = [u for u in TRAINING if u.precision in precisions]

    def steps() -> dict[str, Step]:
        torch.compiler.reset()
        as_it_is = {precision: step_of(Undone(AS_IT_IS, "", precision=precision)) for precision in precisions}
        return as_it_is | {u.what: step_of(u) for u in (*undone, COMPILED)}

    times = interleave_anew(steps, rounds)
    rows = [row(u.what, u.instead, times[u.what], times[u.precision]) for u in undone]
    if COMPILED.what in times:
        rows.append(row(COMPILED.what, COMPILED.instead, times["float32"], times[COMPILED.what]))
    if "bfloat16" in times:
        rows.append(row("optim.precision: bf16", "float32", times["float32"], times["bfloat16"]))
    return rows, times["float32"]


def interleave_anew(make: Callable[[], dict[str, Step]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call of steps that take turns, `BUILDS` times made anew.

    Where a network happens to lie in memory makes it faster or slower than its double by several percent.
    """
    times: dict[str, list[float]] = {}
    for _ in range(BUILDS):
        found, failures = interleave(make(), rounds, warmup=1)
        for name, reason in failures.items():
            print(f"{name}: {reason}")
        for name, seconds in found.items():
            times[name] = times.get(name, []) + seconds
    return times


def row(what: str, instead: str, slow: list[float], fast: list[float]) -> dict:
    """One line of a table."""
    return {"what": what, "instead": instead} | paired_ratio(slow, fast)


def as_table(report: dict) -> str:
    """Markdown of a report."""
    lines = ["| of a | optimisation | instead | ratio of times |", "|---|---|---|---|"]
    for kind, rows in report["rows"].items():
        for r in rows:
            ratio = f"{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
            lines.append(f"| {kind} | {r['what']} | {r['instead']} | {ratio} |")
    hardware = report["hardware"]
    lines += [
        "",
        f"{hardware['machine']}, {hardware['torch']}, {hardware['date']}; `{PRESET}`, {COUNT} images of 32 px.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="of each build of the networks")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    report = {"hardware": describe_hardware("cpu"), "rows": measure(arguments.rounds)}
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    arguments.json.with_suffix(".md").write_text(
        f"# What each optimisation of speed brings\n\n{as_table(report)}\n", encoding="utf-8"
    )
    print(as_table(report))


if __name__ == "__main__":
    main()
