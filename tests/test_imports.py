"""Who imports whom, and what a cheap command must not import."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"attndiff": "attndiff", "attndiff.pipelines": "pipelines", "attndiff.training": "training"}
# Parts of the package that put everything together, as scripts do.
OUTER = ("attndiff.cli", "attndiff.demo", "attndiff.evaluation", "attndiff.quickstart", "attndiff.report")
# Parts of the core that open pipelines.
OPENERS = ("attndiff.hub", "attndiff.sampling")


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if "assets" not in parts:
                found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imported(path: Path) -> set[str]:
    """Names of modules that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
    return names


def files() -> list[Path]:
    """All Python files of ours."""
    folders = ("attndiff", "pipelines", "training", "scripts", "tests")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_nothing_imports_a_second_copy():
    for path in files():
        top = {name.split(".")[0] for name in imported(path)}
        assert not top & {"pipelines", "training"}, path


@pytest.mark.parametrize("name", modules())
def test_imports_run_one_way(name):
    names = imported(modules()[name])
    if name.startswith("attndiff.pipelines"):
        assert not {n for n in names if n.startswith(("attndiff.training", *OUTER))}
    elif name.startswith("attndiff.training"):
        launcher = name == "attndiff.training.train"
        assert launcher or not {n for n in names if n.startswith(OUTER)}
    elif not name.startswith(OUTER):
        above = ("attndiff.training", *OUTER, *(() if name in OPENERS else ("attndiff.pipelines",)))
        assert not {n for n in names if n.startswith(above)}


def test_the_wheel_has_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(settings["packages"])
    assert listed == {name for name, path in modules().items() if path.name == "__init__.py"}
    for package, folder in PACKAGES.items():
        assert settings["package-dir"].get(package, package) == folder


def loaded(code: str) -> set[str]:
    """Top-level modules in a fresh process after some code."""
    script = f"{code}\nimport sys\nprint('loaded:', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rsplit("loaded:", 1)[1].split())


HEAVY = {"torch", "diffusers", "transformers", "datasets", "accelerate", "matplotlib", "numpy", "pandas"}


def test_importing_attndiff_and_asking_for_help_is_cheap():
    assert not loaded("import attndiff\nfrom attndiff.cli import main\nmain(['--help'])") & HEAVY


def test_the_doctor_imports_no_diffusers(tmp_path):
    from commands import make_images

    images = make_images(tmp_path / "images", count=4)
    code = f"from attndiff.cli import main\nmain(['doctor'])\nmain(['doctor', {str(images)!r}, 'size=16'])"
    assert not loaded(code) & {"diffusers", "transformers", "accelerate"}
