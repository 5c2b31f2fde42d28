"""The processes that read the same data together, each row on one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Gather = Callable[[list[Any]], list[list[Any]]]


@dataclass(frozen=True)
class Readers:
    """Who reads a data set, and where what was read is kept that does not fit into memory.

    Args:
        folder: Where decoded rows of a large set are kept, for all processes and for the next start; None: nowhere.
        index: This process, from 0.
        count: All of them.
        gather: Gives every process the lists of all, in their order.
    """

    folder: Path | None = None
    index: int = 0
    count: int = 1
    gather: Gather = lambda mine: [mine]

    def each_once(self, work: Callable[[Any], Any], tasks: list[Any]) -> list[Any]:
        """What the work makes of every task, on all processes; each task is done by one of them."""
        made = self.gather([work(task) for task in tasks[self.index :: self.count]])
        return [made[i % self.count][i // self.count] for i in range(len(tasks))]
