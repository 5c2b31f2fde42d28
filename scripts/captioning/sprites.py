"""Captions of sprites from single frames: which attributes that can be seen are named rightly.

    python scripts/captioning/sprites.py frames DATA/sprites runs/sprite_frames
    attndiff train model_cards/caption-sprites/recipe.yaml
    python scripts/captioning/sprites.py score runs/caption-sprites/pipeline runs/sprite_frames --json sprites.json \
        --picture sprites.png

The first command takes frames out of clips, see `sprite_frames`, and the last compares what a model writes of frames
of characters that it was not trained on with their captions, attribute by attribute: of an attribute that a caption
names, only where it has at least a pixel in the frame's part map. Beside it what the caption of the nearest training
frame says, what one caption says of all, and what the model's captions say once they are dealt out to other
frames. Frames whose pair of hair colour and torso no training character has are scored apart, too, and each direction.
"""

import argparse
import json
import random
from pathlib import Path

from sprite_attributes import accuracy, agreement
from sprite_frames import write_frames

from attndiff.apps.sample import open_model
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset
from attndiff.drawn import save_picture
from attndiff.metrics.captions.measure import Beside, captions_of, measure_captions, write_all
from attndiff.metrics.captions.sheet import captions_beside
from attndiff.metrics.reference import model_settings
from attndiff.training.card import hardware

SEED = 0
SEEN = ("action", "direction")  # said of every frame, and of no part of it


def score(model: str, frames: Path, json_file: Path, picture: Path | None) -> None:
    """Score a model on the tested frames and write what was found."""
    pipeline = open_model(model)
    config = DataConfig(path=str(frames), caption_column="caption", **model_settings(pipeline))
    test, train = ImageSet(config.replace(split="test")), ImageSet(config)
    test = Subset(test, random.Random(SEED).sample(range(len(test)), len(test)))
    written, beside = write_all(pipeline, test).captions, Beside.of(test, train)
    others = random.Random(SEED).sample(written, len(written))
    ways = {
        "model": written,
        "nearest_training_frame": beside.nearest,
        "best_template": [beside.template] * len(test),
        "shuffled_images": others,
    }
    found = {
        "command": "python scripts/captioning/sprites.py score MODEL FRAMES --json sprites.json",
        "hardware": hardware(),
        "n": len(test),
        "ways": {name: scores(captions, test) for name, captions in ways.items()},
        "texts": measure_captions(written, test, beside, SEED),
    }
    json_file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, of in found["ways"].items():
        print(f"{name}: F1 {of['f1']:.3f}, withheld pairs {of['f1_of_withheld_pairs']:.3f}")
    if picture is not None:
        real = [captions[0] for captions in captions_of(test)]
        save_picture(captions_beside(test, {"real": real, "written": written}), picture)


def scores(captions: list[str], test: Subset) -> dict:
    """F1 of all attributes that can be seen, of each, by direction and of withheld pairs; accuracies of the rest."""
    real = [row["caption"][0] for row in test]
    texts = test.texts()
    visible = [set(columns.split()) for columns in texts["visible"]]

    def f1_of(rows: list[int]) -> float:
        chosen = ([of[i] for i in rows] for of in (captions, real, visible))
        return agreement(*chosen)["all"].f1

    def rows_with(column: str, value: str) -> list[int]:
        return [i for i, one in enumerate(texts[column]) if one == value]

    counts = agreement(captions, real, visible)
    return {
        "f1": counts["all"].f1,
        "f1_of_new_characters": f1_of(rows_with("held_out", "character")),
        "f1_of_withheld_pairs": f1_of(rows_with("held_out", "pair")),
        "f1_by_direction": {name: f1_of(rows_with("direction", name)) for name in sorted(set(texts["direction"]))},
        "f1_by_attribute": {name: count.f1 for name, count in sorted(counts.items()) if name != "all"},
        "accuracy": {column: accuracy(captions, real, column) for column in SEEN},
    }


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    taking = commands.add_parser("frames", help="take frames out of clips")
    taking.add_argument("data", type=Path, help="folder of the clips")
    taking.add_argument("out", type=Path, help="folder to write")
    scoring = commands.add_parser("score", help="score a model")
    scoring.add_argument("model", help="pipeline folder")
    scoring.add_argument("frames", type=Path, help="folder that the first command wrote")
    scoring.add_argument("--json", type=Path, required=True, help="what was found")
    scoring.add_argument("--picture", type=Path, help="frames with their captions")
    arguments = parser.parse_args()
    if arguments.command == "frames":
        write_frames(arguments.data, arguments.out)
    else:
        score(arguments.model, arguments.frames, arguments.json, arguments.picture)


if __name__ == "__main__":
    main()
