"""Being told to stop, and keeping a second run out of a run's folder.

A signal may come in the middle of a save, so its handler sets a flag and nothing else: the step is finished, a
checkpoint saved, and only then the run ends.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from attndiff.errors import UserError

LOCK = "run.lock"
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopSignal:
    """Notes signals inside the ``with`` block; a second one ends the process at once.

    ``number`` is that of the first signal, or 0.
    """

    def __init__(self):
        self.number = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        try:
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        except ValueError:  # only the main thread hears signals
            self._before = {}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


def ignore_signals(worker: int) -> None:
    """For loader workers: a signal to the whole group is for the trainer to answer, which still needs them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def kill_workers() -> None:
    """End what loader workers are left: one that hangs hears no signal, and Python would wait for it for ever.

    torch raises the death of any worker that it counts, wherever the interpreter is then. It still counts these where
    the first death was seen by asking and not by a signal, so that nobody listens while they are ended.
    """
    with _deaf_to_deaths():
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()


@contextmanager
def _deaf_to_deaths() -> Iterator[None]:
    """No handler hears of the end of a child."""
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except (AttributeError, ValueError):  # a system without it, or not the main thread, which alone hears signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a run's folder inside the ``with`` block; the lock goes with the process, however that ends.

    Raises:
        UserError: If another process holds it, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out {out} cannot be made ({error.strerror}); choose another 'out'.") from None
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another run is writing to {out}; wait for its end, or choose another 'out'.") from None
    try:
        yield
    finally:
        lock.release()
