"""A pipeline keeps the state of a call, so that it takes one at a time."""

import threading


class CallLock:
    """A lock that makes calls wait for each other; a copied or pickled pipeline gets a new one."""

    def __init__(self):
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple:
        return CallLock, ()
