"""Code that lies where diffusers would look for it is not run by either door until ``trust_remote_code`` is given."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from factories import text_pipeline
from loopback_hub import LoopbackHub, Repo

DOORS = ("attndiff.load", "DiffusionPipeline")
# Where the code comes from, and whether the stock door runs it once it is trusted, which shows that the trap is set.
SOURCES = {
    "folder": True,
    "hub": True,
    "later revision": True,
    "custom pipeline": True,
    "component's own code": False,
    "code of another repository": False,
}
OPENS = """
import json, sys
from pathlib import Path
import attndiff
from diffusers import DiffusionPipeline

request = json.loads(sys.argv[1])
canary, doors = Path(request["canary"]), (attndiff.load, DiffusionPipeline.from_pretrained)
told = {}


def attempt(open_it, name, **arguments):
    canary.unlink(missing_ok=True)
    try:
        outcome = type(open_it(name, **arguments)).__module__
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    return outcome, canary.exists()


for source, (name, arguments, earlier) in request["sources"].items():
    if earlier:  # a revision that was looked through and trusted
        assert attempt(doors[1], name, revision=earlier, trust_remote_code=True)[1] is False
    cells = [attempt(door, name, **arguments) for door in doors]
    told[source] = [*cells, attempt(doors[1], name, **arguments, trust_remote_code=True)]
print(json.dumps(told))
"""


def trapped(clean: Path, folder: Path, canary: Path) -> Path:
    """A copy whose code files leave a canary when they are run."""
    shutil.copytree(clean, folder)
    for file in folder.rglob("*.py"):
        file.write_text(file.read_text() + trap(canary))
    return folder


def trap(canary: Path) -> str:
    return f"\nopen({str(canary)!r}, 'w').close()\n"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """By source: outcome and whether code ran, of both doors untrusted and of the stock one trusted."""
    root = tmp_path_factory.mktemp("trust")
    canary, clean = root / "canary", root / "clean"
    text_pipeline().save_pretrained(clean)
    folder = trapped(clean, root / "trapped", canary)

    def with_index(name: str, **changes) -> Path:
        """A copy of the clean folder with another index."""
        shutil.copytree(clean, root / name)
        index = json.loads((clean / "model_index.json").read_text())
        (root / name / "model_index.json").write_text(json.dumps(index | changes))
        return root / name

    plain = with_index("plain", _class_name="AttnDiffPipeline")  # else diffusers prefers the folder's own pipeline
    component = with_index("component", unet=["evil", "AttentionUNet2DModel"])
    (component / "unet/evil.py").write_text(trap(canary))
    elsewhere = with_index("elsewhere", _class_name=["me/evil--pipeline", "AttnDiffPipeline"])
    tokenizer = json.loads((elsewhere / "tokenizer/tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["me/evil--evil.Evil", "me/evil--evil.Evil"]}
    (elsewhere / "tokenizer/tokenizer_config.json").write_text(json.dumps(tokenizer))

    first, second = "1" * 40, "2" * 40
    with LoopbackHub() as hub:
        hub.repos["me/hub"] = Repo(commits=[(first, files_of(folder))])
        hub.repos["me/grown"] = Repo(commits=[(first, files_of(clean)), (second, files_of(folder))])
        evil = {name: trap(canary).encode() for name in ("pipeline.py", "evil.py")}
        hub.repos["me/evil"] = Repo(commits=[(first, evil)])
        sources = {
            "folder": (str(folder), {}, None),
            "hub": ("me/hub", {}, None),
            "later revision": ("me/grown", {}, first),
            "custom pipeline": (str(plain), {"custom_pipeline": "me/evil"}, None),
            "component's own code": (str(component), {}, None),
            "code of another repository": (str(elsewhere), {}, None),
        }
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(root / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        request = json.dumps({"canary": str(canary), "sources": sources})
        command = [sys.executable, "-c", OPENS, request]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("source", SOURCES)
def test_nothing_runs(told, source, door):
    outcome, ran = told[source][DOORS.index(door)]
    assert not ran, outcome


@pytest.mark.parametrize("source", [source for source, runs in SOURCES.items() if runs])
def test_the_trap_is_set(told, source):
    outcome, ran = told[source][-1]
    assert ran, outcome


def test_what_needs_no_code_opens(told):
    for source in ("folder", "hub", "later revision"):
        assert told[source][0][0] == "attndiff.pipelines.pipeline_attndiff", told[source][0]
