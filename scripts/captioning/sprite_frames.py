"""Single frames of the sprites' clips, with captions: what a model that writes captions learns from.

Of a training clip two frames are taken at random, of any other its fifth. A frame is RGBA as it was drawn. From
training are left out, for the test, `TESTED` characters, and all that have a hair colour together with a torso out of
`PAIRS` such pairs.
"""

import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 64
OF_TRAINING = 2  # frames of a clip
FIXED = 4  # of a clip that is not trained on
TESTED, PAIRS = 60, 12
KEPT = ("clip_id", "caption", "action", "direction", "licence", "author")
# Which pixels of a part map show what a column says.
PARTS = {
    "skin_colour": 1,
    "kind": 1,
    "hair_style": 3,
    "hair_colour": 3,
    "facial": 4,
    "torso": 5,
    "legs": 6,
    "feet": 7,
    "head": 8,
    "cape": 9,
    "weapon": 10,
}


def write_frames(data: Path, folder: Path) -> None:
    """Write ``train.parquet``, ``validation.parquet`` and ``test.parquet``, unless they are there.

    What is held out of a tested row says its column ``held_out``: its ``character``, or its ``pair`` too.

    Args:
        data: Folder of the clips.
        folder: Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = divide(pq.read_table(data / "clips-train.parquet").to_pylist())
    parts["validation"] = pq.read_table(data / "clips-validation.parquet").to_pylist()
    for part, clips in parts.items():
        path = folder / f"{part}.parquet"
        if not path.is_file():
            pq.write_table(pa.Table.from_pylist(list(frames_of(clips, part == "train"))), path)


def divide(clips: list[dict]) -> dict[str, list[dict]]:
    """Clips that are trained on and those that are tested."""
    rng = random.Random(1)
    pair_of = {clip["character_id"]: (clip["hair_colour"], clip["torso"]) for clip in clips}
    pairs = sorted({pair for pair in pair_of.values() if None not in pair})
    withheld = set(rng.sample(pairs, PAIRS))
    others = sorted(character for character, pair in pair_of.items() if pair not in withheld)
    tested = set(rng.sample(others, TESTED))
    parts: dict[str, list[dict]] = {"train": [], "test": []}
    for clip in clips:
        character = clip["character_id"]
        of_pair = pair_of[character] in withheld
        part = "test" if of_pair or character in tested else "train"
        parts[part].append({**clip, "held_out": "pair" if of_pair else "character"})
    return parts


def frames_of(clips: list[dict], train: bool):
    """Rows of single frames: image, what is `KEPT` of the clip, and ``visible``, the columns that the frame shows."""
    rng = random.Random(0)
    for clip in clips:
        strip = Image.open(io.BytesIO(clip["strip"])).convert("RGBA")
        parts = np.asarray(Image.open(io.BytesIO(clip["parts"])))
        for frame in sorted(rng.sample(range(clip["frames"]), OF_TRAINING)) if train else [FIXED]:
            left = frame * SIDE
            file = io.BytesIO()
            strip.crop((left, 0, left + SIDE, SIDE)).save(file, "PNG")
            seen = set(np.unique(parts[:, left : left + SIDE]).tolist())
            visible = [name for name, part in PARTS.items() if clip[name] and part in seen]
            yield {
                "image": {"bytes": file.getvalue(), "path": None},
                **{name: clip[name] for name in KEPT},
                "visible": " ".join(visible),
                "held_out": clip.get("held_out", "character"),
                "frame": frame,
            }
