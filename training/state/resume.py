"""What a run finds in its folder, and whether it may go on from there."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attndiff.errors import UserError
from attndiff.training.config import TrainConfig, make_config, store_config
from attndiff.training.latents import FOLDER as LATENTS
from attndiff.training.parallel.layout import ParallelLayout, check_resumed
from attndiff.training.parts.opening import DECODED
from attndiff.training.state.checkpoint import (
    named_learned,
    newest_checkpoint,
    read_layout,
    read_learned_name,
    sync,
)
from attndiff.training.state.learned import INTAKE, Learned, read_learned
from attndiff.training.stopping import LOCK

# Sections that a resumed run must agree with.
SETTLED = ("task", "data", "condition", "model", "objective", "optim", "distill")
LEARNED_FROM = (
    "task",
    "data",
    "condition",
    "model",
    "objective",
    "distill",
)  # sections on which it depends what is learned
PARTIAL = "config.json.partial"
TRIAL_FILES = ("lr_range.png", "lr_range.json")  # of a learning-rate range test, which may come before the run
Printer = Callable[[str], None]


def check_run_folder(out: Path) -> None:
    """Refuse to write into a folder that is not a run's.

    Raises:
        UserError: If ``out`` is a file, or holds anything but a run.
    """
    if out.is_file():
        raise UserError(f"out {out} is a file; name a folder.")
    # A run that was stopped before step 1 left what it had made of its images; a rate may be looked for before it.
    of_no_step = LATENTS, DECODED, LOCK, PARTIAL, *TRIAL_FILES
    used = out.is_dir() and any(path.name not in of_no_step for path in out.iterdir())
    if used and not (out / "config.json").is_file():
        raise UserError(f"out {out} holds files that are not a run's; choose an empty or new folder.")


def write_config(config: TrainConfig, out: Path) -> None:
    """Store the resolved settings, as JSON to go on by and as YAML to read.

    The JSON, by which the folder is a run's, comes first and is whole at any moment at which the run may be killed.
    """
    out.mkdir(parents=True, exist_ok=True)
    partial = out / PARTIAL
    partial.write_text(json.dumps(config.model_dump(mode="json"), indent=1), encoding="utf-8")
    sync(partial)
    partial.replace(out / "config.json")
    sync(out)
    store_config(config, out / "config.yaml")


def write_left_out(left_out: list[tuple[str, str]] | list[str], out: Path) -> None:
    """Name what of the data is not read: pairs of name and reason, of a stream sentences."""
    (out / "left_out.json").write_text(json.dumps(left_out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def settle_by_stored(config: TrainConfig, out: Path) -> TrainConfig | None:
    """The config of the unfinished run that a folder holds; None if it holds none.

    Runs once settled their minutes before step 1 and stored the steps; one of these goes on with them.

    Raises:
        UserError: If that is a run of another config; the differences are named.
    """
    if not (out / "config.json").is_file():
        return None
    stored = stored_settings(out)
    mine = config.model_dump(mode="json")
    if config.optim.steps is None and stored["optim"]["steps"] is not None:
        mine["optim"] |= {"steps": stored["optim"]["steps"], "minutes": None}
    pairs = [(s, stored[s] or {}, mine[s] or {}) for s in SETTLED]
    sections = [(f"{s}.{key}", a.get(key), b.get(key)) for s, a, b in pairs for key in a | b]
    answered = {"optim.micro_batch", *(_places(stored["data"], mine["data"]))}  # by `check_resumed`
    settled = [each for each in sections if each[0] not in answered]
    settled.append(("seed", stored["seed"], mine["seed"]))
    different = [f"{name}: {then!r} then, {now!r} now" for name, then, now in settled if then != now]
    if different:
        raise UserError(
            f"{out} holds a run of another config ({'; '.join(different)}); choose another 'out' or "
            "restore the settings."
        )
    return make_config(mine)


def _places(then: dict, now: dict) -> list[str]:
    """Settings that say where the data lie, which may move: a fingerprint says that they are the same."""
    if then["stream"] or now["stream"]:
        return []
    return [f"data.{key}" for key in ("path", "validation") if isinstance(then[key], str) and isinstance(now[key], str)]


def stored_settings(out: Path) -> dict:
    """The settings of the run that a folder holds; those that it does not know of yet were at their defaults."""
    return make_config(json.loads((out / "config.json").read_text(encoding="utf-8"))).model_dump(mode="json")


def kept_learned(config: TrainConfig, out: Path) -> Learned | None:
    """What the run that a folder holds has learned from its data; None where it is to be learned.

    That is so before the first checkpoint, of runs older than such folders, and for settings that are not the run's
    (of a trial, or of a run that `settle_by_stored` refuses).

    Raises:
        UserError: If it is missing or changed, or images were read in another way then.
    """
    if not (out / "config.json").is_file():
        return None
    stored, mine = stored_settings(out), config.model_dump(mode="json")
    named = named_learned(out / "checkpoints")
    if named is None:
        return None
    for place in _places(stored["data"], mine["data"]):
        stored["data"].pop(place.removeprefix("data.")), mine["data"].pop(place.removeprefix("data."))
    if any(stored[section] != mine[section] for section in LEARNED_FROM):
        return None
    learned = read_learned(out, named)
    if learned.read_otherwise or (learned.intake != INTAKE and learned.fingerprint is None):
        raise UserError(_read_otherwise(learned, out))
    return learned


def _read_otherwise(learned: Learned, out: Path) -> str:
    return (
        f"the run in {out} read its images in another way (version {learned.intake}, and this attndiff has {INTAKE}), "
        "which some of them show; go on with the version that began it, or choose another 'out'."
    )


def check_learned(checkpoint: Path, learned: Learned, out: Path, say: Printer) -> None:
    """Refuse to go on with weights that name another ``learned/``; say so if they name none.

    Raises:
        UserError: If another process has taken the run further since this one found it.
    """
    named = read_learned_name(checkpoint)
    if named is None and learned.digest is None:
        say(
            f"the run in {out} began before runs kept what they learn from their data: it is learned again, from the "
            "data as they are now"
        )
    elif named not in (None, learned.digest):
        raise UserError(f"another process has taken the run in {out} further meanwhile; run the same command again.")


def newest_of(out: Path, say: Printer) -> Path | None:
    """The newest whole checkpoint of a run, if it has come to one.

    Raises:
        UserError: If there are checkpoints and none of them is whole, or the log tells of some and there are none.
    """
    newest, problems = newest_checkpoint(out / "checkpoints")
    for problem in problems:
        say(f"{problem} Falling back to an older one.")
    if newest is None and problems:
        raise UserError(f"no checkpoint in {out} is whole; choose another 'out' to start anew.")
    if (
        newest is None
        and (out / "log.jsonl").is_file()
        and '"checkpoint_seconds"' in (out / "log.jsonl").read_text(encoding="utf-8")
    ):
        raise UserError(
            f"the run in {out} has saved checkpoints, and {out / 'checkpoints'} holds none; put them back, or choose "
            "another 'out' to start anew."
        )
    return newest


def adopt_layout(
    checkpoint: Path, now: ParallelLayout, learned: Learned, out: Path, elastic: bool, say: Printer
) -> ParallelLayout:
    """How the work is laid out from here on: a micro-batch that was lowered stays so.

    Raises:
        UserError: If the run was laid out otherwise and ``elastic`` was not asked for, or its data has changed.
    """
    then = read_layout(checkpoint)
    if then is None:
        return now
    if then.lowered and then.processes == now.processes and then.micro_batch < now.micro_batch:
        say(f"micro-batches of {then.micro_batch}, as memory ran out with larger ones before")
        now = replace(now, micro_batch=then.micro_batch, lowered=True)
    if learned.intake != INTAKE and None not in (then.data, now.data) and then.data != now.data:
        raise UserError(_read_otherwise(learned, out))
    check_resumed(then, now, str(out), elastic)
    if not then.same_sums(now):
        say(
            f"going on with {now} instead of {then}: the same images, order and noise, and losses that agree within "
            "rounding"
        )
    return now
