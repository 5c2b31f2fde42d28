"""How many iterations Muon's orthogonalisation needs: held-out error after equal steps, and seconds a step.

    python scripts/campaigns/muon_iterations.py --json model_cards/muon_iterations.json

The preset xs on the bundled emoji, one thread a run, the learning rate falling to zero at its end. Fewer iterations of
the same quintic leave small singular values of a gradient smaller (Jordan et al. 2024). The command goes on from what
is in the JSON.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from equal_time import Trial, step_seconds, train

from attndiff.apps.bench.report import describe_hardware, write_json
from attndiff.training import muon, optim
from attndiff.training.batches import DrawnDataset
from attndiff.training.build import Parts, build, build_without_data
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.evaluation.validation import validate

ITERATIONS = (5, 4, 3)
RATE = 4e-3


def make(trial: Trial, opened: Parts | None, count: int) -> tuple[TrainConfig, Parts]:
    """Config and parts of a trial, whose arm is a number of iterations; the next optimizer made does as many."""
    optim.Muon = partial(muon.Muon, ns_steps=int(trial.arm))
    own = [f"seed={trial.seed}", f"optim.lr={trial.lr}", f"optim.batch_size={count}", "condition.grounding_steps=0"]
    config = load_config("emoji-xs", [*own, "optim.compile=false"])
    if opened is None:
        return config, build(config)
    parts = build_without_data(config, opened.learned)
    parts.images, parts.validation = opened.images, opened.validation
    return config, parts


def measure(config: TrainConfig, parts: Parts) -> dict:
    """Held-out error, and by noise level."""
    held_out = DrawnDataset(parts.validation, parts.conditioning, 0, make_sample=parts.make_sample)
    found = validate(parts.model, held_out, Accelerator(cpu=True))
    return {"loss": found.loss, "error": found.x0_error, "per_level": found.per_level}


def main() -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="what was found; what is missing in it is run")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--count", type=int, default=32, help="images a step")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    asked = parser.parse_args()
    made = partial(make, count=asked.count)
    trials = [Trial(str(n), "emoji", RATE, seed, 0) for seed in range(asked.seeds) for n in ITERATIONS]
    command = f"python scripts/campaigns/muon_iterations.py --steps {asked.steps} --count {asked.count}"
    found = json.loads(asked.json.read_text(encoding="utf-8")) if asked.json.is_file() else {"runs": {}}
    found["hardware"] = describe_hardware("cpu") | {"command": f"{command} --seeds {asked.seeds}"}
    pool = ProcessPoolExecutor(asked.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with pool:
        missing = {
            pool.submit(train, trial, asked.steps, made, measure): trial.key
            for trial in trials
            if trial.key not in found["runs"]
        }
        for future in as_completed(missing):
            found["runs"][missing[future]] = future.result()
            print(missing[future], future.result()["error"], flush=True)
            write_json(asked.json, found)
    if "step_seconds" not in found:
        found["step_seconds"] = step_seconds(trials[: len(ITERATIONS)], made, rounds=20)
        write_json(asked.json, found)


if __name__ == "__main__":
    main()
