"""One self-contained file out of the modules that define a class, for the folder that its weights are saved in.

The modules follow each other in the order in which they need each other, without the imports between them; what they
import from elsewhere stands at the top. The same modules always give the same file, whose name carries its hash.
"""

import ast
import functools
import importlib.util
import sys
from pathlib import Path

from attndiff.folder.code_names import code_hash

HEADER = '''"""{title}, in one file that needs torch, diffusers and transformers only.

SPDX-License-Identifier: Apache-2.0
"""
'''


def bundle_component(cls: type) -> tuple[str, str]:
    """File name and source of the self-contained file that defines a class.

    Args:
        cls: A class of a module whose imports stand at its top level, those from attndiff as
            ``from attndiff.x import Name``.

    Raises:
        ValueError: If two of the modules give one name to different things, or import in another way.
    """
    return _bundle(cls.__module__, cls.__name__)


@functools.lru_cache
def _bundle(module: str, class_name: str) -> tuple[str, str]:
    imports: dict[str, str] = {}  # local name -> import statement
    bodies: list[str] = []
    defined: dict[str, str] = {}  # top-level name -> source
    for name in _in_order(module):
        source = _source(name)
        tree = ast.parse(source)
        for node in tree.body:
            _collect_imports(node, imports, name)
            _collect_names(node, source, defined, name)
        bodies.append(f"# {name}\n\n" + _without_imports(tree, source))
    clashing = sorted(imports.keys() & defined.keys())
    if clashing:
        raise ValueError(f"{module}: {', '.join(clashing)} is imported by one module and defined by another.")
    lines = sorted(set(imports.values()), key=lambda line: (line.startswith("from"), line))
    text = "\n".join([HEADER.format(title=class_name), *lines]) + "\n\n\n" + "\n\n\n".join(bodies) + "\n"
    return f"{module.rpartition('.')[2]}_{code_hash(text)}.py", text


def _source(module: str) -> str:
    path = sys.modules[module].__file__ if module in sys.modules else importlib.util.find_spec(module).origin
    return Path(path).read_text(encoding="utf-8")


def _is_internal(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == "attndiff"


def _in_order(module: str) -> list[str]:
    """The module and all of attndiff's that it needs, each after those it needs itself."""
    order: list[str] = []

    def visit(name: str) -> None:
        for node in ast.parse(_source(name)).body:
            if _is_internal(node) and node.module not in order:
                visit(node.module)
        if name not in order:
            order.append(name)

    visit(module)
    return order


def _collect_imports(node: ast.stmt, imports: dict[str, str], module: str) -> None:
    """Note what a top-level import from outside attndiff binds."""
    if _is_internal(node):
        if any(alias.asname for alias in node.names):
            raise ValueError(f"{module}: an import from attndiff must keep the name.")
        return
    if isinstance(node, ast.Import):
        lines = {a.asname or a.name: f"import {a.name}" + (f" as {a.asname}" if a.asname else "") for a in node.names}
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise ValueError(f"{module}: relative imports do not work in a pipeline folder.")
        lines = {
            a.asname or a.name: f"from {node.module} import {a.name}" + (f" as {a.asname}" if a.asname else "")
            for a in node.names
        }
    else:
        return
    for name, line in lines.items():
        if imports.setdefault(name, line) != line:
            raise ValueError(f"{module}: {line!r} clashes with {imports[name]!r} of another module.")


def _collect_names(node: ast.stmt, source: str, defined: dict[str, str], module: str) -> None:
    """Note what a top-level statement defines; the same statement in two modules is fine."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        names = [node.name]
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    else:
        return
    text = ast.get_source_segment(source, node)
    for name in names:
        if defined.setdefault(name, text) != text:
            raise ValueError(f"{module}: {name} is defined differently in another module that goes into the same file.")


def _without_imports(tree: ast.Module, source: str) -> str:
    """The source of a module without its top-level imports."""
    lines = source.splitlines()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line for line in lines if line is not None).strip("\n")
