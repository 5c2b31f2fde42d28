"""Work that one process does for all."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Made = TypeVar("Made")


def once(work: Callable[[], Made]) -> Made:
    """What the main process makes, on every process; what it raises is raised on every process, too."""
    state = PartialState()
    if state.num_processes == 1:
        return work()
    outcome: list = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:  # whatever it is, the others must not wait for what never comes
            outcome[1] = error
    made, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    return made
