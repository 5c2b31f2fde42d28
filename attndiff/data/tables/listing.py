"""What stands in a folder: images, what is read beside them, and everything else by name and reason."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from attndiff.data.tables.names import is_text, printable
from attndiff.errors import UserError

IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".tga", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif", ".jxl", ".mpo"),
    *(".npy", ".npz", ".dcm", ".nii"),
}
CAPTION_SUFFIXES = (".txt", ".caption")
TABLE_SUFFIXES = {".csv", ".jsonl", ".parquet", ".tar"}
# Put there by file managers.
JUNK = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "icon\r"}
# About the data, and no part of it.
DOCUMENT = re.compile(r"(readme|licen[cs]e|notice|attribution|citation|copying|authors|changelog)", re.IGNORECASE)
DOCUMENT_SUFFIXES = ("", ".md", ".txt", ".rst", ".pdf")
# Pictures of a kind that is not read.
OTHER_PICTURES = {
    *(".svg", ".svgz", ".psd", ".xcf", ".ai", ".eps", ".pdf", ".kra", ".ico", ".icns", ".exr", ".hdr", ".dds"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".mp4", ".mov", ".avi", ".webm", ".mkv"),
    *(".czi", ".nd2", ".lif", ".svs", ".ndpi", ".mrc", ".h5", ".hdf5", ".fits"),
}
# Tables of a kind that is not read, such as `datasets.Dataset.save_to_disk` writes.
OTHER_TABLES = {".arrow", ".feather", ".xlsx", ".xls", ".ods", ".tfrecord", ".lmdb"}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
# In a folder, each says that this program wrote it.
OF_A_RUN, OF_A_MODEL = ("run.lock", "log.jsonl", "learned"), "model_index.json"


@dataclass
class Listing:
    """What stands in a folder and below it, by path relative to it, sorted.

    Args:
        root: The folder.
        images: What is called an image.
        captions: Text files that may belong to images.
        tables: Metadata and shards.
        left_out: Everything else, with the reason.
        elsewhere: Images of other parts of the data.
        with_parts: Whether some of the folders are called parts, and are no classes.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    with_parts: bool = False

    def under(self, folder: str) -> "Listing":
        """What stands in a folder below, relative to that one."""
        start = f"{folder}/"

        def inside(names: list[str]) -> list[str]:
            return [name.removeprefix(start) for name in names if name.startswith(start)]

        left_out = [(name.removeprefix(start), reason) for name, reason in self.left_out if name.startswith(start)]
        kept = (inside(names) for names in (self.images, self.captions, self.tables))
        return Listing(self.root / folder, *kept, left_out)

    def ended_by(self, suffix: str) -> list[Path]:
        """Tables of one kind."""
        return [self.root / name for name in self.tables if name.strip().lower().endswith(suffix)]


def list_folder(root: Path) -> Listing:
    """List a folder, links that lead to somewhere inside it followed once.

    Raises:
        UserError: If a folder cannot be listed, or a link leads out.
    """
    listing, seen = Listing(root), set()
    waiting = [("", root)]
    while waiting:
        prefix, folder = waiting.pop()
        real = os.path.realpath(folder)
        entries = [] if real in seen else _entries(folder)
        why_not = "a link to a folder that is read already" if real in seen else _why_no_data(entries)
        seen.add(real)
        if prefix and why_not:
            listing.left_out.append((prefix.rstrip("/"), why_not))
            continue
        for entry in entries:
            _take(entry, prefix, listing, waiting)
    for names in (listing.images, listing.captions, listing.tables, listing.left_out):
        names.sort()
    return listing


def _take(entry: os.DirEntry, prefix: str, listing: Listing, waiting: list[tuple[str, Path]]) -> None:
    """Put a file where it belongs, and a folder among those that are yet to be listed."""
    path = f"{prefix}{entry.name}"
    if entry.is_symlink():
        _refuse_outside(entry, listing.root)
    if not _is_kind(entry.is_dir):
        _sort_in(entry.name, path, listing, None if _is_kind(entry.is_file) else _why_no_file(entry))
    elif _is_listed(entry.name, path, listing):
        # Real folders before links, so that what both lead to has its own name.
        waiting.insert(0 if entry.is_symlink() else len(waiting), (f"{path}/", Path(entry.path)))


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{printable(str(folder))}: the folder cannot be listed ({error.strerror}), make it readable or move it"
        ) from None


def _is_kind(asked: Callable[[], bool]) -> bool:
    """What an entry answers about itself; links in a circle, which cannot be asked, are of no kind."""
    try:
        return asked()
    except OSError:
        return False


def _why_no_file(entry: os.DirEntry) -> str:
    """Opening a pipe would wait for ever."""
    return "a link that leads nowhere" if entry.is_symlink() else "no file but a pipe, a socket or a device"


def _why_no_data(entries: list[os.DirEntry]) -> str | None:
    """Why nothing in a folder is data; None where it may be."""
    names = {entry.name for entry in entries}
    if not names:
        return "an empty folder"
    if "config.json" in names and names & set(OF_A_RUN):
        return "the folder of a run, whose pictures are drawn and not data"
    return "the folder of a model" if OF_A_MODEL in names else None


def _refuse_outside(entry: os.DirEntry, root: Path) -> None:
    # Unlike `Path.resolve`, this bears links in a circle.
    if not Path(os.path.realpath(entry.path)).is_relative_to(os.path.realpath(root)):
        raise UserError(f"{entry.path}: a link out of {root}, copy what it points to into the folder or remove it")


def _is_listed(name: str, path: str, listing: Listing) -> bool:
    """Whether a folder is looked into; if not, it is named."""
    if name.startswith(".") or name == "__MACOSX":
        return False
    if not is_text(name):
        listing.left_out.append((printable(path), "the folder's name is not UTF-8, rename it"))
        return False
    return True


def _sort_in(name: str, path: str, listing: Listing, no_file: str | None) -> None:
    """Put a file where it belongs, or say why it is none."""
    called = name.strip().lower()
    suffix = PurePosixPath(called.removesuffix(".gz") if called.endswith(".nii.gz") else called).suffix
    if called in JUNK or (name.startswith(".") and suffix not in IMAGE_SUFFIXES):
        return
    if name.startswith("."):
        listing.left_out.append((printable(path), "its name begins with a dot, as those of hidden files do"))
    elif not is_text(name):
        listing.left_out.append((printable(path), "its name is not UTF-8, rename it"))
    elif no_file:
        listing.left_out.append((path, no_file))
    elif suffix in IMAGE_SUFFIXES:
        listing.images.append(path)
    elif suffix in CAPTION_SUFFIXES:
        listing.captions.append(path)
    elif suffix in TABLE_SUFFIXES:
        listing.tables.append(path)
    elif not is_document(name):
        listing.left_out.append((path, _why_not(suffix)))


def is_document(name: str) -> bool:
    """Whether a file is about the data: README, LICENSE and the like."""
    path = PurePosixPath(name.strip())
    return path.suffix.lower() in DOCUMENT_SUFFIXES and DOCUMENT.search(path.stem) is not None


def _why_not(suffix: str) -> str:
    if suffix in ARCHIVES:
        return f"a {suffix} archive is not looked into, unpack it"
    if suffix in OTHER_TABLES:
        return f"{suffix} files are not read, save it as parquet"
    return f"{suffix} files are not read, convert it to PNG" if suffix in OTHER_PICTURES else "no image by its name"
