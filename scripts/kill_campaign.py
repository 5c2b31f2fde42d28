"""Kill training runs at any moment and see whether they end as if nothing had happened.

    python scripts/kill_campaign.py --fast --json kills.json        # under 5 minutes on two cores
    python scripts/kill_campaign.py --runs 2000 --pairs 200 --json kills.json

A run is killed with SIGKILL one to three times at random, with all its loader workers, started again with the same
command each time, and compared at its end with one that nobody touched: every logged loss in hex, and the SHA-256 of
weights, averages, optimizer moments, sample grid and pipeline. After every kill, what had been committed must still be
there. Some runs are of two processes, killed together or one alone, and further ones die at every single operation of a
commit on the disk, and one at each of writing what it learned from its data before step 1. Runs of some minutes instead
of steps are killed, too, by a clock whose speed changes all the time, so that their length is corrected often; each is
compared with an untouched run that is given the corrections of the killed one.
The result file is written as the campaign goes, and the same command goes on from it.

The negative controls spoil one thing each, and the campaign has to notice:

- "no rename": the one checkpoint there is, is overwritten in place;
- "prune first": the older checkpoint goes before the new one is there;
- "EMA not restored": a resumed run's averages begin with its weights;
- "global random state": noise comes from torch's global generator.
"""

import argparse
import importlib
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from killing.count import Count, earlier
from killing.deaths import CONTROLS
from killing.runs import TIMED, VARIANTS, make_images
from killing.trials import (
    Trial,
    commit_trials,
    control,
    learning_trial,
    random_trial,
    reference,
    timed_trial,
)
from tqdm import tqdm

PORTION = 60  # runs between two writings of the result file


def prepare() -> None:
    """Once in every process that forks runs: one thread, so that forks are safe and results comparable."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader workers: a spawned process would hand on its own
    for slow in ("datasets", "matplotlib.pyplot"):  # a run imports them late, and each of its forks would again
        importlib.import_module(slow)


@dataclass
class KillCampaign:
    """All its parts, each going on from what the count has and written as soon as it is there.

    Args:
        folder: Where the runs are; each is removed after it.
        count: So far.
        kept: The result file; None keeps nothing.
        lanes: How many runs are there at once.
        every: One in how many operations of a commit is died at.
    """

    folder: Path
    count: Count = field(default_factory=Count)
    kept: Path | None = None
    lanes: int = 2
    every: int = 1

    def __post_init__(self):
        self.images = make_images(self.folder / "images")
        self.since = time.monotonic()

    def run(self, runs: int, pairs: int, timed: int) -> Count:
        """Everything, up to so many killed runs of one process, of two, and of some minutes."""
        with ProcessPoolExecutor(self.lanes, multiprocessing.get_context("spawn"), prepare) as pool:
            whole = {v: self.reference(pool, v) for v in self.missing(runs, timed)}
            if not self.count.operations_of_a_commit:
                self.commits_and_controls(pool, whole["plain"].result()[0])
            alone = [(v, 1, *whole[v].result()) if v in whole else None for v in VARIANTS]
            self.kill_at_random(pool, "one_process_runs", alone, runs)
            if self.count.two_process_runs < pairs:
                together = ("plain", 2, *self.reference(pool, "plain", 2).result())
                self.kill_at_random(pool, "two_process_runs", [together], pairs)
            if self.count.timed_runs < timed:
                longer = TIMED, 2 * alone[0][3]
                self.kill_at_random(pool, "timed_runs", [longer], timed, timed_trial)
        return self.count

    def missing(self, runs: int, timed: int) -> list[str]:
        """The variants of runs that are still to be killed; commits, controls and timed runs go by the first."""
        names, done = list(VARIANTS), self.count.one_process_runs
        wanted = {names[i % len(names)] for i in range(done, max(done, runs))}
        if not self.count.operations_of_a_commit or self.count.timed_runs < timed:
            wanted.add(names[0])
        return [name for name in names if name in wanted]

    def reference(self, pool: ProcessPoolExecutor, variant: str, world: int = 1) -> Future:
        """`reference` in a folder of its own."""
        return pool.submit(reference, self.folder / f"references_{world}" / variant, self.images, variant, world=world)

    def save(self) -> None:
        """Write the count, whole or not at all."""
        self.count.seconds += round(time.monotonic() - self.since)
        self.since = time.monotonic()
        if self.kept:
            temporary = self.kept.with_name(self.kept.name + ".tmp")
            temporary.write_text(json.dumps(asdict(self.count), indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.kept)

    def commits_and_controls(self, pool: ProcessPoolExecutor, expected: dict) -> None:
        """A run for each operation of a commit, one for those of writing what it learned, and the negative controls."""
        at_each_operation = pool.submit(commit_trials, self.folder / "commits", self.images, expected, self.every)
        before = pool.submit(learning_trial, self.folder / "learning", self.images, expected)
        spoilt = {name: pool.submit(control, self.folder / "controls" / name, self.images, name) for name in CONTROLS}
        for k, trial in enumerate(at_each_operation.result()):
            self.count.add(trial, f"operation {k} of a commit")
        self.count.operations_of_a_commit = len(at_each_operation.result())
        self.count.add(before.result(), "writing what was learned")
        self.count.operations_of_learning = before.result().kills
        self.count.negative_controls = {name: future.result() for name, future in spoilt.items()}
        self.save()

    def kill_at_random(
        self,
        pool: ProcessPoolExecutor,
        kind: str,
        ways: list[tuple | None],
        wanted: int,
        try_one: Callable[..., Trial] = random_trial,
    ) -> None:
        """Up to so many runs of a kind, `PORTION` by `PORTION`; a trial's number is its seed.

        Args:
            pool: Where they run.
            kind: Which of the count's numbers they are.
            ways: Variant, processes, digest and seconds of the runs that they are compared with, taken in turn; None
                of those whose turn does not come.
            wanted: So many at last.
            try_one: What kills one, given its folder, the images, its way and random numbers.
        """
        with tqdm(desc=f"Killed {kind.replace('_', ' ')}", total=wanted, initial=getattr(self.count, kind)) as bar:
            while (first := getattr(self.count, kind)) < wanted:
                jobs = {}
                for i in range(first, min(first + PORTION, wanted)):
                    way, where = ways[i % len(ways)], self.folder / kind / str(i)
                    jobs[pool.submit(try_one, where, self.images, *way, random.Random(i))] = f"{kind}, {way[0]}"
                for job in as_completed(jobs):
                    self.count.add(job.result(), jobs[job])
                    bar.update()
                setattr(self.count, kind, first + len(jobs))
                self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="100 runs, 5 of two processes, 10 of minutes")
    parser.add_argument("--runs", type=int, default=2000, help="killed runs of one process")
    parser.add_argument("--pairs", type=int, default=200, help="killed runs of two processes")
    parser.add_argument("--timed", type=int, default=200, help="killed runs of some minutes instead of steps")
    parser.add_argument("--json", type=Path, help="result file; a campaign that it holds a part of goes on from there")
    arguments = parser.parse_args()
    wanted = (100, 5, 10) if arguments.fast else (arguments.runs, arguments.pairs, arguments.timed)
    so_far = earlier(arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        count = KillCampaign(Path(folder), so_far, arguments.json).run(*wanted)
    print(json.dumps(asdict(count), indent=1))
    spoilt = [name for name, result in count.negative_controls.items() if result == "PASSED"]
    if count.identical != count.runs or spoilt:
        raise SystemExit(f"{count.runs - count.identical} runs went wrong; controls unnoticed: {spoilt}")


if __name__ == "__main__":
    main()
