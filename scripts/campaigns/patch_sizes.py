"""What twice the resolution costs with patches of twice the side, and what it reaches in equal time.

    python scripts/campaigns/patch_sizes.py DATA/emoji64 --json model_cards/patch_sizes.json

The same emoji at 32 px by patches of 2, at 64 px by patches of 4, which makes as many tokens, and at 64 px by patches
of 2. Seconds of a training step, and the squared error of the denoised held-out image over eight noise levels, each
model at its own resolution: errors at 32 and 64 px are of different images and stand beside each other only to show
that both have learned. `equal_time` says how time is counted; the command goes on from what is in the JSON.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import mean

from attention_choice import measure
from equal_time import Campaign, Trial, place

from attndiff.apps.bench.report import write_json
from attndiff.training.build import Parts, build
from attndiff.training.config import TrainConfig, load_config

ARMS = {"32 px by 2": (32, 2), "64 px by 4": (64, 4), "64 px by 2": (64, 2)}  # size and side of a patch
BASE = "32 px by 2"
EMOJI = "emoji"
RATE = 4e-3
SEEDS = (0, 1)


def make(trial: Trial, opened: Parts | None, folder: Path) -> tuple[TrainConfig, Parts]:
    """Config and parts of a trial; every size opens the data for itself."""
    size, patch = ARMS[trial.arm]
    config = load_config(
        "emoji-xs",
        [
            f"data.path={folder / 'train.parquet'}",
            f"data.validation={folder / 'validation.parquet'}",
            "data.caption_column=caption",
            "data.where=null",
            "data.exclude=null",
            f"data.size={size}",
            f"model.unet.patch_size={patch}",
            f"seed={trial.seed}",
            f"optim.lr={trial.lr}",
            "optim.batch_size=32",
            "optim.steps=1000000",
            "optim.compile=false",
            "condition.grounding_steps=0",
        ],
    )
    return config, build(config)


def report(found: dict, trials: list[Trial], results: list[dict], command: str) -> dict:
    """Seconds a step, how many times the base's, and errors by arm."""
    arms = {}
    for arm in ARMS:
        of_arm = [(trial, result) for trial, result in zip(trials, results, strict=True) if trial.arm == arm]
        seconds = found["step_seconds"][place(of_arm[0][0])]
        arms[arm] = {
            "seconds_a_step": seconds,
            "ratio": seconds / found["step_seconds"][f"{BASE} | {EMOJI}"],
            "error": mean(result["error"] for _, result in of_arm),
            "errors": [result["error"] for _, result in of_arm],
            "steps": of_arm[0][1]["steps"],
            "memory": mean(result["memory"] for _, result in of_arm),
        }
    return found | {"hardware": found["hardware"] | {"command": command}, "minutes": trials[0].minutes, "arms": arms}


def main() -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of emoji64")
    parser.add_argument("--json", type=Path, required=True, help="what was found; what is missing in it is run")
    parser.add_argument("--minutes", type=float, default=20, help="length of a run")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    options = parser.parse_args()
    trials = [Trial(arm, EMOJI, RATE, seed, options.minutes) for seed in SEEDS for arm in ARMS]
    made = partial(make, folder=options.data.resolve())
    campaign = Campaign(options.json, made, measure, options.workers)
    campaign.time_steps(trials[: len(ARMS)])
    command = f"python scripts/campaigns/patch_sizes.py DATA/emoji64 --minutes {options.minutes:g}"
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, report(campaign.found, trials, campaign.run(trials), command))


if __name__ == "__main__":
    main()
