"""ARCHITECTURE.md speaks of what there is."""

import ast
import importlib
import re

import pytest
from places import ROOT

TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`([^`\n]+)`", TEXT)))
FOLDERS = ("attndiff", "pipelines", "training")


def defined() -> set[str]:
    """Names of all classes, functions, methods, fields and constants."""
    names = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            if "assets" not in path.parts:
                names |= defined_in(ast.parse(path.read_text(encoding="utf-8")))
    return names


def defined_in(tree: ast.Module) -> set[str]:
    """Names that a module or its classes define: ``name`` of both, and ``Class.name``."""
    names = set()
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
        own = {node.name for node in scope.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        own |= {node.target.id for node in scope.body if isinstance(node, ast.AnnAssign)}
        own |= {t.id for node in scope.body if isinstance(node, ast.Assign) for t in node.targets if hasattr(t, "id")}
        names |= own | ({f"{scope.name}.{name}" for name in own} if isinstance(scope, ast.ClassDef) else set())
    return names


DEFINED = defined()


def exists(name: str) -> bool:
    """Whether a name of the page is a path, something to import, or something that is defined."""
    if "/" in name:
        return (ROOT / name).exists()
    if name.startswith("attndiff."):
        return is_importable(name)
    return name in DEFINED or name == "model_index.json"  # a file of every saved folder


def is_importable(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return is_importable(module) and hasattr(importlib.import_module(module), last)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_every_name_exists(name):
    assert exists(name)


@pytest.mark.parametrize("name", ["attndiff/nowhere/", "attndiff.nowhere.load", "Nobody", "Trainer.fly"])
def test_what_is_not_there_is_noticed(name):
    assert not exists(name)


def test_it_is_one_page():
    assert len(TEXT.splitlines()) <= 90
