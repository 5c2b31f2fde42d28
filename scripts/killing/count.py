"""What a campaign has found so far, and of which code."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from attndiff.training.card import hardware
from killing.trials import Trial

ROOT = Path(__file__).parents[2]


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
