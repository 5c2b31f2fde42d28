"""A run that is killed and let end, and what became of it."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from attndiff.training.config import make_config
from attndiff.training.run.progress import PLANNED, read_planned
from attndiff.training.state.resume import write_config
from killing.deaths import (
    CONTROLS,
    LEARNING,
    OPERATIONS,
    decode_late,
    die_in,
    erratic_clock,
    no_corrections,
)
from killing.processes import TOO_LONG, Patch, errors_of, start
from killing.runs import LATE, digest, lost, settings

CONTROL_TRIES = 6


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


def commit_trials(root: Path, images: Path, expected: dict, every: int = 1) -> list[Trial]:
    """A run for each operation of a commit, or one in ``every``, up to the first operation that none has."""
    trials: list[Trial] = []
    while not trials or trials[-1].kills:
        trials.append(commit_trial(root / str(len(trials)), images, expected, every * len(trials)))
    return trials[:-1]
