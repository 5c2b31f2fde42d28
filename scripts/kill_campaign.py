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
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from attndiff.data import image_set
from attndiff.training import batches
from attndiff.training.card import hardware
from attndiff.training.config import make_config
from attndiff.training.run import loop
from attndiff.training.run.loop import Trainer
from attndiff.training.run.pace import Pace
from attndiff.training.run.progress import PLANNED, read_planned
from attndiff.training.state import checkpoint, learned
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.checkpoint import newest_checkpoint, save_checkpoint
from attndiff.training.state.resume import write_config

STEPS, SAVE_EVERY = 12, 3
TIMED = "minutes"  # the variant whose length is corrected as it goes
LATE = "decoded at the first visit"  # the variant whose images count as too many to be decoded before it
VARIANTS = {  # what each adds to `settings`
    "plain": {},
    "two loader workers": {"optim": {"workers": 2}},
    "accumulation and dropout": {"optim": {"micro_batch": 2}, "model": {"unet": {"dropout": 0.2}}},
    LATE: {"optim": {"workers": 2}},
}
CONTROL_TRIES = 6
PORTION = 60  # runs between two writings of the result file
TOO_LONG = 300  # seconds that no run takes
ROOT = Path(__file__).parents[1]

OPERATIONS = [  # of a commit on the disk: who does it, under which name
    (checkpoint.Path, "mkdir"),
    (checkpoint, "save_file"),
    (checkpoint.Path, "write_text"),
    (os, "fsync"),
    (checkpoint.Path, "rename"),
    (checkpoint.shutil, "rmtree"),
]
LEARNING = [  # of writing what was learned from the data
    (learned.Path, "mkdir"),
    (learned.Path, "write_text"),
    (learned.PreTrainedTokenizerFast, "save_pretrained"),
    (os, "fsync"),
    (learned.Path, "rename"),
]

Patch = Callable[[], None]  # what to change in the process of a run


# The runs


def settings(images: Path, out: Path, variant: str) -> dict:
    """A run of a tiny model that uses everything a checkpoint has to bring back."""
    values = {
        "out": str(out),
        "data": {"path": str(images), "size": 16, "validation": 0.25, "caption_column": "text"},
        "condition": {"kind": "text", "vocab_size": 300, "max_length": 8, "dropout": 0.2},
        "model": {"preset": "tiny"},
        "optim": {"steps": STEPS, "batch_size": 4, "warmup": 2, "precision": "fp32", "flip": 0.5},
        "log": {
            "every": 1,
            "validate_every": 6,
            "sample_every": STEPS,
            "checkpoint_every": SAVE_EVERY,
            "tracker": None,
        },
    }
    values["log"]["prompts"] = ["red", "blue"]
    if variant == TIMED:
        values["optim"] |= {"steps": None, "minutes": 2, "least_steps": 6}
    for section, more in VARIANTS.get(variant, {}).items():
        values[section] = {**values[section], **more}
    return values


