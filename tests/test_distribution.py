"""What a wheel and an sdist hold, by the lists that setuptools makes; neither is built."""

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from places import ROOT

SMALL = 52e6  # bytes of a wheel at most
PACKAGES = {"attndiff": "attndiff", "pipelines": "attndiff/pipelines", "training": "attndiff/training"}
# Not in the sdist for their own sake, but so that its tests run and its README's links lead somewhere.
BESIDE = ("tests", "scripts", "model_cards")
LISTS = """
import contextlib, json, sys
from setuptools import Distribution

project = Distribution()
project.parse_config_files()
project.script_name, project.command_options["egg_info"] = "setup.py", {"egg_base": ("here", sys.argv[1])}
with contextlib.redirect_stdout(sys.stderr):
    sources = project.get_command_obj("egg_info")
    sources.ensure_finalized()
    sources.run()
    packages = project.get_command_obj("build_py")
    packages.ensure_finalized()
    wheel = [path.removeprefix(packages.build_lib + "/") for path in packages.get_outputs(include_bytecode=False)]
print(json.dumps({"sdist": sources.filelist.files, "wheel": wheel}))
"""


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> dict[str, set[str]]:
    """Files of both, by their paths inside."""
    pytest.importorskip("setuptools", reason="setuptools, which builds both, is not installed")
    command = [sys.executable, "-c", LISTS, str(tmp_path_factory.mktemp("lists"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return {kind: {Path(name).as_posix() for name in names} for kind, names in json.loads(done.stdout).items()}


def lying_in(folder: str) -> list[Path]:
    """Files of a folder that are not made by running something in it."""
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if "__pycache__" not in path.parts and path.name != ".DS_Store"]


def test_the_wheel_holds_the_packages_and_nothing_else(listed):
    expected = {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, name in PACKAGES.items()
        for path in lying_in(folder)
    }
    assert listed["wheel"] == expected
    assert "attndiff/training/launch/fsdp2.yaml" in expected and "attndiff/training/recipes/emoji-xs.yaml" in expected


def test_the_wheel_is_small():
    packed = (zlib.compress(path.read_bytes(), 6) for folder in PACKAGES for path in lying_in(folder))
    assert sum(map(len, packed)) < SMALL


def test_the_sdist_holds_what_its_tests_and_its_readme_need(listed):
    needed = {path.relative_to(ROOT).as_posix() for folder in (*BESIDE, *PACKAGES) for path in lying_in(folder)}
    named = {"pyproject.toml", "Makefile", "constraints.txt", "README.md", "ARCHITECTURE.md", "LICENSE", ".ci/run"}
    assert needed | named <= listed["sdist"]
    linked = re.findall(r"\]\(([\w./-]+)[)#]", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(linked) > 10
    for link in linked:
        assert any(name == link or name.startswith(f"{link}/") for name in listed["sdist"]), link
