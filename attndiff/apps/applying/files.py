"""Which pictures a command is given, and where what becomes of each is written."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attndiff.data.tables.listing import list_folder
from attndiff.errors import UserError

SUFFIXES = (".png", ".tif")  # of results: the second of what no PNG holds


@dataclass(frozen=True)
class Picture:
    """A file that was named.

    Args:
        path: Where it is.
        name: What it is called in a folder of results, relative and without its suffix.
    """

    path: Path
    name: Path


def find_pictures(given: Sequence[str], made: str) -> list[Picture]:
    """Pictures of files, folders and patterns, each once.

    Args:
        given: Paths, or patterns with ``*``, of which ``**`` stands for folders.
        made: How results are called that lie beside their pictures, ``name.made.png``: in folders and patterns these
            are no pictures.

    Raises:
        UserError: If nothing is given, or there are none under one of them.
    """
    if not given:
        raise UserError("PICTURE is missing: name a file, a folder or a pattern.")
    found: dict[Path, Picture] = {}
    for one in given:
        path = Path(one).expanduser()
        if path.is_dir():
            pictures = [Picture(path / name, Path(name).with_suffix("")) for name in list_folder(path).images]
        elif path.is_file():
            pictures = [Picture(path, Path(path.stem))]
        else:
            paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            pictures = [Picture(one, Path(one.stem)) for one in paths if one.is_file()]
        if not path.is_file():
            pictures = [picture for picture in pictures if not picture.name.name.endswith(f".{made}")]
        if not pictures:
            what = "has no pictures in it" if path.is_dir() else "is no file or folder, and no pattern of any"
            raise UserError(f"{one} {what}.")
        found |= {picture.path.resolve(): picture for picture in pictures if picture.path.resolve() not in found}
    return list(found.values())


def place_results(pictures: Sequence[Picture], out: Path | None, made: str, count: int) -> list[list[Path]]:
    """Where the results of each picture go, ``count`` each: into a folder, or beside it under a name of their own.

    Raises:
        UserError: If a result would take the place of a picture, or of another's result.
    """
    taken: dict[Path, Path] = {picture.path.resolve(): picture.path for picture in pictures}
    places = []
    for picture in pictures:
        base = picture.path.parent / f"{picture.path.stem}.{made}" if out is None else out / picture.name
        ends = [""] if count == 1 else [f"-{i:02d}" for i in range(count)]
        places.append([base.with_name(f"{base.name}{end}.png") for end in ends])
        for place in places[-1]:
            if place.resolve() in taken:
                raise UserError(
                    f"{place} would be what becomes of {picture.path}, and is or comes of {taken[place.resolve()]}: "
                    "give the pictures names of their own, or choose another folder with --out."
                )
            taken[place.resolve()] = picture.path
    return places


def is_written(place: Path) -> bool:
    """Whether a result is there, as PNG or as whatever else holds its values."""
    return any(place.with_suffix(suffix).exists() for suffix in SUFFIXES)