def make_images(folder: Path, count: int = 16) -> Path:
    """Squares of two colours, with a caption beside each."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[2 + i % 4 : -3, 3:-2] = (200, 30, 30) if i % 2 else (30, 30, 200)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("red" if i % 2 else "blue", encoding="utf-8")
    return folder


def digest(out: Path) -> dict[str, str]:
    """All that a finished run has to agree in: losses by step, and hashes of its files."""
    found: dict[str, str] = {}
    for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            step, loss = f"loss of step {entry['step']}", entry["loss"].hex()
            found[step] = loss if found.get(step, loss) == loss else "two different ones"
    if planned := read_planned(out / "log.jsonl"):
        found["planned steps"] = str(planned)
    last = checkpoint.checkpoints(out / "checkpoints")[-1]
    names = [*last.glob("*.safetensors"), *(out / "samples").glob("*.png")]
    for file in [*names, *(out / "pipeline").rglob("*.safetensors")]:
        found[file.relative_to(out).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def lost(out: Path) -> str | None:
    """What of the committed work is gone after a kill, in words, or None."""
    log = out / "log.jsonl"
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if log.is_file() else []
    last = max((entry["step"] for entry in map(json.loads, whole) if "loss" in entry), default=0)
    committed = (last - 1) // SAVE_EVERY * SAVE_EVERY  # the save after the very last step may not have ended
    newest, _ = newest_checkpoint(out / "checkpoints")
    have = int(newest.name.removeprefix("step_")) if newest else 0
    return None if have >= committed else f"step {committed} had been committed, and {have} is what is left"


# The processes of a run, forked off one that has imported everything


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
        errors = open(Path(values["out"]).parent / name, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
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


@dataclass
class Trial:
    """What became of a run.

    Args:
        kills: How often it was killed.
        inside_save: How many of these left a half-written checkpoint behind.
        problem: What was wrong at its end, in words; None if it was as if nothing had happened.
    """

    kills: int = 0
    inside_save: int = 0
    problem: str | None = None


def random_trial(
    root: Path, images: Path, variant: str, world: int, expected: dict, seconds: float, rng: random.Random
) -> Trial:
    """Kill a run one to three times at random, then let it end; one that ends before its first kill is begun anew.

    Of several processes either all are killed at once or one alone; those that do not end of it within a second are
    killed then, as a launcher would.
    """
    root.mkdir(parents=True)
    values, trial = settings(images, root / "run", variant), Trial()
    patch = decode_late if variant == LATE else None
    be_killed(trial, values, patch, world, seconds, rng)
    return finish(trial, values, expected, patch, world)


def decode_late() -> None:
    """Have images decoded at their first visit, by loader workers that are killed with the run."""
    image_set.CACHE_BYTES = 0


def timed_trial(root: Path, images: Path, variant: str, seconds: float, rng: random.Random) -> Trial:
    """The same of a run of some minutes by an erratic clock, compared with an untouched one of the same corrections."""
    root.mkdir(parents=True)
    values, trial = settings(images, root / "run", variant), Trial()
    be_killed(trial, values, erratic_clock, 1, seconds, rng)
    return finish(trial, values, partial(repeated, values, root / "again"), erratic_clock)


def be_killed(trial: Trial, values: dict, patch: Patch | None, world: int, seconds: float, rng: random.Random) -> None:
    """Start a run and kill it, one to three times."""
    out = Path(values["out"])
    while not trial.kills:
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(rng.randint(1, 3)):
            run = start(values, patch, world)
            if run.wait(rng.uniform(0, seconds)) is not None:
                break
            run.kill(rng.choice([run.there, [rng.choice(run.there)]]))
            if run.wait(1) is None:
                run.kill(run.there)
            note_kill(trial, out)


def repeated(values: dict, root: Path) -> dict[str, str]:
    """Digest of an untouched run that has the corrections of another one from the beginning, and makes none itself."""
    planned, out = read_planned(Path(values["out"]) / "log.jsonl"), root / "run"
    write_config(make_config(values), out)
    lines = [json.dumps({"step": step, PLANNED: steps}) + "\n" for step, steps in planned]
    (out / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    if start({**values, "out": str(out)}, no_corrections).wait(TOO_LONG) != 0:
        return {"an untouched run": errors_of(root)}
    return digest(out)


def commit_trial(root: Path, images: Path, expected: dict, operation: int, patch: Patch | None = None) -> Trial:
    """Have a run die at one operation of its second commit, then let it end."""
    root.mkdir(parents=True)
    values, trial = settings(images, root / "run", "plain"), Trial()

    def die() -> None:
        if patch is not None:
            patch()
        die_in("save_checkpoint", OPERATIONS, operation, call=2)

    start_to_die(values, die, trial)
    return finish(trial, values, expected, patch)


def learning_trial(root: Path, images: Path, expected: dict) -> Trial:
    """Have a run die at every operation of writing what it learned, one after the other, then let it end."""
    root.mkdir(parents=True)
    values, trial = settings(images, root / "run", "plain"), Trial()
    while start_to_die(values, partial(die_in, "write_learned", LEARNING, trial.kills), trial):
        pass
    return finish(trial, values, expected)


def start_to_die(values: dict, die: Patch, trial: Trial) -> bool:
    """Start a run that is to die, and note what became of it; whether it did die."""
    out = Path(values["out"])
    code = start(values, die).wait(TOO_LONG)
    if code == -signal.SIGKILL:
        note_kill(trial, out)
    elif code != 0:
        trial.problem = errors_of(out.parent)
    return code == -signal.SIGKILL


def note_kill(trial: Trial, out: Path) -> None:
    """Count a kill and look at what it left."""
    trial.kills += 1
    trial.inside_save += any((out / "checkpoints").glob("tmp_*"))
    trial.problem = trial.problem or lost(out)


def finish(
    trial: Trial,
    values: dict,
    expected: dict | Callable[[], dict],
    patch: Patch | None = None,
    world: int = 1,
) -> Trial:
    """Run to the end and compare; what is expected may follow from the run itself."""
    out = Path(values["out"])
    run = start(values, patch, world)
    code = run.wait(TOO_LONG)
    if code != 0:
        run.kill(run.there)
        trial.problem = trial.problem or f"ended with {code}: {errors_of(out.parent)}"
    else:
        mine, theirs = digest(out), expected() if callable(expected) else expected
        different = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        if different:
            trial.problem = trial.problem or f"differs in {', '.join(different[:5])}"
    shutil.rmtree(out.parent, ignore_errors=True)
    return trial


# Ways to die, and ways to get it wrong


def die_in(writer: str, operations: list, operation: int, call: int = 1) -> None:
    """Make this process kill itself right before an operation of a call of a function that the loop writes with."""
    state = {"calls": 0, "done": 0}

    def watched(owner, name: str) -> None:
        inner = getattr(owner, name)

        def with_death(*arguments, **keywords):
            if state["calls"] == call:
                if state["done"] == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                state["done"] += 1
            return inner(*arguments, **keywords)

        setattr(owner, name, with_death)

    write = getattr(loop, writer)

    def counted(*arguments):
        state["calls"] += 1
        try:
            return write(*arguments)
        finally:
            state["calls"] += state["calls"] == call  # what others write later is not of this call

    setattr(loop, writer, counted)
    for owner, name in operations:
        watched(owner, name)


def erratic_clock() -> None:
    """Have a run's clock go on by itself at every look, at a speed that changes now and then and in each process."""
    make, rng, state = Trainer.__init__, random.Random(os.getpid()), {"now": 0.0, "speed": 1.0}

    def clock() -> float:
        if rng.random() < 0.1:
            state["speed"] = rng.choice([0.3, 1.0, 3.0])
        state["now"] += state["speed"] * rng.uniform(0.5, 1)
        return state["now"]

    Trainer.__init__ = lambda self, config: make(self, config, clock=clock)


