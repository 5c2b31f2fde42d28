"""Who imports whom, and what a cheap command must not import."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

import attndiff

PACKAGES = {"attndiff": "attndiff", "attndiff.pipelines": "pipelines", "attndiff.training": "training"}
# The floors of the core: a room imports rooms of the floors before its own, and itself.
FLOORS = (
    {"alpha", "auto_pipelines", "errors", "device", "clock", "drawn", "progress", "words"},
    {"paths"},
    {"viewing", "settings", "nn"},
    {"condition"},
    {"diffusion"},
    {"data"},
    {"tasks"},
    {"metrics", "lens"},
    {"folder"},
)
MODULES = 13  # of a folder at most
# What stands on the core; `attndiff.apps` is the only part of it that is above the two others.
ABOVE = {
    "attndiff.pipelines": (),
    "attndiff.training": (),
    "attndiff.apps": ("attndiff.pipelines", "attndiff.training"),
}


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
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
    return names


def named(path: Path) -> set[str]:
    """Names of modules that a file imports, and of what it imports from them, which may be modules too."""
    froms = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    return imported(path) | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def files() -> list[Path]:
    """All Python files of ours."""
    folders = ("attndiff", "pipelines", "training", "scripts", "tests")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_nothing_imports_a_second_copy():
    for path in files():
        top = {name.split(".")[0] for name in imported(path)}
        assert not top & {"pipelines", "training"}, path


def core_rooms_below(room: str) -> set[str]:
    """Rooms of the core that one may import."""
    place = next(i for i, floor in enumerate(FLOORS) if room in floor)
    return {room, *(below for floor in FLOORS[:place] for below in floor)}


@pytest.mark.parametrize("name", sorted(set(modules()) - {"attndiff"}))
def test_imports_run_one_way(name):
    """Without exceptions: what `attndiff/__init__` gives by name is the one way up, and imports nothing by itself."""
    ours = {n for n in imported(modules()[name]) if n.startswith("attndiff.")}
    part = ".".join(name.split(".")[:2])
    if name in ("attndiff.__main__", "attndiff.training.train"):  # what is run, not imported
        return
    if part in ABOVE:
        forbidden = set(ABOVE) - {part, *ABOVE[part]}
        assert not {n for n in ours if n.startswith(tuple(forbidden))}
    else:
        rooms = {n.split(".")[1] for n in ours}
        assert rooms <= core_rooms_below(name.split(".")[1])


def test_nothing_imports_the_commands_but_what_is_run():
    users = {name for name, path in modules().items() if any(n.startswith("attndiff.apps") for n in imported(path))}
    outside = {name for name in users if not name.startswith("attndiff.apps")}
    assert outside == {"attndiff.__main__", "attndiff.training.train"}


def test_modules_import_each_other_in_no_circle():
    names = modules()
    graph = {name: {n for n in named(path) if n in names and n != name} for name, path in names.items()}
    graph["attndiff"] = set()  # by name only
    assert set(TopologicalSorter(graph).static_order()) == set(names)  # raises CycleError with the circle


def test_rooms_are_small():
    for folder in ("attndiff", "pipelines", "training", "scripts"):
        for room in {path.parent for path in (ROOT / folder).rglob("*.py") if "assets" not in path.parts}:
            files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
            assert len(files) <= MODULES, room


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
    assert not loaded("import attndiff\nfrom attndiff.apps.cli import main\nmain(['--help'])") & HEAVY


def test_the_doctor_imports_no_diffusers(tmp_path):
    from commands import make_images

    images = make_images(tmp_path / "images", count=4)
    code = f"from attndiff.apps.cli import main\nmain(['doctor'])\nmain(['doctor', {str(images)!r}, 'size=16'])"
    assert not loaded(code) & {"diffusers", "transformers", "accelerate"}


def test_the_training_script_does_not_offer_its_modules_to_everybody(tmp_path):
    told = "import atexit, importlib.util as u\natexit.register(lambda: print('found:', u.find_spec('card')))\n"
    (tmp_path / "sitecustomize.py").write_text(told)
    command = [sys.executable, str(ROOT / "training/train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and done.stdout.endswith("found: None\n"), done.stderr


def test_public_names_are_there_before_they_are_used():
    code = "import attndiff, sys; print(*dir(attndiff)); assert 'torch' not in sys.modules; print(attndiff.__version__)"
    names, version = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    public = {
        "__version__",
        "AttnDiffCaptionPipeline",
        "AttnDiffImg2ImgPipeline",
        "AttnDiffInpaintPipeline",
        "AttnDiffMapToImagePipeline",
        "AttnDiffPipeline",
        "AttnDiffRasterPipeline",
        "AttnDiffSegmentPipeline",
        "AttnDiffUpscalePipeline",
        "AttentionUNet2DModel",
        "ConditionEncoder",
        "PixelTransformerModel",
        "TextDecoderModel",
        "load",
        "push",
    }
    assert set(attndiff.__all__) == public <= set(names.split())
    assert version == importlib.metadata.version("attndiff")


def test_no_test_is_made_of_another():
    """What two share is in a module of its own, which says what it is for."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not {name for name in imported(path) if name.split(".")[-1].startswith("test_")}, path


@pytest.mark.parametrize(
    ("given", "kept"), [({}, "5000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given, kept):
    code = "from attndiff.apps.cli import main\nmain(['--version'])\nimport torch"
    decided = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in decided}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **given}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    seen = [line for line in result.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not seen:
        pytest.skip("this torch's OpenMP is not GNU's")
    assert all(f"'{kept}'" in line for line in seen)
