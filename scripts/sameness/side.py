"""A checkout whose runs are started, waited for and read."""

import json
import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import copytree, rmtree
from string import Template

from sameness.checkout import within
from sameness.figures import PIXELS, Figures, read_run
from sameness.runs import MODELS, RUNS, Run

SCRIPT = Path(__file__).resolve().parents[1] / "same_numbers.py"  # which is a process of a checkout, too
TOO_LONG = 300  # seconds that no process takes
FORK = multiprocessing.get_context("fork")


@dataclass
class Side:
    """One of the two checkouts.

    Args:
        root: The checkout.
        folder: For its runs.
        data: What `make_data` made.
        old: The earlier checkout.
    """

    root: Path
    folder: Path
    data: Path
    old: Path

    def out(self, name: str) -> Path:
        """A run's folder; what it says is in files beside it."""
        return self.folder / name.replace(" ", "_")

    def start(self, name: str) -> BaseProcess:
        """Start a run, or what is left of it."""
        run, out = RUNS[name], self.out(name)
        if run.begun and not out.exists():
            copytree(Path(*self.words(run.begun, out)), out)
            (out / "log.jsonl").write_text("", encoding="utf-8")
        words = self.words(f"{run.command} {run.words}", out)
        if run.parts == (PIXELS,):
            words = [json.dumps({model: self.words(place, out)[0] for model, place in MODELS.items()})]
        process = FORK.Process(target=self.be, args=(run, words, out))
        process.start()
        return process

    def be(self, run: Run, words: list[str], out: Path) -> None:
        """Be the process of a run: this one as it is, or a new one in its place."""
        os.chdir(self.folder)
        for ending, number in {"out": 1, "err": 2}.items():
            said = os.open(f"{out}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, number)
        if not run.anew:
            return within(self.root, run.role, words)
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.processes}"]
        command = [sys.executable, *(several if run.processes > 1 else []), str(SCRIPT)]
        own = {"HF_HOME": str(self.folder / "home"), "PYTHONPATH": ""}  # with the code that comes with models
        os.execve(sys.executable, [*command, "--within", str(self.root), run.role, *words], {**os.environ, **own})

    def problem(self, name: str, process: BaseProcess) -> str | None:
        """Wait for a process; what is wrong with its end, in words, or None."""
        process.join(TOO_LONG)
        if process.is_alive():
            process.kill()
            return f"it takes more than {TOO_LONG} seconds"
        said = Path(f"{self.out(name)}.err").read_text(encoding="utf-8").strip().splitlines()
        return (said[-1].strip() if said else f"ended with {process.exitcode}") if process.exitcode else None

    def figures(self, name: str) -> Figures:
        """What is compared of a run that has ended."""
        if RUNS[name].parts == (PIXELS,):
            return {
                PIXELS: json.loads(Path(f"{self.out(name)}.out").read_text(encoding="utf-8").strip().splitlines()[-1])
            }
        return read_run(self.out(name))

    def words(self, text: str, out: Path) -> list[str]:
        """A command's words with every place put in."""
        places = {"data": self.data, "old": self.old, "runs": self.folder, "out": out}
        return [Template(word).substitute(places) for word in text.split()]


def forget_the_end(out: Path) -> None:
    """Leave a finished run as one that was killed before its last checkpoint."""
    *_, before, last = sorted((out / "checkpoints").glob("step_*"))
    step = int(before.name.removeprefix("step_"))
    rmtree(last)
    rmtree(out / "pipeline")
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "log.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8"
    )
