"""Single frames of the sprites with the part of every pixel: what a model that tells parts apart learns from.

    python scripts/tasks/sprite_parts.py DATA/sprites OUT
    attndiff train ... task={name: segment, mask: parts} data.path=OUT

Two frames of every training clip, taken at random, and the fifth of every held-out one, whose characters are others.
"""

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = (
    "background", "body", "eyes", "hair", "facial hair", "torso", "legs", "feet", "headgear", "cape", "weapon",
)  # fmt: skip
SIDE = 64
OF_TRAINING = 2  # frames of a clip
FIXED = 4  # of a clip that is held out
KEPT = ("clip_id", "caption", "action", "direction", "licence", "author")


def frames_of(clips: list[dict], train: bool) -> Iterator[dict]:
    """Rows of single frames: image, parts, and what is `KEPT` of the clip."""
    rng = random.Random(0)
    for clip in clips:
        strips = {"image": clip["strip"], "parts": clip["parts"]}
        opened = {name: Image.open(io.BytesIO(strip)) for name, strip in strips.items()}
        for frame in sorted(rng.sample(range(clip["frames"]), OF_TRAINING)) if train else [FIXED]:
            shown = {name: cell(strip, frame) for name, strip in opened.items()}
            yield {**shown, **{name: clip[name] for name in KEPT}, "frame": frame}


def cell(strip: Image.Image, place: int) -> dict:
    """A frame of a strip, as a PNG in a table."""
    file = io.BytesIO()
    strip.crop((place * SIDE, 0, (place + 1) * SIDE, SIDE)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def main() -> None:
    """Write both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the clips")
    parser.add_argument("out", type=Path, help="folder for train.parquet and validation.parquet")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation"):
        clips = pq.read_table(options.data / f"clips-{part}.parquet").to_pylist()
        pq.write_table(pa.Table.from_pylist(list(frames_of(clips, part == "train"))), options.out / f"{part}.parquet")


if __name__ == "__main__":
    main()
