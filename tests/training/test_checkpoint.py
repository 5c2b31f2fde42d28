"""A checkpoint comes back bit for bit, and a damaged one is never taken."""

import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from killing.deaths import OPERATIONS
from places import TESTS
from runs import settings
from states import train, trained_state

from attndiff.errors import UserError
from attndiff.training.config import make_config
from attndiff.training.state import checkpoint
from attndiff.training.state.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from attndiff.training.state.resume import write_config


def test_resumed_training_is_bit_identical(tmp_path):
    straight = trained_state(6)
    half = trained_state(3)
    folder = save_checkpoint(tmp_path, half, keep=2)
    resumed = trained_state(0, seed=1)
    resumed.restore(*read_checkpoint(folder))
    train(resumed, 3)
    for name, tensors in straight.tensors().items():
        for key, value in tensors.items():
            assert torch.equal(value, resumed.tensors()[name][key]), (name, key)


@pytest.mark.parametrize("kind", ["truncated", "flipped", "missing", "empty", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, kind):
    state = trained_state(1)
    whole = save_checkpoint(tmp_path, state, keep=3)
    train(state, 1)
    newer = save_checkpoint(tmp_path, state, keep=3)
    file = newer / ("manifest.json" if kind == "manifest" else "weights.safetensors")
    data = file.read_bytes()
    damaged = {"truncated": data[:-5], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "empty": b"", "manifest": b"{"}
    file.unlink() if kind == "missing" else file.write_bytes(damaged[kind])
    found, problems = newest_checkpoint(tmp_path)
    assert found == whole
    assert newer.name in problems[0]


def test_only_the_newest_are_kept(tmp_path):
    state = trained_state(0)
    for _ in range(4):
        train(state, 1)
        save_checkpoint(tmp_path, state, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000003", "step_00000004"]


def test_a_full_disk_costs_the_new_checkpoint_only_and_says_so(tmp_path):
    state = trained_state(1)
    whole = save_checkpoint(tmp_path, state, keep=1)
    train(state, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # bytes that a file may have
    try:
        with pytest.raises(UserError, match=r"step_00000002 could not be written \(.+\); step_00000001 is the last"):
            save_checkpoint(tmp_path, state, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [whole]
    assert newest_checkpoint(tmp_path) == (whole, [])


def test_what_is_no_checkpoint_is_left_alone_and_what_a_crash_left_is_cleared(tmp_path):
    for name in ("step_abc", "step_00000009.bak", "tmp_00000001"):
        (tmp_path / name).mkdir()
    state = trained_state(1)
    for _ in range(2):
        save_checkpoint(tmp_path, state, keep=1)
        train(state, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000009.bak", "step_abc"]
    assert newest_checkpoint(tmp_path) == (tmp_path / "step_00000002", [])


class Windows:
    """The module `os` as it is there: it opens no folder, and syncs no handle that is for reading only."""

    name = "nt"

    def __init__(self):
        self.for_reading: set[int] = set()
        self.synced = 0

    def open(self, path, flags):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = os.open(path, flags)
        if not flags & (os.O_RDWR | os.O_WRONLY):
            self.for_reading.add(descriptor)
        return descriptor

    def fsync(self, descriptor):
        if descriptor in self.for_reading:
            raise OSError(9, "Bad file descriptor")
        os.fsync(descriptor)
        self.synced += 1

    def __getattr__(self, name):
        return getattr(os, name)


def test_checkpoints_and_settings_are_written_under_windows(tmp_path, monkeypatch):
    windows, state = Windows(), trained_state(1)
    monkeypatch.setattr(checkpoint, "os", windows)
    for _ in range(2):
        save_checkpoint(tmp_path / "checkpoints", state, keep=1)
        train(state, 1)
    write_config(make_config(settings(tmp_path)), tmp_path)
    assert newest_checkpoint(tmp_path / "checkpoints") == (tmp_path / "checkpoints/step_00000002", [])
    assert windows.synced == 2 * 6 + 1  # every file; folders need none


class Crash(BaseException):
    """The process dies here."""


def operations(monkeypatch, until: int | None) -> list[str]:
    """Count the operations of a commit on the disk, and crash after the given number of them."""
    done = []

    def watched(module, name):
        inner = getattr(module, name)

        def operation(*arguments, **settings):
            if until is not None and len(done) == until:
                raise Crash
            done.append(name)
            return inner(*arguments, **settings)

        monkeypatch.setattr(module, name, operation)

    for module, name in OPERATIONS:
        watched(module, name)
    return done


def test_a_crash_at_any_operation_leaves_a_whole_checkpoint_and_the_next_run_the_same(tmp_path, monkeypatch):
    def commit(root, until):
        state = trained_state(1)
        save_checkpoint(root, state, keep=1)
        train(state, 1)
        with monkeypatch.context() as patched:
            done = operations(patched, until)
            with suppress(Crash):
                save_checkpoint(root, state, keep=1)
        return done

    every = commit(tmp_path / "all", None)
    names = ["mkdir", "save_file", "save_file", "save_file", "save_file", "write_text", "write_text"]
    assert every == [*names, *["fsync"] * 7, "rename", "fsync", "rmtree"]
    for until in range(len(every)):
        root = tmp_path / str(until)
        commit(root, until)
        found, problems = newest_checkpoint(root)
        published = until > every.index("rename")
        assert found.name == ("step_00000002" if published else "step_00000001") and not problems
        resumed = trained_state(0, seed=1)
        resumed.restore(*read_checkpoint(found))
        train(resumed, 2 - resumed.step)
        save_checkpoint(root, resumed, keep=1)
        assert [path.name for path in root.iterdir()] == ["step_00000002"]
        expected = trained_state(2).tensors()
        for name, tensors in read_checkpoint(root / "step_00000002")[0].items():
            assert all(torch.equal(value, expected[name][key]) for key, value in tensors.items())


def may_trace() -> bool:
    """Whether strace is there and allowed to watch a process."""
    try:
        return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


SAVES_TWICE = """
import sys
from pathlib import Path

from runs import settings
from states import trained_state

from attndiff.training.state.checkpoint import save_checkpoint
from attndiff.training.state.resume import write_config

for steps in (1, 2):
    save_checkpoint(Path(sys.argv[1]), trained_state(steps), keep=1)
"""


@pytest.mark.skipif(not may_trace(), reason="strace is not there, or may not watch")
def test_the_kernel_is_asked_to_store_every_file_then_to_publish_then_to_prune(tmp_path):
    root, log = tmp_path / "checkpoints", tmp_path / "calls"
    calls = "trace=fsync,rename,unlinkat,rmdir"
    watch = ["strace", "-f", "--seccomp-bpf", "-y", "-o", log, "-e", calls, sys.executable, "-c", SAVES_TWICE, root]
    subprocess.run(watch, check=True, cwd=TESTS)
    lines = [line.replace(f"{root}", "") for line in log.read_text().splitlines() if f"{root}" in line]
    first, second = [i for i, line in enumerate(lines) if " rename(" in line]
    assert '"/step_00000002") = 0' in lines[second]
    assert re.search(r" fsync\(\d+<>\)", lines[first + 1]), lines[first + 1]  # of the folder of all checkpoints
    stored = [re.search(r" fsync\(\d+</tmp_00000002(.*)>\) += 0", line)[1] for line in lines[first + 2 : second]]
    files = {f"/{path.name}" for path in (root / "step_00000002").iterdir()}
    assert len(files) == 6 and set(stored[:-1]) == files and stored[-1] == ""
    after = [re.search(r" (\w+)\(", line)[1] for line in lines[second + 1 :]]
    assert after == ["fsync", *["unlinkat"] * 6, "rmdir"]
