"""Kill training runs at any moment and see whether they end as if nothing had happened.

    python scripts/kill_campaign.py --fast --json kills.json        # under 5 minutes on two cores
    python scripts/kill_campaign.py --runs 2000 --pairs 200 --json kills.json

A run is killed with SIGKILL one to three times at random, with all its loader workers, started again with the same
command each time, and compared at its end with one that nobody touched: every logged loss in hex, and the SHA-256 of
weights, averages, optimizer moments, sample grid and pipeline. After every kill, what had been committed must still be
there. Further runs die at every single operation of a commit on the disk, and some are of two processes under torchrun.
The result file is written as the campaign goes, and the same command goes on from it.

The negative controls spoil one thing each, and the campaign has to notice:

- "no rename": the one checkpoint there is, is overwritten in place;
- "prune first": the older checkpoint goes before the new one is there;
- "EMA not restored": a resumed run's averages begin with its weights;
- "global random state": noise comes from torch's global generator.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from tqdm import tqdm

from attndiff.training import batches, checkpoint, loop
from attndiff.training.card import hardware
from attndiff.training.checkpoint import newest_checkpoint, save_checkpoint
from attndiff.training.config import make_config
from attndiff.training.ema import PowerEMA
from attndiff.training.loop import Trainer

STEPS, SAVE_EVERY = 12, 3
VARIANTS = {  # what each adds to `settings`
    "plain": {},
    "two loader workers": {"optim": {"workers": 2}},
    "accumulation and dropout": {"optim": {"micro_batch": 2}, "model": {"unet": {"dropout": 0.2}}},
}
CONTROL_TRIES = 6
PORTION = 60  # runs between two writings of the result file
TOO_LONG = 300  # seconds that no run takes
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "training" / "train.py")

OPERATIONS = [  # of a commit on the disk: who does it, under which name
    (checkpoint.Path, "mkdir"),
    (checkpoint, "save_file"),
    (checkpoint.Path, "write_text"),
    (os, "fsync"),
    (checkpoint.Path, "rename"),
    (checkpoint.shutil, "rmtree"),
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
    for section, more in VARIANTS[variant].items():
        values[section] = {**values[section], **more}
    return values


def make_images(folder: Path, count: int = 16) -> Path:
    """Squares of two colours, with a caption beside each."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[2 + i % 4 : -3, 3:-2] = (200, 30, 30) if i % 2 else (30, 30, 200)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("red" if i % 2 else "blue")
    return folder


