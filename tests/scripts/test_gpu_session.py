"""scripts/gpu_session.py: all that needs a GPU in one go, which may be cut off and gone on with."""

import json
import sys
import time
from pathlib import Path

import gpu_session
import pytest


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(gpu_session, "GRACE", 0.5)
    monkeypatch.setattr(gpu_session, "SHORTEST", 0.2)


def test_a_gpu_session_goes_on_where_it_was_cut(tmp_path):
    def python(name: str, code: str):
        return gpu_session.Stage(
            name, [sys.executable, "-c", f"from pathlib import Path\nhere = Path({str(tmp_path)!r})\n{code}"]
        )

    count = "file = here / 'count'; file.write_text(file.read_text() + 'x' if file.exists() else 'x')"
    slow = "import time, sys\nif (here / 'go').exists(): sys.exit()\ntime.sleep(3600)"
    stages = [python("first", count), python("broken", "1 / 0"), python("slow", slow), python("last", count)]

    def clock() -> float:
        """Nothing takes time but the stage before the slow one, which leaves that a second."""
        state = tmp_path / "session.json"
        return 3600 - gpu_session.GRACE - 1 if state.exists() and "broken" in state.read_text() else 0

    assert gpu_session.Session(stages, tmp_path, minutes=60, clock=clock).run() == gpu_session.TIME_OUT
    state = json.loads((tmp_path / "session.json").read_text())
    assert {name: entry["status"] for name, entry in state.items()} == {
        "first": "done",
        "broken": "failed",
        "slow": "cut off",
    }
    assert "ZeroDivisionError" in (tmp_path / "broken.log").read_text()
    (tmp_path / "go").touch()
    assert gpu_session.Session(stages, tmp_path, minutes=60).run() == gpu_session.FAILED
    assert (tmp_path / "count").read_text() == "xx"  # once by the first stage, once by the last
    assert gpu_session.Session([stages[0], stages[3]], tmp_path, minutes=60).run() == gpu_session.DONE
    assert (tmp_path / "count").read_text() == "xx"


def test_a_stage_that_ignores_the_end_is_ended_with_its_children(tmp_path):
    code = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    with open(tmp_path / "log", "w", encoding="utf-8") as log:
        assert gpu_session.run_limited([sys.executable, "-c", code], 5.0, log) is None
    child = int((tmp_path / "log").read_text())
    wait_until(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition) -> None:
    """Fail after half a minute: a busy machine takes its time to end a process."""
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


def test_the_plan_names_every_stage(tmp_path):
    stages = gpu_session.make_stages(tmp_path, tmp_path / "cifar", tmp_path / "emoji", "caption")
    plan = gpu_session.Session(stages, tmp_path, 1).plan()
    assert [line.split()[2] for line in plan] == ["tests", "attention", "speed", "classes-s", "emoji-s"]
    assert all(line.startswith("to do") for line in plan)
