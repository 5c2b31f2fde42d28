"""Text is read and written as UTF-8 wherever it is: Windows' own encoding knows few of the words in captions."""

import ast

from places import ROOT

FOLDERS = ("attndiff", "pipelines", "training", "scripts")


def unspecified(source: str) -> list[int]:
    """Lines that read or write a text without naming its encoding; the linter sees only some of them."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [call for call in calls if any(keyword.arg == "encoding" for keyword in call.keywords)]
    return [call.lineno for call in calls if call not in named and reads_text(call)]


def reads_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a file as text."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    return isinstance(call.func, ast.Name) and call.func.id == "open" and not (len(call.args) > 1 and is_binary(call))


def is_binary(call: ast.Call) -> bool:
    """Whether `open` is given a mode with a b in it."""
    return isinstance(call.args[1], ast.Constant) and "b" in call.args[1].value


def test_the_search_finds_what_names_no_encoding():
    assert unspecified("a.read_text()\nb.write_text('x')\nopen(c)\nopen(c, 'w')") == [1, 2, 3, 4]
    assert not unspecified("a.read_text(encoding='utf-8')\nopen(c, 'rb')\nopen(c, encoding='utf-8')")


def test_every_text_names_its_encoding():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "assets" not in path.parts]
    found = [f"{path}:{line}" for path in paths for line in unspecified(path.read_text(encoding="utf-8"))]
    assert not found
