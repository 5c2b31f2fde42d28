"""How fast the real training loop is beside that of another checkout of this repository, the two taking turns.

    python scripts/campaigns/loop_speed.py OTHER_CHECKOUT --json model_cards/speed.json

Each turn is a run of the preset on the bundled emoji, data, averages and optimizer included, in a process of its own.
Ratios are of the same round, so that a machine that is slower for a while slows both. With ``--precision auto`` each
checkout takes what it holds to be the faster one, and shares are of a product in float32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from attndiff.apps.bench.report import describe_hardware, write_json

HERE = Path(__file__).parents[2]
COMMAND = "python scripts/campaigns/loop_speed.py OTHER_CHECKOUT"  # whose place is nobody else's
ONE_RUN = """
import json, sys
from attndiff.apps.bench import loop
preset, count, steps, precision, *overrides = json.loads(sys.argv[1])
if precision == "auto":  # earlier checkouts time no such run
    precision, loop.NAMES["float32"] = "float32", "auto"
print("measured:", json.dumps(loop.measure_loop(preset, count, steps, precision, "cpu", tuple(overrides))))
"""


def python_of(checkout: Path) -> str:
    """The interpreter of a checkout's own environment, else this one."""
    own = checkout / ".venv/bin/python"
    return str(own) if own.exists() else sys.executable


def measured(checkout: Path, settings: list) -> dict:
    """What `measure_loop` of a checkout says."""
    command = [python_of(checkout), "-c", ONE_RUN, json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": ""}
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    line = next((line for line in result.stdout.splitlines() if line.startswith("measured: ")), None)
    if line is None:
        raise SystemExit(f"the run of {checkout.name} failed: {result.stderr[-1000:]}")
    return json.loads(line.removeprefix("measured: "))


def summary(rounds: list[dict[str, dict]], settings: list) -> dict:
    """Medians of the rounds, and the ratio of the two with its range."""
    preset, count, steps, precision, *overrides = settings
    rates = {name: [round_[name]["images_per_second"] for round_ in rounds] for name in ("before", "after")}
    ratios = [after / before for before, after in zip(rates["before"], rates["after"], strict=True)]
    return {
        "hardware": describe_hardware("cpu") | {"command": f"{COMMAND} --precision {precision}"},
        "amx": torch.cpu._is_amx_tile_supported(),
        "preset": preset,
        "images_a_step": count,
        "steps": steps,
        "precision": precision,
        "settings": overrides,
        "rounds": len(rounds),
        "before": statistics.median(rates["before"]),
        "after": statistics.median(rates["after"]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "share_of_matmul": statistics.median(round_["after"]["share_of_matmul"] for round_ in rounds),
        "share_of_matmul_before": statistics.median(round_["before"]["share_of_matmul"] for round_ in rounds),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout that is measured as it was before")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE settings of all runs")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--preset", default="xs")
    parser.add_argument("--count", type=int, default=32, help="images a step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16", "auto"))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    settings = [asked.preset, asked.count, asked.steps, asked.precision, *asked.settings]
    rounds = []
    for number in range(asked.rounds):
        turns = {"before": asked.other.resolve(), "after": HERE}
        if number % 2:
            turns = dict(reversed(turns.items()))
        rounds.append({name: measured(checkout, settings) for name, checkout in turns.items()})
        print({name: round(figures["images_per_second"], 1) for name, figures in rounds[-1].items()}, flush=True)
        write_json(asked.json, summary(rounds, settings))


if __name__ == "__main__":
    main()
