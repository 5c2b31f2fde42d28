"""Folders of images to rows: class folders, a metadata file, or captions beside the images."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from attndiff.data.pixels.slices import count_slices, is_volume
from attndiff.data.tables.listing import CAPTION_SUFFIXES, IMAGE_SUFFIXES, Listing, is_document
from attndiff.data.tables.metadata import METADATA_FILES, metadata_rows, read_text
from attndiff.data.tables.names import NameIndex, folded
from attndiff.data.tables.splits import divide, part_of
from attndiff.errors import UserError

LeftOut = list[tuple[str, str]]
NO_PART = "in no folder that is called a part of the data"
WITHOUT_IMAGE = "there is no image of that name"


def folder_parts(listing: Listing, named_parts: bool | None) -> dict[str, Listing]:
    """What belongs to each part of a folder, by the names of folders in it; with ``""`` for a folder without parts.

    Folders that stand at its top and are parts, all of them, are folders of their own, metadata and class folders in
    them included. Where such names lie deeper, an image belongs to the part that a folder above it is called.

    Raises:
        UserError: If some images are in such a folder and others are not, and ``named_parts`` is None.
    """
    images = listing.images or metadata_names(listing)
    of = {name: next(filter(None, map(part_of, name.split("/")[:-1])), None) for name in images}
    parts = divide(of, listing.root, named_parts)
    if set(parts) == {""}:
        return {"": listing}
    top = {name.split("/")[0] for name in images}
    parts_of_top = [part_of(name) for name in top]
    if not has_metadata(listing) and None not in parts_of_top and len(set(parts_of_top)) == len(top):
        return {part_of(name): _with_rest(listing.under(name), listing, top) for name in sorted(top)}
    unnamed = [(name, NO_PART) for name in parts.pop("", [])]
    return {
        part: replace(
            listing,
            images=names,
            left_out=listing.left_out + unnamed,
            elsewhere=[name for name in images if of[name] != part],
            with_parts=True,
        )
        for part, names in parts.items()
    }


def _with_rest(inside: Listing, whole: Listing, parts: set[str]) -> Listing:
    """What stands in a part's folder, and by name what stands beside all parts."""
    beside = [*whole.captions, *whole.tables]
    rest = [*whole.left_out, *((name, NO_PART) for name in beside)]
    inside.left_out += [(name, reason) for name, reason in rest if name.split("/")[0] not in parts]
    return inside


def metadata_names(listing: Listing) -> list[str]:
    """Paths of the metadata files of a folder."""
    return [name for name in listing.tables if folded(PurePosixPath(name).name) in METADATA_FILES]


def has_metadata(listing: Listing) -> bool:
    """Whether a metadata file stands at the top of a folder."""
    return any("/" not in name for name in metadata_names(listing))


def folder_rows(listing: Listing) -> tuple[list[dict], LeftOut]:
    """A row for every image of a folder, and files left out with their reasons.

    With a metadata file the rows are its rows. Otherwise they have "label", the name of the class folder, if the
    images lie in folders, and "text", the content of the text file beside the image, if there are such files:
    ``name.txt`` or ``name.caption``, or the same after the image's whole name, ``name.png.txt``.

    Raises:
        UserError: There are no images, or metadata cannot be used.
    """
    metadata = [name for name in metadata_names(listing) if "/" not in name]
    if not listing.images and not metadata:
        raise UserError(_no_images(listing))
    if len(metadata) > 1:
        raise UserError(f"{listing.root}: has {' and '.join(metadata)}, remove one of them")
    unread = [name for name in listing.tables if name not in metadata]
    left_out = listing.left_out + [(name, "not read beside images") for name in unread]
    if metadata:
        rows, others = _listed_rows(listing, metadata[0])
        return rows, left_out + others
    rows = [row for name in listing.images for row in _rows_of(name, listing.root)]
    _add_labels(rows, listing.with_parts)
    return rows, left_out + _add_captions(listing, rows)


def _rows_of(name: str, root: Path) -> list[dict]:
    """One row of an image; of a volume one a slice, which are one family: none is held out from its neighbours."""
    slices = count_slices(root / name) if is_volume(name) else 1
    if slices == 1:
        return [{"file_name": name}]
    return [{"file_name": name, "slice": index, "family": name} for index in range(slices)]


def _no_images(listing: Listing) -> str:
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    there = "".join(f"; {name}: {reason}" for name, reason in listing.left_out[:1])
    return f"{listing.root}: there are no images in this folder ({suffixes}){there}"


def _listed_rows(listing: Listing, metadata: str) -> tuple[list[dict], LeftOut]:
    """Rows of a metadata file whose images are there, names as they are on the disk."""
    rows, there, absent = metadata_rows(listing.root / metadata), NameIndex(listing.images), []
    found, known = [], {*dict(listing.left_out), *listing.elsewhere}
    for row in rows:
        stored = there.find(row["file_name"])
        if stored is not None:
            found.append({**row, "file_name": stored})
        elif row["file_name"] not in known:
            absent.append((row["file_name"], f"listed in {metadata}, but not there"))
    if not found:
        example = f", such as {listing.images[0]}" if listing.images else ""
        raise UserError(
            f"{listing.root / metadata}: none of the {len(rows)} images that it lists is there, such as "
            f"{rows[0]['file_name']!r}; file_name must be the path of an image in the folder{example}"
        )
    listed = {cell for row in found for cell in row.values() if isinstance(cell, str)}
    unlisted = [(name, f"not listed in {metadata}") for name in listing.images if name not in listed]
    return found, unlisted + absent


def _add_labels(rows: list[dict], with_parts: bool) -> None:
    """The class folder of each image, if there are folders: the first; with parts the first that tells images apart."""
    folders = [row["file_name"].split("/")[:-1] for row in rows]
    if not any(folders):
        return
    if with_parts:
        folders = [[name for name in path if part_of(name) is None] for path in folders]
        while all(len(path) > 1 for path in folders) and len({path[0] for path in folders}) == 1:
            folders = [path[1:] for path in folders]
    for row, path in zip(rows, folders, strict=True):
        row["label"] = path[0] if path else None


def _add_captions(listing: Listing, rows: list[dict]) -> LeftOut:
    """The text beside each image, if there are such files; those that belong to none are returned."""
    beside = NameIndex(listing.captions)
    # A name that is one image's to the letter is not another's whose name reads the same.
    taken = set(listing.captions).intersection(name for row in rows for name in _caption_names(row["file_name"]))
    read: set[str] = set()
    for row in rows:
        own = _caption_names(row["file_name"])
        found = [name for name in map(beside.find, own) if name in own or (name and name not in taken)]
        row["text"] = read_text(listing.root / found[0]) if found else None
        read.update(found[:1])
    if not read:
        for row in rows:
            del row["text"]
    unused = [name for name in listing.captions if name not in read and not is_document(name)]
    captions = NameIndex(read)
    return [(name, _why_unused(name, rows, captions)) for name in unused]


def _caption_names(image: str) -> list[str]:
    """Where the caption of an image may stand, the first that is there first."""
    stem = image[: -len(PurePosixPath(image).suffix)] if PurePosixPath(image).suffix else image
    return [start + suffix for suffix in CAPTION_SUFFIXES for start in (stem, image)]


def _why_unused(name: str, rows: list[dict], taken: NameIndex) -> str:
    stem = folded(str(PurePosixPath(name).with_suffix("")))
    another = next((s for s in CAPTION_SUFFIXES if taken.find(stem + s) not in (None, name)), None)
    return f"the {another} beside it is the caption" if another else WITHOUT_IMAGE
