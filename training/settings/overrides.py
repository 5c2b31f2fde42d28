"""Settings typed as ``KEY=VALUE``."""

from collections.abc import Iterable
from functools import reduce
from typing import Any

from attndiff.errors import UserError
from attndiff.settings import Section, kind_of_key
from attndiff.training.settings.plain_yaml import read_value


def apply_overrides(
    values: dict[str, Any], overrides: Iterable[str], section: type[Section], example: str = "optim.steps=2000"
) -> None:
    """Put settings into the nested dict of a section's.

    Args:
        values: Changed in place.
        overrides: Each ``KEY=VALUE``, the key dotted; the value is read as what the key is declared to be.
        section: What ``values`` are for.
        example: Of such a setting.

    Raises:
        UserError: If one has no such form, is no YAML where it has to be, or is given twice.
    """
    given = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"setting {override!r} must have the form KEY=VALUE, such as {example}.")
        if key in given:
            raise UserError(f"setting {key} is given twice: leave one of them out.")
        given.add(key)
        kind = reduce(kind_of_key, key.split("."), section)
        _put(values, key, read_value(text, kind, f"setting {override!r}"))


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:  # a section that is not given, or given as nothing
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise UserError(f"setting {key}: {parent} is a single value and has no {last!r}.")
    values[last] = value
