"""YAML as people write it: ``1e-3`` is a number, which YAML 1.1 (and so PyYAML) reads as text for want of a dot."""

import re
from typing import Any

import yaml

from attndiff.errors import UserError

_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_FLOAT = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """Reads."""


class _Dumper(yaml.SafeDumper):
    """Writes, with quotes around a text that would be read as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789"))


def read_yaml(text: str) -> Any:
    """What a text holds; raises `yaml.YAMLError` where it is no YAML."""
    return yaml.load(text, Loader=_Loader)


def write_yaml(values: dict[str, Any]) -> str:
    """The text of which `read_yaml` makes the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_override(override: str, example: str) -> tuple[str, Any]:
    """Key and value of ``KEY=VALUE``.

    Raises:
        UserError: If it has no such form, or its value is no YAML.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"setting {override!r} must have the form KEY=VALUE, such as {example}.")
    try:
        return key, read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"setting {override!r} is not valid YAML: {' '.join(str(error).split())}") from None
