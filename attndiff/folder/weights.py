"""Files of a component's weights: one whole file, or shards beside an index that says which tensor lies in which.

A variant such as bf16 has its own: ``model.bf16.safetensors``, or ``model.bf16-00001-of-00002.safetensors`` and so on
with ``model.safetensors.index.bf16.json``. Of both, diffusers opens the shards and transformers the whole file.
"""

import glob
import json
import re
from pathlib import Path

SHARD_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
SHARD_INDEX = re.compile(r"([^.]+)\.safetensors\.index(|\..+)\.json")
PLAIN_FILE = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)  # leads to no other folder


def shard_indexes(folder: Path) -> list[Path]:
    """The indexes of a component's folder."""
    return sorted(path for path in folder.glob("*.json") if SHARD_INDEX.fullmatch(path.name))


def shards_of(index) -> dict[str, str] | None:
    """The file of every tensor by an index as it was read; None if it is no index of files beside it."""
    places = index.get("weight_map") if isinstance(index, dict) and isinstance(index.get("metadata"), dict) else None
    if not isinstance(places, dict) or not places:
        return None
    plain = all(isinstance(name, str) and PLAIN_FILE.fullmatch(name) for name in places.values())
    return places if plain else None


def same_weights(file: str) -> list[str]:
    """Patterns of all names that the same variant of the same weights may have: whole file, index, shards.

    Args:
        file: One of these names.
    """
    match = SHARD_INDEX.fullmatch(file) or SHARD_FILE.fullmatch(file)
    stem = "".join(match.groups()) if match else file.removesuffix(".safetensors")
    base, dot, variant = stem.partition(".")
    names = f"{stem}.safetensors", f"{base}.safetensors.index{dot}{variant}.json"
    return [*map(glob.escape, names), f"{glob.escape(stem)}-?????-of-?????.safetensors"]


def remove_stale_weights(folder: Path) -> None:
    """Leave, of what was just saved into a component's folder, the new files only.

    Neither diffusers nor transformers takes away the index when it saves a whole file, nor the whole file when it saves
    shards. They do take away earlier shards, so that an index whose shards are not all there is of an earlier time.
    """
    for index in shard_indexes(folder):
        try:
            shards = set((shards_of(json.loads(index.read_text(encoding="utf-8"))) or {}).values())
        except ValueError:
            shards = set()
        if shards and all((folder / name).is_file() for name in shards):
            kept = {index.name, *shards}
        else:
            kept = {"".join(SHARD_INDEX.fullmatch(index.name).groups()) + ".safetensors"}
        for path in [path for pattern in same_weights(index.name) for path in folder.glob(pattern)]:
            if path.name not in kept:
                path.unlink()
