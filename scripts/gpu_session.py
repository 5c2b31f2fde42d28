"""Everything that needs a GPU, in one go that may be cut into calls of a few minutes each.

    python scripts/gpu_session.py OUT --minutes-left 9 --wheels WHEELS --classes FOLDER --emoji FOLDER

Each call goes on where the last one stopped: a stage that is done is skipped, one that was cut off continues from what
its command keeps (result files and checkpoints). Logs, results and the state lie in OUT. The exit status is 0 when all
stages are done, 3 when time ran out, 1 when a stage failed; a failed stage is tried again by the next call.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GRACE = 15.0  # seconds between asking a stage to end and ending it
SHORTEST = 20.0  # seconds; with less left nothing is begun
DONE, TIME_OUT, FAILED = 0, 3, 1


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        name: Of its log and its entry in the state.
        command: Its arguments.
        accepted: Exit codes that mean it is done.
    """

    name: str
    command: list[str]
    accepted: tuple[int, ...] = (0,)


@dataclass
class Session:
    """The stages, their state in a folder, and the time that is left.

    Args:
        stages: In order.
        out: Folder of the state and the logs.
        minutes: Of this call.
        clock: Seconds from any beginning.
    """

    stages: list[Stage]
    out: Path
    minutes: float
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self):
        self.began = self.clock()

    @property
    def state(self) -> dict[str, dict]:
        """What is known of each stage begun."""
        file = self.out / "session.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def left(self) -> float:
        """Seconds until the call has to end, those for ending a stage set aside."""
        return 60 * self.minutes - GRACE - (self.clock() - self.began)

    def plan(self) -> list[str]:
        """A line a stage: what would be done."""
        return [f"{self._status(stage):<8} {stage.name:<12} {shlex.join(stage.command)}" for stage in self.stages]

    def _status(self, stage: Stage) -> str:
        return self.state.get(stage.name, {}).get("status", "to do")

    def run(self) -> int:
        """Run what is not done until all is, a stage fails, or time is out; the exit status."""
        result = DONE
        for stage in self.stages:
            if self._status(stage) == "done":
                print(f"{stage.name}: done before", flush=True)
                continue
            if self.left() < SHORTEST:
                print(f"{stage.name}: no time left in this call", flush=True)
                return TIME_OUT
            status = self._run(stage)
            print(f"{stage.name}: {status}", flush=True)
            if status == "cut off":
                return TIME_OUT
            if status == "failed":  # the stages after it need none of its results
                result = FAILED
        return result

    def _run(self, stage: Stage) -> str:
        self.out.mkdir(parents=True, exist_ok=True)
        start = self.clock()
        with open(self.out / f"{stage.name}.log", "a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(stage.command)}\n")
            log.flush()
            code = run_limited(stage.command, self.left(), log)
        status = "cut off" if code is None else "done" if code in stage.accepted else "failed"
        seconds = self.state.get(stage.name, {}).get("seconds", 0) + self.clock() - start
        state = {**self.state, stage.name: {"status": status, "code": code, "seconds": round(seconds, 1)}}
        temporary = self.out / "session.json.tmp"
        temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.out / "session.json")
        return status


def run_limited(command: list[str], seconds: float, log) -> int | None:
    """Run a command in a process group of its own; its exit code, or None if it had to be ended."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_group(process)


def end_group(process: subprocess.Popen) -> None:
    """End a process and all that it started, asking first."""
    for asked, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, asked)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def make_stages(out: Path, classes: Path | None, emoji: Path | None, caption_column: str) -> list[Stage]:
    """All that needs a GPU; a training whose data is not named is left out."""
    attndiff = [sys.executable, "-m", "attndiff"]
    bench = [sys.executable, str(ROOT / "scripts/bench.py"), "--device", "cuda"]
    attention = [*attndiff, "bench", "--attention", "--device", "cuda"]
    speed = ["--json", str(out / "bench.json"), "--picture", str(out / "bench.png")]
    stages = [
        # 5: no test has the marker
        Stage("tests", [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"], (0, 5)),
        # every backend at the shapes of the presets, and at those of the kinds of attention that they do not have
        Stage("attention", [*attention, "--json", str(out / "attention.json")]),
        Stage("speed", [*bench, *speed]),
    ]
    if classes is not None:
        training = [f"data.path={classes}", f"out={out / 'classes-s'}"]
        stages.append(Stage("classes-s", [*attndiff, "train", "classes-s", *training]))
    if emoji is not None:
        training = [f"data.path={emoji}", f"data.caption_column={caption_column}", f"out={out / 'emoji-s'}"]
        stages.append(Stage("emoji-s", [*attndiff, "train", "emoji-s", *training]))
    return stages


def install(wheels: Path | None) -> None:
    """Install the wheels of a folder that are not there in their version, and attndiff itself, from no index."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--disable-pip-version-check"]
    missing = [str(wheel) for wheel in sorted(wheels.glob("*.whl")) if not is_installed(wheel)] if wheels else []
    if missing:
        subprocess.run([*pip, *missing], check=True)
    if find_spec("attndiff") is None or find_spec("attndiff.training") is None:
        subprocess.run([*pip, "--no-build-isolation", "-e", str(ROOT)], check=True)


def is_installed(wheel: Path) -> bool:
    """Whether the distribution in a wheel is installed in that version."""
    name, release = wheel.name.split("-")[:2]
    try:
        return version(name) == release
    except PackageNotFoundError:
        return False


def main() -> int:
    """Run, or print the plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the state, the logs and the results")
    parser.add_argument("--minutes-left", type=float, default=10.0, help="of this call")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install what is missing from")
    parser.add_argument("--classes", type=Path, help="parquet folder with columns image and label")
    parser.add_argument("--emoji", type=Path, help="parquet folder of 64 px images with captions")
    parser.add_argument("--caption-column", default="caption", help="of --emoji")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and stop")
    options = parser.parse_args()
    for folder in (options.wheels, options.classes, options.emoji):
        if folder is not None and not folder.is_dir():
            parser.error(f"{folder} is no folder.")
    paths = [path and path.resolve() for path in (options.classes, options.emoji)]
    out = options.out.resolve()
    session = Session(make_stages(out, *paths, options.caption_column), out, options.minutes_left)
    if options.dry_run:
        print("\n".join(session.plan()))
        return DONE
    install(options.wheels)
    return session.run()


if __name__ == "__main__":
    sys.exit(main())
