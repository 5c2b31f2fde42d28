"""What was found of a task, as an entry of ``tasks.json``.

    attndiff evaluate MODEL --data DATA --json found.json
    python scripts/tasks/record.py tasks.json caption_flickr found.json --metric cider_d --command COMMAND
    python scripts/tasks/record.py tasks.json caption_sprites sprites.json --metric f1 --command COMMAND
    python scripts/tasks/record.py tasks.json generator_icons found.json --metric bits_per_value --command COMMAND

The second of the three takes what ``sprites.py score`` wrote, the third what ``tasks/generators.py`` did. Beside
the value of captions stand what the caption of the nearest training image reaches, and what one human does where images
have several captions, else one caption for all; beside bits per value those of a lossless file, and what they are at
most by a diffusion model of the same minutes. To be run where the value was measured: the entry names the machine.
"""

import argparse
import json
from pathlib import Path

from attndiff.training.card import hardware

NEAREST, TEMPLATE, HUMAN = "the caption of the nearest training image", "one caption for all", "one human"
WEBP, DIFFUSION = "lossless WebP", "at most, by the probability flow of a diffusion model"


def entry_of(found: dict, metric: str) -> dict:
    """Value, floor and rival of a metric, from what one of the three commands found."""
    if "models" in found:
        return bits_entry(*(found["models"][kind]["report"] for kind in ("value after value", "diffusion")))
    if "ways" in found:
        ways = {name: of[metric] for name, of in found["ways"].items()}
        values = ways["model"], ways["nearest_training_frame"], TEMPLATE, ways["best_template"]
        n = found["n"]
    else:
        of, n = found[metric], found[metric]["n"]
        rival = (HUMAN, of["human"]) if "human" in of else (TEMPLATE, of["controls"]["best_template"])
        values = of["value"], of["floor"], *rival
    value, floor, rival, rival_value = values
    known = {"metric": metric, "value": value, "floor": NEAREST, "floor_value": floor}
    return {**known, "rival": rival, "rival_value": rival_value, "lower_is_better": False, "n": n}


def bits_entry(ours: dict, theirs: dict) -> dict:
    """Bits per value, by what was found of a model that draws value after value and of a diffusion model."""
    of, bound = ours["bits_per_value"], theirs["bits_per_value_at_most"]
    value = {"metric": "bits_per_value", "value": of["value"], "floor": WEBP, "floor_value": of["floor"]}
    rival = {"rival": DIFFUSION, "rival_value": bound["value"], "rival_n": bound["n"]}
    return {**value, **rival, "lower_is_better": True, "n": of["n"]}


def main() -> None:
    """Put an entry into the file, in place of an earlier one of its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path, help="tasks.json, made if absent")
    parser.add_argument("name", help="of the task, such as caption_flickr")
    parser.add_argument("found", type=Path, help="what was found, JSON")
    parser.add_argument("--metric", required=True, help="which of it")
    parser.add_argument("--command", required=True, help="that trains the model")
    parser.add_argument("--picture", help="of it, beside tasks.json")
    arguments = parser.parse_args()
    tasks = json.loads(arguments.tasks.read_text(encoding="utf-8")) if arguments.tasks.is_file() else {}
    entry = entry_of(json.loads(arguments.found.read_text(encoding="utf-8")), arguments.metric)
    known = {"command": arguments.command, **entry, "hardware": hardware(), "picture": arguments.picture}
    tasks[arguments.name] = known
    text = json.dumps(dict(sorted(tasks.items())), indent=1, ensure_ascii=False)
    arguments.tasks.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
