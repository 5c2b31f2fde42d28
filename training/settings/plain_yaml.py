"""YAML as people write it, each value read as what the setting that it is for is declared to be.

A text setting takes what was written, be it ``2024``, ``yes`` or ``010``. Elsewhere ``1e-3`` is a number, which YAML
1.1 (so PyYAML) reads as text for want of a dot, and nothing is an octal or sexagesimal number or a date.
"""

import re
from typing import Any, get_origin

import yaml

from attndiff.errors import UserError
from attndiff.settings import NUMBERS, kind_of_items, kind_of_key, kinds_of, sections_of

_TAG = "tag:yaml.org,2002:"
_NULL = f"{_TAG}null"
_PLAIN = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null")}
_FLOAT = (
    r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
    r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"
)
# What a text without quotes stands for: name of the tag, pattern, first characters.
_SCALARS = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """Reads."""

    yaml_implicit_resolvers: dict = {}  # ours alone

    def read(self, kind: object) -> Any:
        """The one document of the text as what it is declared to be."""
        node = self.get_single_node()
        if node is None:
            return None
        _check_keys_once(node, set())
        return self._value(node, kind)

    def _value(self, node: yaml.Node, kind: object) -> Any:
        kinds = kinds_of(kind)
        if isinstance(node, yaml.ScalarNode) and str in kinds and node.tag in _PLAIN - {_NULL}:
            return self._text(node, kinds)
        if isinstance(node, yaml.SequenceNode) and kind_of_items(kind) is not Any:
            return [self._value(entry, kind_of_items(kind)) for entry in node.value]
        if isinstance(node, yaml.MappingNode) and (sections_of(kind) or dict in map(get_origin, kinds)):
            self.flatten_mapping(node)
            return {self._key(key): self._value(value, kind_of_key(kind, key.value)) for key, value in node.value}
        return self.construct_object(node, deep=True)

    def _key(self, node: yaml.Node) -> str:
        """A key as it is written."""
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(problem="a key must be a text", problem_mark=node.start_mark)
        return node.value

    def _text(self, node: yaml.ScalarNode, kinds: set) -> str | int | float:
        """What was written, but for a number where the setting may be one."""
        value = self.construct_object(node)
        return value if type(value) in kinds & NUMBERS or (type(value) is int and float in kinds) else node.value


class _Dumper(yaml.SafeDumper):
    """Writes, with quotes around a text that would be read as a number."""


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"({_pattern})\Z"), [c.strip("\0") for c in _first])
_Dumper.add_implicit_resolver(f"{_TAG}float", re.compile(rf"({_FLOAT})\Z"), list("-+0123456789."))


def read_yaml(text: str, kind: object, origin: str) -> Any:
    """What a text holds.

    Args:
        text: YAML.
        kind: Annotation of what it is to be: each text in it is taken as written where that asks for text.
        origin: What messages call the text.

    Raises:
        UserError: If it is no YAML, or a key in it is given twice.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.read(kind)
        finally:
            loader.dispose()
    except _RepeatedKey as error:
        raise UserError(f"{origin}: {error}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from None


def read_value(text: str, kind: object, origin: str) -> Any:
    """What was typed for one setting: as it is where that is a text, and else YAML.

    Args:
        text: As typed; nothing and ``null`` are None where the setting may be.
        kind: Its annotation.
        origin: What messages call the text.

    Raises:
        UserError: If it is to be YAML and is none.
    """
    kinds = kinds_of(kind)
    if str not in kinds:
        return read_yaml(text, kind, origin)
    if text in ("", "null") and type(None) in kinds:
        return None
    if kinds & NUMBERS and re.fullmatch(r"[-+]?\.?\d[-+.\w]*", text):
        return read_yaml(text, kind, origin)
    return text


def write_yaml(values: dict[str, Any]) -> str:
    """The text of which `read_yaml` makes the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


class _RepeatedKey(Exception):
    """A key that stands twice in one mapping, as a sentence."""


def _check_keys_once(node: yaml.Node, seen: set[int]) -> None:
    """Raise `_RepeatedKey` for the first one in a node; YAML would silently take the last of the two."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    lines: dict[str, int] = {}
    for entry in node.value:
        key, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"line {line}" if line == lines[key.value] else f"lines {lines[key.value]} and {line}"
                raise _RepeatedKey(f"{key.value} is given twice, in {where}; leave one of them out")
            lines[key.value] = line
        _check_keys_once(value, seen)
