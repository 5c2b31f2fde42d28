"""Targets of `fuzz` that change what input means, not its bytes: names, places, layouts, declared depths.

Each makes something sound of which the right answer is known, and checks that this comes out, or a named error.
"""

import random
import shutil
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from attndiff.data.pixels.normalize import Normalizer
from attndiff.data.tables.listing import JUNK
from attndiff.data.tables.opening import Source
from attndiff.data.tables.splits import NAMES, MissingPart, part_of

Case = Callable[[random.Random], None]

FOLDERS = ["cats", "dogs", "images", "trains", "testing ground", "Übung", "a b", "[x]", ".cache", "val2"]
FOLDERS += [name for names in NAMES.values() for name in names]
FILES = ["0.png", "a.PNG", "b.jfif", "c .jpeg", "é.png", unicodedata.normalize("NFD", "ü.png"), "x.tar.png", ".p.png"]
FILES += ["0.txt", "a.TXT", "b.caption", "a.PNG.txt", "notes.md", "Thumbs.db", "more.zip", "x", "old.csv", "m.parquet2"]
HELD_OUT = ("validation", "test")


def layouts(folder: Path) -> Case:
    """Folders of any layout: every file is read, or named, or of another part; what is held out is not trained on."""
    root = folder / "layout"

    def case(rng: random.Random) -> None:
        shutil.rmtree(root, ignore_errors=True)
        placed = set()
        for _ in range(rng.randint(1, 12)):
            place = [rng.choice(FOLDERS) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
            place = [name.upper() if rng.random() < 0.1 else name for name in place]
            path = root.joinpath(*place, rng.choice(FILES))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            placed.add(path.relative_to(root).as_posix())
        named_parts = rng.choice((None, None, True, False))
        tables = _tables(Source(str(root), "image", named_parts))
        _check_complete(placed, tables, root)
        if named_parts is not False and "train" in tables:
            trained = [_path(tables["train"], name, root) for name in tables["train"].names]
            first = [next(filter(None, map(part_of, name.split("/")[:-1])), None) for name in trained]
            assert not set(first) & set(HELD_OUT), f"held-out images are trained on: {trained}"

    return case


def _tables(source: Source) -> dict:
    """The tables of all parts that the data has."""
    tables = {}
    for part in NAMES:
        try:
            tables[part] = source.table(part, whole=False)
        except MissingPart as error:
            missing = error
    if not tables:
        raise missing
    return tables


def _path(table, name: str, root: Path) -> str:
    return (table.root / name).relative_to(root).as_posix()


def _check_complete(placed: set[str], tables: dict, root: Path) -> None:
    """Every file that was placed is a row, the caption of one, or left out by name, in some part."""
    told = set()
    for table in tables.values():
        told |= {_path(table, name, root) for name in table.names}
        told |= {_path(table, name, root) for name, _ in table.left_out} | {name for name, _ in table.left_out}
        if "text" in table.columns:  # which of the text files are read is what the tests of captions are about
            told |= {name for name in placed if name.lower().endswith((".txt", ".caption"))}
    hidden = {name for name in placed if any(part.startswith(".") for part in name.split("/")[:-1])}
    junk = {name for name in placed if name.split("/")[-1].lower() in JUNK}
    silent = placed - told - hidden - junk
    assert not silent, f"neither read nor named: {sorted(silent)}"


DEPTHS = {"uint8": 255, "uint16": 65535, "float32": 1.0}
COMPRESSIONS = [None, "lzw", "zlib", "zstd", "lzma", "packbits"]


def declared(folder: Path) -> Case:
    """TIFFs of any depth, byte order, compression, layout and photometric interpretation give the values meant."""
    file = folder / "declared.tif"

    def case(rng: random.Random) -> None:
        dtype, bands, size = rng.choice(list(DEPTHS)), rng.choice((1, 1, 2, 3, 5)), rng.choice((3, 8, 17))
        peak, white = DEPTHS[dtype], bands == 1 and rng.random() < 0.5
        values = np.random.default_rng(rng.randrange(2**32)).random((bands, size, size))
        values = values.astype(dtype) if dtype == "float32" else np.rint(values * peak).astype(dtype)
        stored = peak - values if white else values
        options = {"compression": rng.choice(COMPRESSIONS), "byteorder": rng.choice("<>")}
        options |= {"tile": (16, 16)} if rng.random() < 0.3 else {"rowsperstrip": rng.choice((1, 2, size))}
        options["photometric"] = "miniswhite" if white else "minisblack"
        if rng.random() < 0.5 or bands == 1:
            options["planarconfig"] = "separate" if bands > 1 else None
        else:
            stored, options["planarconfig"] = np.moveaxis(stored, 0, -1), "contig"
        tifffile.imwrite(file, np.squeeze(stored) if bands == 1 else stored, **options)
        asked = "L" if bands == 1 and rng.random() < 0.5 else bands if rng.random() < 0.9 else bands + 1
        read = Normalizer(size, asked).normalize(file).levels
        np.testing.assert_allclose(read, values, atol=1e-6 * peak)

    return case


def delimited(folder: Path) -> Case:
    """A metadata.csv as spreadsheets write it gives its captions, whatever stands in them."""
    import csv

    from attndiff.data.tables.folder import folder_rows
    from attndiff.data.tables.listing import list_folder

    root = folder / "delimited"
    root.mkdir()
    (root / "a.png").touch(), (root / "b.png").touch()
    odd = [
        *string.punctuation,
        "\u2028",
        "\x85",
        "\x0b",
        "\x0c",
        "\x1c",
        " ",
        "\t",
        "ü",
        "\u202e",
        "😀",
        "\n",
        '"',
        "'",
    ]

    def case(rng: random.Random) -> None:
        texts = ["".join(rng.choice([*odd, "word"]) for _ in range(rng.choice((1, 5, 40)))) for _ in range(2)]
        delimiter = rng.choice(",;\t")
        with open(root / "metadata.csv", "w", encoding=rng.choice(("utf-8", "utf-8-sig")), newline="") as out:
            ends, quotes = rng.choice(("\n", "\r\n")), rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
            writer = csv.writer(out, delimiter=delimiter, lineterminator=ends, quoting=quotes)
            writer.writerows([["file_name", "text"], ["a.png", texts[0]], ["b.png", texts[1]]])
            if rng.random() < 0.2:
                out.write(f'b.png{delimiter}"never closed\n')
        rows, _ = folder_rows(list_folder(root))
        assert [row["text"] for row in rows] == texts, rows

    return case
