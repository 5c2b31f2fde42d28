"""A dataset on the Hub is opened by its id, whole or as a stream, from wherever HF_ENDPOINT points."""

import io
import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback_hub import HubRequest, LoopbackHub, Repo, blob_hash
from PIL import Image

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.streams.stream import Stream
from attndiff.errors import UserError


class DatasetRequest(HubRequest):
    """Requests about datasets, answered as those about models."""

    def do_GET(self) -> None:
        parts = self._note()
        if parts[4:5] == ["tree"]:
            self._tree("/".join(parts[2:4]), parts[5], "/".join(parts[6:]))
        elif parts[:2] == ["api", "datasets"]:
            self._model(parts[2:])
        elif parts[:1] == ["datasets"] and parts[3:4] == ["resolve"]:
            self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._error(404, "EntryNotFound", "no such address")

    def _tree(self, repo_id: str, revision: str, folder: str) -> None:
        """What lies directly in a folder."""
        entries, prefix = {}, f"{folder}/" if folder else ""
        for path, content in self.hub.repos[repo_id].at(revision)[1].items():
            if path.startswith(prefix):
                child, deeper = (prefix + path.removeprefix(prefix).split("/")[0]), "/" in path.removeprefix(prefix)
                kind = "directory" if deeper else "file"
                entries[child] = {"type": kind, "path": child, "size": len(content), "oid": blob_hash(content)}
        self._json(list(entries.values()))

    def do_POST(self) -> None:
        parts = self._note()
        wanted = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        found = self._find("/".join(parts[2:4]), parts[5])
        if found is not None:
            files = {path: content for path, content in found[1].items() if path in wanted.replace("%2F", "/")}
            self._json([{"type": "file", "path": p, "size": len(c), "oid": blob_hash(c)} for p, c in files.items()])


class DatasetHub(LoopbackHub):
    def __enter__(self):
        handler = type("Handler", (DatasetRequest,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self


SCRIPT = """
import json
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.streams.stream import Stream
from attndiff.errors import UserError

config = DataConfig(path="someone/squares", size=4, caption_column="text")
images, validation = ImageSet(config), open_validation(config)
shard = list(Stream(config).shard(0))
try:
    ImageSet(DataConfig(path="someone/absent", size=4))
except UserError as error:
    refusal = str(error)
print(json.dumps({
    "train": [[images[i]["caption"], images[i]["image"].mean().item()] for i in range(len(images))],
    "validation": len(validation),
    "shard": [row["text"] for _, row in shard],
    "refusal": refusal,
}))
"""


CONFIGS = """
import json, sys
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.streams.stream import Stream
from attndiff.errors import UserError

def outcome(read, **settings):
    try:
        return len(read(DataConfig(path="someone/sizes", size=4, **settings)))
    except UserError as error:
        return str(error)

def shard(config):
    return list(Stream(config).shard(0))

def held_out(config):
    return open_validation(config.replace(validation="someone/squares"))

for read in (ImageSet, shard):
    print(json.dumps([outcome(read), outcome(read, config="small"), outcome(read, config="smal")]))
print(json.dumps([outcome(held_out, config="small")]))
"""

SPLITS = {"training": [0, 1], "dev": [2]}
OTHER_NAMES = """
import json
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.errors import UserError

config = DataConfig(path="someone/squares", size=4)
counts = [len(ImageSet(config)), len(ImageSet(config.replace(split="validation")))]
try:
    ImageSet(config.replace(split="test"))
except UserError as error:
    counts.append(str(error))
print(json.dumps(counts))
"""

CARD = """---
configs:
- config_name: small
  data_files: [{split: train, path: small/*.parquet}]
- config_name: my split
  data_files: [{split: train, path: large/*.parquet}]
---
"""


def square(level: int) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def parquet(levels: list[int]) -> bytes:
    table = pa.table({"image": [square(level) for level in levels], "text": [f"level {level}" for level in levels]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def run(script: str, hub: DatasetHub, home: str) -> list:
    """What a script that reads from the hub prints, a value a line; its process and its cache are its own."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + "\n".join(hub.requests)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hub_dataset(tmp_path):
    parts = {"train": parquet([0, 255]), "validation": parquet([9])}
    files = {f"data/{part}-00000-of-00001.parquet": content for part, content in parts.items()}
    with DatasetHub() as hub:
        hub.repos["someone/squares"] = Repo(commits=[("1" * 40, files)])
        result = run(SCRIPT, hub, str(tmp_path))[-1]
    assert result["train"] == [[["level 0"], -1.0], [["level 255"], 1.0]]
    assert result["validation"] == 1 and result["shard"] == ["level 0", "level 255"]
    assert result["refusal"].startswith("someone/absent: no such folder here")


def test_splits_of_other_names_are_found(tmp_path):
    files = {f"data/{part}-00000-of-00001.parquet": parquet(levels) for part, levels in SPLITS.items()}
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "".join(f"  - {{split: {part}, path: data/{part}-*}}\n" for part in SPLITS) + "---\n"
    with DatasetHub() as hub:
        hub.repos["someone/squares"] = Repo(commits=[("1" * 40, {**files, "README.md": card.encode()})])
        counts = run(OTHER_NAMES, hub, str(tmp_path))[-1]
    assert counts == [2, 1, "someone/squares: has no part called 'test', it has training, dev"]


def test_one_of_several_configurations_is_chosen(tmp_path):
    sizes = {"README.md": CARD.encode(), "small/a.parquet": parquet([0, 1]), "large/a.parquet": parquet([0, 1, 2])}
    squares = {"data/train-0.parquet": parquet([0]), "data/validation-0.parquet": parquet([1, 2, 3])}
    with DatasetHub() as hub:
        hub.repos["someone/sizes"] = Repo(commits=[("1" * 40, sizes)])
        hub.repos["someone/squares"] = Repo(commits=[("2" * 40, squares)])
        whole, streamed, held_out = run(CONFIGS, hub, str(tmp_path))
    for missing, small, wrong in (whole, streamed):
        assert missing == "someone/sizes: has no default configuration, choose one by config: small, my split"
        assert small == 2
        assert wrong == "someone/sizes: has no configuration 'smal', choose one by config: small, my split"
    assert held_out == [3]


@pytest.mark.parametrize("stream", [False, True])
def test_data_that_is_here_has_no_configurations(tmp_path, stream):
    (tmp_path / "a.parquet").write_bytes(parquet([0]))
    with pytest.raises(UserError, match="config='small' is for datasets on the Hub"):
        config = DataConfig(path=tmp_path, size=4, config="small", stream=stream)
        Stream(config) if stream else ImageSet(config)
