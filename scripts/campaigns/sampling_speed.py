"""Seconds of a call of the bundled student, 16 images in four steps, in float32 and in bfloat16, the two taking turns.

python scripts/campaigns/sampling_speed.py --json model_cards/sampling.json
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from attndiff.apps.bench.report import describe_hardware, write_json
from attndiff.apps.sample import PRECISIONS, open_model

IMAGES, STEPS = 16, 4
PROMPT = "red apple, noto"


def call(pipeline) -> float:
    """Seconds of a call."""
    generators = [torch.Generator().manual_seed(i) for i in range(IMAGES)]
    start = time.perf_counter()
    pipeline([PROMPT] * IMAGES, num_inference_steps=STEPS, guidance_scale=1.0, generator=generators)
    return time.perf_counter() - start


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    pipelines = {name: open_model("emoji-xs-student", name) for name in PRECISIONS}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
        call(pipeline)  # warms up
    rounds = [{name: call(pipeline) for name, pipeline in pipelines.items()} for _ in range(options.rounds)]
    seconds = {name: statistics.median(turn[name] for turn in rounds) for name in pipelines}
    ratio = statistics.median(turn["fp32"] / turn["bf16"] for turn in rounds)
    found = {"hardware": describe_hardware("cpu"), "images": IMAGES, "steps": STEPS, "seconds": seconds, "ratio": ratio}
    write_json(options.json, found)
    print(found)


if __name__ == "__main__":
    main()
