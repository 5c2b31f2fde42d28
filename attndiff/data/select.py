"""Which rows of a data set are read: filters, and what is held out."""

import hashlib

from attndiff.data.config import DataConfig
from attndiff.data.tables.opening import Source
from attndiff.data.tables.table import ImageTable, require_column
from attndiff.errors import UserError


class Tables:
    """The tables of a configuration's parts; data that several are of is listed and read once."""

    def __init__(self):
        self._sources: dict[tuple, Source] = {}

    def of(self, config: DataConfig) -> ImageTable:
        """The table that holds a configuration's rows, before filters.

        Raises:
            MissingPart: The data has no such part.
            UserError: The data cannot be read.
        """
        path, part = config.path, config.split
        if part == "validation" and isinstance(config.validation, str):
            path = config.validation
        elif part == "validation" and config.validation is not None:
            part = "train"
        whole = config.split == "validation" and path != config.path
        hub_config = config.config if path == config.path else None
        filtered = (*filter_columns(config.where, config.exclude),)
        asked = path, config.image_column, config.named_parts, filtered, hub_config, config.learn_drawn
        if asked not in self._sources:
            self._sources[asked] = Source(*asked)
        return self._sources[asked].table(part, whole).with_images(config.columns)


def select_rows(table: ImageTable, config: DataConfig) -> tuple[list[int], list[int]]:
    """Rows that pass the filters, and of these the ones in the part asked for; raises `UserError` if there are none."""
    passing = _passing(table, config)
    if config.validation is None or isinstance(config.validation, str):
        return passing, passing
    families = table.families
    held = held_out([families[row] for row in passing], config.validation)
    wanted = config.split == "validation"
    chosen = [row for row, is_held in zip(passing, held, strict=True) if is_held == wanted]
    if not chosen:
        kind = "image" if families == table.names else "family"
        advice = "leave it out" if len(set(families)) == 1 else "make it smaller"
        raise UserError(
            f"{table.origin}: validation={config.validation} leaves no image to train on, as "
            f"{f'there is one {kind}' if advice == 'leave it out' else 'all fall into it'}; {advice}"
        )
    return passing, chosen


def _passing(table: ImageTable, config: DataConfig) -> list[int]:
    columns = filter_columns(config.where, config.exclude)
    for column in columns:
        require_column("where, exclude", column, table.columns, table.origin)
    if not len(table):
        raise UserError(f"{table.origin}: has no rows, name data that holds images")
    rows = range(len(table)) if table.of_part is None else table.of_part
    values = {column: table.column(column) for column in columns}
    passing = [
        row
        for row in rows
        if is_kept({column: values[column][row] for column in columns}, config.where, config.exclude)
    ]
    if not passing:
        raise UserError(f"{table.origin}: no row is left by where={config.where} and exclude={config.exclude}")
    return passing


def is_kept(row: dict, where: dict[str, list] | None, exclude: list[dict] | None) -> bool:
    """Whether a row passes the filters; numbers and their text are the same, as in a CSV file."""
    if any(not _matches(row[column], allowed) for column, allowed in (where or {}).items()):
        return False
    return not any(all(_matches(row[column], value) for column, value in entry.items()) for entry in exclude or [])


def _matches(value: object, allowed: object) -> bool:
    allowed = allowed if isinstance(allowed, (list, tuple)) else [allowed]
    return value in allowed or str(value) in [str(entry) for entry in allowed]


def filter_columns(where: dict[str, list] | None, exclude: list[dict] | None) -> list[str]:
    """Columns that the filters name."""
    return list(dict.fromkeys([*(where or {}), *(column for entry in exclude or [] for column in entry)]))


def held_out(keys: list[str], fraction: float) -> list[bool]:
    """Which rows are held out: those whose key hashes below the fraction, and never none of them.

    The same key always falls on the same side, so that growing data keeps its split and a family is never divided.
    """
    scores = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64 for key in keys]
    threshold = max(fraction, min(scores, default=0))
    return [score <= threshold for score in scores]
