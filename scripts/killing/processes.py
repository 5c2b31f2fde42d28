"""The processes of a run, forked off one that has imported everything."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer

TOO_LONG = 300  # seconds that no run takes
Patch = Callable[[], None]  # what to change in the process of a run


@dataclass
class Processes:
    """A run's processes and the exit codes of those that have ended, by process id."""

    ids: list[int]
    codes: dict[int, int] = field(default_factory=dict)

    @property
    def there(self) -> list[int]:
        """Those that have not ended."""
        return [pid for pid in self.ids if pid not in self.codes]

    @property
    def code(self) -> int | None:
        """The exit code of the run, None while it is there: that of the first process that failed, else 0."""
        return None if self.there else next((code for code in self.codes.values() if code), 0)

    def wait(self, within: float) -> int | None:
        """`code` after as many seconds at most."""
        until = time.monotonic() + within
        while True:
            for pid in self.there:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
            if not self.there or time.monotonic() > until:
                return self.code
            time.sleep(0.002)

    def kill(self, ids: list[int]) -> None:
        """SIGKILL to processes and their groups, all of them before any is waited for."""
        for pid in ids:
            os.killpg(pid, signal.SIGKILL)
        for pid in ids:
            self.codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(values: dict, patch: Patch | None, world: int = 1) -> Processes:
    """Start a run of ``values`` in one process or several, each with its loader workers in a group of its own."""
    ids = []
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for rank in range(world):
        mine = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"} if world > 1 else {}
        pid = os.fork()
        if not pid:
            train(values, patch, mine)
        os.setpgid(pid, pid)  # here, so that it leads a group however early it is killed
        ids.append(pid)
    return Processes(ids)


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train(values: dict, patch: Patch | None, environment: dict[str, str]) -> NoReturn:
    """Be a process of a run."""
    try:
        name = f"errors_{environment.get('RANK', 0)}.txt"
        path = Path(values["out"]).parent / name
        errors = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until the process ends
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        sys.stdout = sys.stderr = errors  # which those of a test that captures them are not
        os.environ.update(environment)
        if patch is not None:
            patch()
        Trainer(make_config(values)).run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def errors_of(root: Path) -> str:
    """The end of what a run's processes said."""
    return " ".join(file.read_text(encoding="utf-8")[-500:] for file in sorted(root.glob("errors_*.txt")))