def no_corrections() -> None:
    Pace.corrected = lambda self, step, length: None


def no_rename() -> None:
    def save(root: Path, state, keep: int, main: bool) -> Path:
        target = root / f"step_{state.step:08d}"
        for old in checkpoint.checkpoints(root):
            os.replace(old, target)  # only the name: what it holds is overwritten below
        target.mkdir(parents=True, exist_ok=True)
        (target / checkpoint.MANIFEST).unlink(missing_ok=True)
        checkpoint._write(target, state, state.tensors())
        return target

    loop.save_checkpoint = save


def prune_first() -> None:
    def save(root: Path, state, keep: int, main: bool) -> Path:
        for old in checkpoint.checkpoints(root):
            shutil.rmtree(old)
        return save_checkpoint(root, state, keep)

    loop.save_checkpoint = save


def ema_not_restored() -> None:
    PowerEMA.load_state_dict = lambda self, sigma_rel, state: None


def global_random_state() -> None:
    inner = batches.DrawnDataset.sample

    def sample(self, *arguments):
        drawn = inner(self, *arguments)
        return {**drawn, "noise": torch.randn(drawn["noise"].shape)}

    batches.DrawnDataset.sample = sample


CONTROLS = {
    "no rename": no_rename,
    "prune first": prune_first,
    "EMA not restored": ema_not_restored,
    "global random state": global_random_state,
}


def control(root: Path, images: Path, name: str) -> str:
    """Whether the campaign notices what a control spoils, dying late in the second commit."""
    patch = CONTROLS[name]
    expected = reference(root / "reference", images, "plain", patch)[0]
    for attempt in range(CONTROL_TRIES):
        if commit_trial(root / str(attempt), images, expected, operation=2 + attempt, patch=patch).problem:
            return "failed as it must"
    return "PASSED"


def reference(root: Path, images: Path, variant: str, patch: Patch | None = None, world: int = 1) -> tuple[dict, float]:
    """Digest and seconds of a run that nobody touches."""
    root.mkdir(parents=True)
    began = time.monotonic()
    code = start(settings(images, root / "run", variant), patch, world).wait(TOO_LONG)
    seconds = time.monotonic() - began
    if code != 0:
        raise SystemExit(f"the untouched run failed: {errors_of(root)}")
    return digest(root / "run"), seconds


# The campaign


