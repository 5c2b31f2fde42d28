"""See whether this checkout trains and samples with the numbers of an earlier one, run beside it on the same machine.

    python scripts/same_numbers.py ../earlier                            # a few minutes on two cores
    python scripts/same_numbers.py ../earlier --only text,LoRA --json same.json

Both are driven as a user drives them, each run in a process of its own that finds attndiff in its checkout and nowhere
else, on one thread of the CPU in float32, so that sums are rounded alike. Every logged training loss is compared in
hex, every held-out loss and distance likewise, and pixels by their SHA-256: those of the sample grids, and those of
models that are opened by `attndiff.load`, by stock diffusers where attndiff cannot be imported, and by their network
alone. What differs on purpose is said in `EXPECTED`, by run and part; anything else that differs fails.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from sameness.checkout import within
from sameness.figures import PARTS
from sameness.made import make_data
from sameness.runs import RUNS
from sameness.side import FORK, Side, forget_the_end
from sameness.verdict import EXPECTED, Verdict, compare

ROOT = Path(__file__).resolve().parents[1]
SLOW = ["accelerate", "datasets", "diffusers.pipelines.pipeline_utils", "diffusers.models.autoencoders", "peft"]
SLOW += ["matplotlib.pyplot", "torch._dynamo", "torch.distributed.fsdp", "transformers.integrations.flash_attention"]


def prepare() -> None:
    """Import, once for all processes, what takes longest and is none of a checkout's; on one thread of the CPU."""
    ones = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")
    os.environ.update({**dict.fromkeys(ones, "1"), "CUDA_VISIBLE_DEVICES": ""})
    for slow in SLOW:
        importlib.import_module(slow)
    sys.modules["torch"].set_num_threads(1)


def with_needed(names: list[str]) -> list[str]:
    """The named runs and those they need, in the order of `RUNS`."""
    wanted, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting += RUNS[name].needs
    return [name for name in RUNS if name in wanted]


def run_both(name: str, sides: dict[str, Side], failed: set[str]) -> Verdict:
    """A run in both checkouts at once."""
    lacking = [need for need in RUNS[name].needs if need in failed]
    if lacking:
        return Verdict(problem=f"FAILED: needs {', '.join(lacking)}")
    problems = at_once(name, sides)
    if RUNS[name].stopped and not problems:
        for side in sides.values():
            forget_the_end(side.out(name))
        problems = at_once(name, sides)
    found = {} if problems else {which: side.figures(name) for which, side in sides.items()}
    lacks = {(which, part) for which, figures in found.items() for part in RUNS[name].parts if not figures[part]}
    problems += [f"{which}: there are no {part}" for which, part in sorted(lacks)]
    return Verdict(problem=f"FAILED in {'; '.join(problems)}") if problems else compare(name, list(found.values()))


def at_once(name: str, sides: dict[str, Side]) -> list[str]:
    """Start a run in both checkouts and wait for both; what is wrong with their ends."""
    processes = {which: side.start(name) for which, side in sides.items()}
    problems = {which: side.problem(name, processes[which]) for which, side in sides.items()}
    return [f"{which}: {problem}" for which, problem in problems.items() if problem]


def line(name: str, cells: list[object], verdict: object) -> str:
    """A row of the table."""
    return f"{name:<30} {' '.join(f'{cell!s:>16}' for cell in cells)}  {verdict}"


def shares(counts: dict[str, tuple[int, int]]) -> list[str]:
    """Equal numbers of each part out of all."""
    found = [counts.get(part, (0, 0)) for part in PARTS]
    return [f"{equal}/{total}" if total else "-" for equal, total in found]


def campaign(names: list[str], old: Path) -> dict[str, Verdict]:
    """All runs, a row printed as soon as both checkouts have done one."""
    verdicts: dict[str, Verdict] = {}
    print(line("run", list(PARTS), ""), flush=True)
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        maker = FORK.Process(target=make_data, args=(data,))  # so that this process has no threads when it forks
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the data for the runs could not be made")
        sides = {name: Side(root, Path(folder) / name, data, old) for name, root in {"old": old, "new": ROOT}.items()}
        for side in sides.values():
            side.folder.mkdir()
        for name in names:
            failed = {other for other, verdict in verdicts.items() if not verdict.counts}
            verdicts[name] = run_both(name, sides, failed)
            print(line(name, shares(verdicts[name].counts), verdicts[name]), flush=True)
    return verdicts


def arguments() -> argparse.Namespace:
    """Those of the command, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT", help="an earlier checkout")
    parser.add_argument("--only", help=f"runs, divided by commas, of: {', '.join(RUNS)}")
    parser.add_argument("--json", type=Path, help="file for the counts")
    found = parser.parse_args()
    found.old = found.old.resolve()
    if not (found.old / "pyproject.toml").is_file():
        parser.error(f"{found.old} is no checkout: it has no pyproject.toml")
    found.only = found.only.split(",") if found.only else list(RUNS)
    unknown = [name for name in [*found.only, *EXPECTED] if name not in RUNS]
    unknown += [part for parts in EXPECTED.values() for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; the runs are {', '.join(RUNS)}")
    return found


def main() -> None:
    if sys.argv[1:2] == ["--within"]:
        return within(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    asked, began = arguments(), time.monotonic()
    verdicts = campaign(with_needed(asked.only), asked.old)
    equal, total = Counter(), Counter()
    for verdict in verdicts.values():
        for part, (same, all_) in verdict.counts.items():
            equal[part] += same
            total[part] += all_
    wrong = [name for name, verdict in verdicts.items() if verdict.problem]
    seconds = round(time.monotonic() - began)
    ending = f"{len(wrong)} of {len(verdicts)} runs are wrong" if wrong else "everything is as it should be"
    totals = shares({part: (equal[part], total[part]) for part in PARTS})
    print(line(f"{len(verdicts)} runs, {seconds} s", totals, ending))
    if asked.json:
        runs = {name: vars(verdict) for name, verdict in verdicts.items()}
        asked.json.write_text(
            json.dumps({"runs": runs, "wrong": wrong, "seconds": seconds}, indent=1) + "\n", encoding="utf-8"
        )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
