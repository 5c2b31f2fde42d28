"""Pushing to and opening from the Hub, against a server on this machine that speaks its HTTP API."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from doors import CALLS, HELPER
from factories import pretrained_text_pipeline, text_pipeline
from loopback_hub import LoopbackHub, Repo
from places import TESTS
from without_attndiff import sample

WITH_ATTNDIFF = """
import json, sys
import numpy as np
import attndiff
from attndiff.folder import hub
from attndiff.errors import UserError
from without_attndiff import sample

request = json.loads(sys.argv[1])
told = {"pushed": {}, "opened": {}, "refused": []}


def refused(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except UserError as error:
        told["refused"].append(str(error))


for name, folder in request["folders"].items():
    told["pushed"][name] = attndiff.push(folder, f"me/{name}", private=name == "text", token="hf_loopback")
    pipeline = attndiff.load(f"me/{name}", token="hf_loopback")
    told["opened"][name] = type(pipeline).__module__
    np.savez(f"{request['out']}/{name}-first.npz", pixels=sample(pipeline, request["calls"][name]))
attndiff.push(request["folders"]["text"], "me/text", token="hf_loopback")
refused(attndiff.push, folder, "me/other", token="hf_wrong")
refused(attndiff.push, folder, "not a/valid/name")
refused(attndiff.push, request["bare"], "me/bare", token="hf_loopback")
refused(attndiff.load, "me/absent")
refused(attndiff.load, "me/text", cache_dir=request["out"] + "/empty")
refused(attndiff.load, "me/pretrained", revision="v9")
refused(attndiff.load, "some/where/deep")
hub.WAITS_S = (0.01, 0.01)
told["pushed"]["busy"] = attndiff.push(folder, "me/busy", token="hf_loopback")
attndiff.load("me/busy", token="hf_loopback")
for name in ("out-of-order", "cut-off"):
    refused(attndiff.push, folder, f"me/{name}", token="hf_loopback")
json.dump(told, open(f"{request['out']}/told.json", "w"))
"""


STALE = (
    "unet/unet_0123456789ab.py",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two pipelines pushed and opened by both doors: the hub, what the first process told, the pixels of every way."""
    root = tmp_path_factory.mktemp("hub")
    pipelines = {"text": text_pipeline(), "pretrained": pretrained_text_pipeline()}
    expected = {name: sample(pipeline, CALLS[name]) for name, pipeline in pipelines.items()}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / name)
        (root / name / "README.md").write_text("---\nlibrary_name: diffusers\n---\nA card.\n")
    pipelines["text"].save_pretrained(root / "bare")
    folders = {name: str(root / name) for name in pipelines}
    with LoopbackHub() as hub:
        stale = dict.fromkeys(STALE, b"") | {"keep.py": b""}
        hub.repos["me/text"] = Repo(private=True, commits=[("1" * 40, stale)])
        hub.faults = {
            "POST api/models/me/busy/commit/main": [429, 503],
            "GET me/busy/resolve/*/model_index.json": [503, 429],
            "POST api/models/me/out-of-order/commit/main": [500] * 9,
            "POST api/models/me/cut-off/commit/main": [0],
        }
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(root / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(TESTS),
        }
        environment.pop("HF_TOKEN", None)
        request = {"folders": folders, "calls": CALLS, "out": str(root), "bare": str(root / "bare")}
        run([sys.executable, "-c", WITH_ATTNDIFF, json.dumps(request)], environment)
        first_requests = list(hub.requests)
        ids = {name: f"me/{name}" for name in folders}
        second = {**environment, "HF_HOME": str(root / "other"), "HF_TOKEN": hub.token}
        run([sys.executable, str(HELPER), json.dumps({"folders": ids, "calls": CALLS, "out": str(root)})], second)
        yield hub, json.loads((root / "told.json").read_text()), first_requests, root, expected


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_pushed_repository_is_the_folder(shared):
    hub, told, _, root, _ = shared
    for name in ("text", "pretrained"):
        local = {str(p.relative_to(root / name)): p.read_bytes() for p in (root / name).rglob("*") if p.is_file()}
        remote = dict(hub.repos[f"me/{name}"].commits[-1][1])
        if name == "text":
            assert remote.pop("keep.py") == b""  # the stale files beside it are gone
        assert remote == local
        assert told["pushed"][name] == f"{hub.url}/me/{name}"
    assert len(hub.repos["me/text"].commits) == 2  # pushing the same again makes no commit
    assert not hub.repos["me/pretrained"].private


def test_first_door_of_the_hub(shared):
    _, told, requests, root, expected = shared
    for name, pixels in expected.items():
        with np.load(root / f"{name}-first.npz", allow_pickle=False) as got:
            np.testing.assert_array_equal(got["pixels"], pixels)
        assert told["opened"][name] == "attndiff.pipelines.pipeline_attndiff"
    fetched = [line.partition("/resolve/")[2] for line in requests if "/resolve/" in line]
    assert fetched and not [path for path in fetched if path.endswith(".py")]


def test_first_door_fetches_one_commit(shared):
    hub, _, requests, _, _ = shared
    for name in ("text", "pretrained"):
        prefix = f"GET me/{name}/resolve/"
        revisions = {line.removeprefix(prefix).split("/")[0] for line in requests if line.startswith(prefix)}
        assert revisions == {hub.repos[f"me/{name}"].commits[-1][0]}


def test_second_door_of_the_hub(shared):
    *_, root, expected = shared
    for name, pixels in expected.items():
        with np.load(root / f"{name}.npz", allow_pickle=False) as got:
            assert "opened" in got
            for door, seen in got.items():
                np.testing.assert_array_equal(seen, pixels, err_msg=door)


def test_refusals_are_sentences(shared):
    _, told, *_ = shared
    expected = [
        "the Hub did not take the upload",
        "no name of a Hub repository",
        "has no README.md",
        "the Hub has no such model",
        "the Hub has no such model",  # private, and no token given
        "no revision v9",
        "there is no such folder",
        "the Hub did not take the upload",
        "the Hub did not take the upload",
    ]
    assert len(told["refused"]) == len(expected)
    for message, part in zip(told["refused"], expected, strict=True):
        assert part in message and "\n" not in message and "hf_" not in message  # no token either


def test_a_busy_hub_is_asked_again_and_one_that_fails_keeps_what_it_had(shared):
    hub, told, *_ = shared
    assert told["pushed"]["busy"] == f"{hub.url}/me/busy" and len(hub.repos["me/busy"].commits) == 2
    assert not hub.faults["GET me/busy/resolve/*/model_index.json"]
    assert len(hub.faults["POST api/models/me/out-of-order/commit/main"]) == 6  # three attempts
    for name in ("out-of-order", "cut-off"):
        assert len(hub.repos[f"me/{name}"].commits) == 1
