"""Single frames of the sprites, with captions: what a model that writes captions learns from.

Of a training clip two frames are taken at random, of any other its fifth. A frame is RGBA as it was drawn. From
training are left out, for the test, `TESTED` characters, and all that have a hair colour together with a torso out of
`PAIRS` such pairs. Training sees the characters of the training edits too, before and after the edit, as they stand in
four directions: eight times as many characters as the clips have, but for those which are tested.
"""

import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sprite_attributes import DIRECTIONS, said_by

SIDE = 64
OF_TRAINING = 2  # frames of a clip
FIXED = 4  # of a clip that is not trained on
TESTED, PAIRS = 60, 12
OF_CLIP = ("action", "direction", "weapon")  # not of the character
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
    clips, withheld = divide(pq.read_table(data / "clips-train.parquet").to_pylist())
    clips["validation"] = pq.read_table(data / "clips-validation.parquet").to_pylist()
    rows = {part: list(frames_of(of_part, part == "train")) for part, of_part in clips.items()}
    known = {who(row["caption"]) for part in ("validation", "test") for row in rows[part]}
    rows["train"] += standing(pq.read_table(data / "edits-train.parquet").to_pylist(), known, withheld)
    for part, of_part in rows.items():
        path = folder / f"{part}.parquet"
        if not path.is_file():
            pq.write_table(pa.Table.from_pylist(of_part), path)


def divide(clips: list[dict]) -> tuple[dict[str, list[dict]], set[tuple[str, str]]]:
    """Clips that are trained on and those that are tested; the pairs of hair colour and torso that only these have."""
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
    return parts, withheld


def who(caption: str) -> frozenset:
    """What a caption says of the character itself, which is the same in all of its clips."""
    return frozenset((name, said) for name, said in said_by(caption).items() if name not in OF_CLIP)


def standing(pairs: list[dict], tested: set[frozenset], withheld: set[tuple[str, str]]) -> list[dict]:
    """Rows of the characters before and after each edit, in four directions, without those that are tested.

    Args:
        pairs: Of the edits.
        tested: Characters, from `who`.
        withheld: Pairs of hair colour and torso.
    """
    rows, phrases = [], {name: phrase for phrase, name in DIRECTIONS.items()}
    for pair in pairs:
        for side in ("source", "target"):
            caption = pair[f"caption_{side}"]
            said = said_by(caption)
            if who(caption) in tested or (said.get("hair_colour"), said.get("torso")) in withheld:
                continue
            strip = Image.open(io.BytesIO(pair[side])).convert("RGBA")
            for i, direction in enumerate(pair["directions"].split(",")):
                rows.append(
                    {
                        "image": cell(strip, i),
                        "clip_id": f"{pair['pair_id']}-{side}-{direction}",
                        "caption": f"{caption} stands {phrases[direction]}",
                        "action": "stand",
                        "direction": direction,
                        "licence": pair["licence"],
                        "author": pair["author"],
                        "visible": "",  # is asked of tested frames alone
                        "held_out": "character",
                        "frame": 0,
                    }
                )
    return rows


def cell(strip: Image.Image, place: int) -> dict:
    """A frame of a strip, as a PNG in a table."""
    file = io.BytesIO()
    strip.crop((place * SIDE, 0, (place + 1) * SIDE, SIDE)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def frames_of(clips: list[dict], train: bool):
    """Rows of single frames: image, what is `KEPT` of the clip, and ``visible``, the columns that the frame shows."""
    rng = random.Random(0)
    for clip in clips:
        strip = Image.open(io.BytesIO(clip["strip"])).convert("RGBA")
        parts = np.asarray(Image.open(io.BytesIO(clip["parts"])))
        for frame in sorted(rng.sample(range(clip["frames"]), OF_TRAINING)) if train else [FIXED]:
            seen = set(np.unique(parts[:, frame * SIDE : (frame + 1) * SIDE]).tolist())
            visible = [name for name, part in PARTS.items() if clip[name] and part in seen]
            yield {
                "image": cell(strip, frame),
                **{name: clip[name] for name in KEPT},
                "visible": " ".join(visible),
                "held_out": clip.get("held_out", "character"),
                "frame": frame,
            }
