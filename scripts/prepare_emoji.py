"""Make the bundled emoji subset: 32 px, permissive licences only, with the project's split.

    python scripts/prepare_emoji.py SOURCE_FOLDER attndiff/assets/emoji32

SOURCE_FOLDER holds `train.parquet`, `validation.parquet` (64 px RGBA with caption, style, group, keywords, codepoints,
family and license columns). What comes out:

- four styles whose licences allow redistribution: Fluent 3D and Fluent Flat (MIT), Noto (Apache-2.0, flags public
  domain) and Twemoji (CC-BY-4.0). Fluent Color is left out: at 32 px it repeats Fluent 3D.
- the source's own held-out families stay held out, but for one: "pizza", a word the published grid shows and that no
  training family teaches, was moved to training before anything was trained, and is never scored as held out.
- every image resampled with premultiplied alpha and stored as lossless WebP.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

STYLES = {"fluent_3d": "fluent 3d", "fluent_flat": "fluent flat", "noto": "noto", "twemoji": "twemoji"}
MOVED_TO_TRAIN = {"pizza"}
COLUMNS = ["caption", "style", "group", "keywords", "codepoints", "family", "license"]


def captions(row: dict) -> list[str]:
    """What a user may type for an image: its name and style, with up to two groups of three keywords between them."""
    keywords = [word for word in row["keywords"].split("|") if word and word != row["caption"]]
    groups = [" ".join(keywords[i : i + 3]) for i in range(0, min(len(keywords), 6), 3)]
    return [f"{', '.join([row['caption'], *extra])}, {row['style']}" for extra in [[], *([g] for g in groups)]]


def shrink(data: bytes) -> bytes:
    """A 64 px image as a 32 px lossless WebP."""
    image = Image.open(io.BytesIO(data)).convert("RGBA").convert("RGBa")
    image = image.resize((32, 32), Image.Resampling.LANCZOS).convert("RGBA")
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def main(source: Path, out: Path) -> None:
    """Read both source files, split, shrink and write."""
    rows = {"train": [], "validation": []}
    for split in rows:
        for row in pq.read_table(source / "emoji64" / f"{split}.parquet").to_pylist():
            if row["style"] not in STYLES:
                continue
            row["style"] = STYLES[row["style"]]
            rows["train" if row["caption"] in MOVED_TO_TRAIN else split].append(row)
    out.mkdir(parents=True, exist_ok=True)
    image_type = {"_type": "Image"}
    string = {"_type": "Value", "dtype": "string"}
    features = {"image": image_type, "captions": {"_type": "List", "feature": string}, **dict.fromkeys(COLUMNS, string)}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, kept in rows.items():
        kept.sort(key=lambda row: (row["style"], row["codepoints"]))
        table = {"image": [{"bytes": shrink(row["image"]["bytes"]), "path": None} for row in kept]}
        table["captions"] = [captions(row) for row in kept]
        table |= {c: [row[c] for row in kept] for c in COLUMNS}
        pq.write_table(pa.table(table).replace_schema_metadata(meta), out / f"{split}.parquet", compression="zstd")
        print(split, len(kept), (out / f"{split}.parquet").stat().st_size)
    for licence in (source / "LICENSES").iterdir():
        if "openmoji" not in licence.name:
            (out / "LICENSES").mkdir(exist_ok=True)
            shutil.copy(licence, out / "LICENSES" / licence.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