def digest(out: Path) -> dict[str, str]:
    """All that a finished run has to agree in: losses by step, and hashes of its files."""
    found: dict[str, str] = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "loss" in entry:
            step, loss = f"loss of step {entry['step']}", entry["loss"].hex()
            found[step] = loss if found.get(step, loss) == loss else "two different ones"
    names = [*(out / f"checkpoints/step_{STEPS:08d}").glob("*.safetensors"), *(out / "samples").glob("*.png")]
    for file in [*names, *(out / "pipeline").rglob("*.safetensors")]:
        found[file.relative_to(out).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def lost(out: Path) -> str | None:
    """What of the committed work is gone after a kill, in words, or None."""
    log = out / "log.jsonl"
    whole = log.read_text().rpartition("\n")[0].splitlines() if log.is_file() else []
    last = max((entry["step"] for entry in map(json.loads, whole) if "loss" in entry), default=0)
    committed = (last - 1) // SAVE_EVERY * SAVE_EVERY  # the save after the very last step may not have ended
    newest, _ = newest_checkpoint(out / "checkpoints")
    have = int(newest.name.removeprefix("step_")) if newest else 0
    return None if have >= committed else f"step {committed} had been committed, and {have} is what is left"


# One process, forked off one that has imported everything


def start(values: dict, patch: Patch | None) -> int:
    """Fork a process that runs ``values``; its id, which is that of its group too."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        errors = open(Path(values["out"]).parent / "errors.txt", "w")  # noqa: SIM115 - open until the process ends
        os.dup2(errors.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        if patch is not None:
            patch()
        Trainer(make_config(values)).run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def ended(pid: int, within: float) -> int | None:
    """The exit code of a process, None if it is still there after so many seconds."""
    until = time.monotonic() + within
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def kill(pid: int) -> None:
    """SIGKILL to a process and its group."""
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


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


def one_process_trial(
    root: Path, images: Path, variant: str, expected: dict, seconds: float, seed: int, patch: Patch | None = None
) -> Trial:
    """Kill a run one to three times at random, then let it end."""
    rng, out, trial = random.Random(seed), root / "run", Trial()
    root.mkdir(parents=True)
    values = settings(images, out, variant)
    for _ in range(rng.randint(1, 3)):
        pid = start(values, patch)
        if ended(pid, rng.uniform(0, seconds)) is not None:
            break
        kill(pid)
        note_kill(trial, out)
    return finish(trial, values, expected, patch)


def commit_trial(root: Path, images: Path, expected: dict, operation: int, patch: Patch | None = None) -> Trial:
    """Have a run die at one operation of its second commit, then let it end."""
    root.mkdir(parents=True)
    values, trial = settings(images, root / "run", "plain"), Trial()

    def die() -> None:
        if patch is not None:
            patch()
        die_in_save(operation)

    code = ended(start(values, die), TOO_LONG)
    if code == -signal.SIGKILL:
        note_kill(trial, root / "run")
    elif code != 0:
        trial.problem = (root / "errors.txt").read_text()[-500:]
    return finish(trial, values, expected, patch)


def note_kill(trial: Trial, out: Path) -> None:
    """Count a kill and look at what it left."""
    trial.kills += 1
    trial.inside_save += any((out / "checkpoints").glob("tmp_*"))
    trial.problem = trial.problem or lost(out)


def finish(trial: Trial, values: dict, expected: dict, patch: Patch | None) -> Trial:
    """Run to the end and compare."""
    out = Path(values["out"])
    code = ended(start(values, patch), TOO_LONG)
    if code != 0:
        trial.problem = trial.problem or f"ended with {code}: {(out.parent / 'errors.txt').read_text()[-500:]}"
    elif digest(out) != expected:
        mine = digest(out)
        different = sorted(key for key in mine.keys() | expected.keys() if mine.get(key) != expected.get(key))
        trial.problem = trial.problem or f"differs in {', '.join(different[:5])}"
    shutil.rmtree(out.parent, ignore_errors=True)
    return trial


# Two processes


def two_process_trial(root: Path, images: Path, expected: dict | None, seconds: float, seed: int) -> Trial | dict:
    """Kill both processes of a run under torchrun at once, then let it end; without ``expected``, its digest."""
    rng, out, trial = random.Random(seed), root / "run", Trial()
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps(settings(images, out, "plain")))
    command = [*TORCHRUN, TRAIN, str(root / "config.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if expected is not None:
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        time.sleep(rng.uniform(0.5, 1) * seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kill_orphans(str(root / "config.json"))
            note_kill(trial, out)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TOO_LONG)
    if done.returncode:
        trial.problem = trial.problem or done.stderr[-500:]
    elif expected is None:
        return digest(out)
    elif digest(out) != expected:
        trial.problem = trial.problem or "differs"
    shutil.rmtree(root, ignore_errors=True)
    return trial


def kill_orphans(argument: str) -> None:
    """SIGKILL to processes whose command line ends with this; torchrun starts each in a group of its own."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[-1] == argument:
            process.kill()
            process.wait()


# Ways to die, and ways to get it wrong


def die_in_save(operation: int, save: int = 2) -> None:
    """Make this process kill itself right before the given operation of the given commit."""
    state = {"saves": 0, "done": 0}

    def watched(owner, name: str) -> None:
        inner = getattr(owner, name)

        def with_death(*arguments, **keywords):
            if state["saves"] == save:
                if state["done"] == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                state["done"] += 1
            return inner(*arguments, **keywords)

        setattr(owner, name, with_death)

    write = loop.save_checkpoint

    def counted(*arguments):
        state["saves"] += 1
        try:
            return write(*arguments)
        finally:
            state["saves"] += state["saves"] == save  # what others write later is not of this commit

    loop.save_checkpoint = counted
    for owner, name in OPERATIONS:
        watched(owner, name)


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


def reference(root: Path, images: Path, variant: str, patch: Patch | None = None) -> tuple[dict, float]:
    """Digest and seconds of a run that nobody touches."""
    root.mkdir(parents=True)
    began = time.monotonic()
    code = ended(start(settings(images, root / "run", variant), patch), TOO_LONG)
    seconds = time.monotonic() - began
    if code != 0:
        raise SystemExit(f"the untouched run failed: {(root / 'errors.txt').read_text()[-2000:]}")
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
        operations_of_a_commit: Of them, those that died at one operation each; 0 as long as none was tried.
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
    operations_of_a_commit: int = 0
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
        count = Count(**json.loads(path.read_text()))
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


@dataclass
class Campaign:
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

    def run(self, runs: int, pairs: int) -> Count:
        """Everything, up to so many killed runs of one process and of two."""
        with ProcessPoolExecutor(self.lanes, multiprocessing.get_context("spawn"), prepare) as pool:
            asked = {v: pool.submit(reference, self.folder / "references" / v, self.images, v) for v in VARIANTS}
            references = {variant: future.result() for variant, future in asked.items()}
            if not self.count.operations_of_a_commit:
                self.commits_and_controls(pool, references["plain"][0])
            with tqdm(desc="Killed runs", total=runs, initial=self.count.one_process_runs) as bar:
                while self.count.one_process_runs < runs:
                    self.portion(pool, references, runs, bar)
        self.pairs(pairs)
        return self.count

    def save(self) -> None:
        """Write the count, whole or not at all."""
        self.count.seconds += round(time.monotonic() - self.since)
        self.since = time.monotonic()
        if self.kept:
            temporary = self.kept.with_name(self.kept.name + ".tmp")
            temporary.write_text(json.dumps(asdict(self.count), indent=1) + "\n")
            temporary.replace(self.kept)

    def commits_and_controls(self, pool: ProcessPoolExecutor, expected: dict) -> None:
        """A run for each operation of a commit, and the negative controls."""
        at_each_operation = pool.submit(commit_trials, self.folder / "commits", self.images, expected)
        spoilt = {name: pool.submit(control, self.folder / "controls" / name, self.images, name) for name in CONTROLS}
        for k, trial in enumerate(at_each_operation.result()):
            self.count.add(trial, f"operation {k} of a commit")
        self.count.operations_of_a_commit = len(at_each_operation.result())
        self.count.negative_controls = {name: future.result() for name, future in spoilt.items()}
        self.save()

    def portion(self, pool: ProcessPoolExecutor, references: dict, runs: int, bar: tqdm) -> None:
        """The next `PORTION` runs of one process; a trial's number is its seed."""
        first = self.count.one_process_runs
        jobs = {}
        for i in range(first, min(first + PORTION, runs)):
            variant, where = list(VARIANTS)[i % len(VARIANTS)], self.folder / "runs" / str(i)
            jobs[pool.submit(one_process_trial, where, self.images, variant, *references[variant], i)] = variant
        for job in as_completed(jobs):
            self.count.add(job.result(), jobs[job])
            bar.update()
        self.count.one_process_runs += len(jobs)
        self.save()

    def pairs(self, pairs: int) -> None:
        """Runs of two processes, one after another."""
        if self.count.two_process_runs >= pairs:
            return
        began = time.monotonic()
        expected = two_process_trial(self.folder / "pairs" / "reference", self.images, None, 0.0, 0)
        seconds = time.monotonic() - began
        for i in tqdm(range(self.count.two_process_runs, pairs), "Killed runs of two processes"):
            trial = two_process_trial(self.folder / "pairs" / str(i), self.images, expected, seconds, i)
            self.count.add(trial, "two processes")
            self.count.two_process_runs += 1
            self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="100 runs and 5 of two processes")
    parser.add_argument("--runs", type=int, default=2000, help="killed runs of one process")
    parser.add_argument("--pairs", type=int, default=200, help="killed runs of two processes")
    parser.add_argument("--json", type=Path, help="result file; a campaign that it holds a part of goes on from there")
    arguments = parser.parse_args()
    runs, pairs = (100, 5) if arguments.fast else (arguments.runs, arguments.pairs)
    so_far = earlier(arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        count = Campaign(Path(folder), so_far, arguments.json).run(runs, pairs)
    print(json.dumps(asdict(count), indent=1))
    spoilt = [name for name, result in count.negative_controls.items() if result == "PASSED"]
    if count.identical != count.runs or spoilt:
        raise SystemExit(f"{count.runs - count.identical} runs went wrong; controls unnoticed: {spoilt}")


if __name__ == "__main__":
    main()