@dataclass
class Count:
    """What a campaign has found so far; as JSON it is the result file, from which the campaign goes on.

    Args:
        kills: Of runs.
        kills_inside_save: Those that left a half-written checkpoint behind.
        runs: All that were killed and let end.
        identical: Those that ended as if nothing had happened.
        one_process_runs: Of them, killed at random.
        two_process_runs: Of them, of two processes.
        timed_runs: Of them, of some minutes instead of steps.
        operations_of_a_commit: Of them, those that died at one operation each; 0 as long as none was tried.
        operations_of_learning: At which one run died, one after the other: of writing what it learned from its data.
        negative_controls: What became of each.
        problems: Of those that did not end so, in words.
        seconds: That all this took.
        hardware: That it ran on.
        code: SHA-256 of the sources that were put to the test.
    """

    kills: int = 0
    kills_inside_save: int = 0
    runs: int = 0
    identical: int = 0
    one_process_runs: int = 0
    two_process_runs: int = 0
    timed_runs: int = 0
    operations_of_a_commit: int = 0
    operations_of_learning: int = 0
    negative_controls: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: int = 0
    hardware: str = field(default_factory=hardware)
    code: str = field(default_factory=lambda: sources())

    def add(self, trial: Trial, kind: str) -> None:
        """Take in a run."""
        self.kills += trial.kills
        self.kills_inside_save += trial.inside_save
        self.runs += 1
        self.identical += trial.problem is None
        if trial.problem:
            self.problems.append(f"{kind}: {trial.problem}")


def sources() -> str:
    """SHA-256 over every source file of the library, by which results of other code are told from those of this."""
    total = hashlib.sha256()
    for file in sorted(file for part in ("attndiff", "training", "pipelines") for file in (ROOT / part).rglob("*.py")):
        total.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()


def earlier(path: Path | None) -> Count:
    """What a result file holds, nothing where there is none."""
    if path is None or not path.is_file():
        return Count()
    try:
        count = Count(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise SystemExit(f"--json {path} is no result of a campaign; name another file.") from None
    for what in ("hardware", "code"):
        if getattr(count, what) != getattr(Count(), what):
            raise SystemExit(f"--json {path} holds a campaign of other {what}; name another file.")
    return count


def commit_trials(root: Path, images: Path, expected: dict) -> list[Trial]:
    """A run for each operation of a commit, up to the first operation that none has."""
    trials: list[Trial] = []
    while not trials or trials[-1].kills:
        trials.append(commit_trial(root / str(len(trials)), images, expected, len(trials)))
    return trials[:-1]


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
    """

    folder: Path
    count: Count = field(default_factory=Count)
    kept: Path | None = None
    lanes: int = 2

    def __post_init__(self):
        self.images = make_images(self.folder / "images")
        self.since = time.monotonic()

    def run(self, runs: int, pairs: int, timed: int) -> Count:
        """Everything, up to so many killed runs of one process, of two, and of some minutes."""
        with ProcessPoolExecutor(self.lanes, multiprocessing.get_context("spawn"), prepare) as pool:
            alone = {v: (v, 1, *self.reference(pool, v)) for v in VARIANTS}
            if not self.count.operations_of_a_commit:
                self.commits_and_controls(pool, alone["plain"][2])
            self.kill_at_random(pool, "one_process_runs", list(alone.values()), runs)
            if self.count.two_process_runs < pairs:
                together = ("plain", 2, *self.reference(pool, "plain", 2))
                self.kill_at_random(pool, "two_process_runs", [together], pairs)
            self.kill_at_random(pool, "timed_runs", [(TIMED, 2 * alone["plain"][3])], timed, timed_trial)
        return self.count

    def reference(self, pool: ProcessPoolExecutor, variant: str, world: int = 1) -> tuple[dict, float]:
        """`reference` in a folder of its own."""
        return pool.submit(
            reference, self.folder / f"references_{world}" / variant, self.images, variant, world=world
        ).result()

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
        at_each_operation = pool.submit(commit_trials, self.folder / "commits", self.images, expected)
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
        ways: list[tuple],
        wanted: int,
        try_one: Callable[..., Trial] = random_trial,
    ) -> None:
        """Up to so many runs of a kind, `PORTION` by `PORTION`; a trial's number is its seed.

        Args:
            pool: Where they run.
            kind: Which of the count's numbers they are.
            ways: Variant, processes, digest and seconds of the runs that they are compared with, taken in turn.
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
