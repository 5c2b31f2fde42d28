"""What diffusion brings, and what it does not, beside drawing value after value: both measured on the same images.

    attndiff train emoji-xs task.name=raster out=runs/raster optim.compile=false optim.minutes=60
    attndiff train emoji-xs out=runs/diffusion optim.compile=false optim.minutes=60
    python scripts/tasks/generators.py runs/raster runs/diffusion --data emoji32 --out runs/generators

Writes ``found.json``, a table ``README.md`` and a picture ``samples.png``. Bits per value are exact of the one and at
most those of the other, on images of which both know nothing; ``attndiff evaluate`` says what else there is. Seconds
and memory are of a call for `AT_ONCE` images, each model in a process of its own, on one thread.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from attndiff.apps.bench.memory import forget_peak, peak_resident
from attndiff.apps.bench.report import describe_hardware, write_json
from attndiff.apps.data_settings import data_config
from attndiff.apps.evaluate import EvaluationSettings, evaluate
from attndiff.apps.sample import open_model
from attndiff.drawn import save_picture
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import model_settings, open_reference
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import prompt_of
from attndiff.training.run.progress import read_log
from attndiff.viewing import contact_sheet
from attndiff.words import take_words

KINDS = ("value after value", "diffusion")
AT_ONCE = 16  # images of a timed call
SHOWN = 12  # of the picture
SEED = 0
BITS = {"value after value": "bits_per_value", "diffusion": "bits_per_value_at_most"}


@dataclass
class Cost:
    """What a call takes, by image.

    Args:
        seconds: Of time.
        memory: Bytes above what the open model takes.
        parameters: Of all networks.
    """

    seconds: float
    memory: int
    parameters: int


def opened(folder: str, data: str) -> tuple:
    """A pipeline, and real images for it."""
    pipeline = open_model(folder)
    if pipeline.tokenizer is not None:
        take_words(pipeline.tokenizer)  # held-out captions have words of their own
    return pipeline, open_reference(data_config(data, [], model_settings(pipeline)), pipeline, SEED)


def cost_of(folder: str, data: str, rounds: int) -> Cost:
    """Median cost of a call; in a process of its own, whose memory it is."""
    torch.set_num_threads(1)
    pipeline, reference = opened(folder, data)
    values = prompt_of(pipeline).of_all(reference.choose(AT_ONCE, SEED)[0])
    forget_peak()
    before, seconds = peak_resident(), []
    for _ in range(rounds):
        start = time.perf_counter()
        sample_pixels(pipeline, values, [*range(AT_ONCE)], *pipeline.own_defaults(None, None))
        seconds.append((time.perf_counter() - start) / AT_ONCE)
    networks = [one for one in pipeline.components.values() if isinstance(one, torch.nn.Module)]
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    return Cost(statistics.median(seconds), (peak_resident() - before) // AT_ONCE, parameters)


def training_of(run: Path) -> dict:
    """How long a run was."""
    last = read_log(run / "log.jsonl")[0][-1]
    return {"steps": last["step"], "images": last["images"]}


def measure(run: Path, data: str, n: int, bounded: int) -> tuple[dict, list]:
    """The report of a run's model, and the first of its samples."""
    pipeline, reference = opened(str(run / "pipeline"), data)
    diffuses = hasattr(pipeline, "unet")
    settings = EvaluationSettings(*pipeline.own_defaults(None, None), SEED)
    report = evaluate(pipeline, reference, settings, n, bounded=bounded if diffuses else None)
    test = reference.choose(SHOWN, SEED)[0]
    made = sample_pixels(pipeline, prompt_of(pipeline).of_all(test), [*range(SHOWN)], settings.steps, settings.guidance)
    shown = [as_image(image, test.describe()) for image in made]
    real = [as_image(image, test.describe()) for image in test.tensor()]
    return report, [shown, real, [str(value) for value in prompt_of(pipeline).of_all(test)]]


def rows_of(found: dict) -> list[tuple[str, ...]]:
    """The table: what is measured, by kind of model."""
    reports = [found["models"][kind]["report"] for kind in KINDS]
    costs = [found["models"][kind]["cost"] for kind in KINDS]
    trained = [found["models"][kind]["training"] for kind in KINDS]
    floor = reports[0][BITS[KINDS[0]]]["floor"]
    rows = [("", *KINDS, "real images, or WebP")]
    bits = [report[BITS[kind]]["value"] for kind, report in zip(KINDS, reports, strict=True)]
    rows.append(("bits per value of held-out images", f"{bits[0]:.3f}", f"at most {bits[1]:.3f}", f"{floor:.3f}"))
    for name in ("frechet_distance", "kernel_distance", "coverage", "own_caption_first", "own_class", "near_copies"):
        if all(name in report for report in reports):
            values = [f"{report[name]['value']:.4g}" for report in reports]
            rows.append((name.replace("_", " "), *values, f"{reports[0][name]['floor']:.4g}"))
    rows.append((f"seconds an image, of {AT_ONCE} at once", *(f"{cost['seconds']:.2f}" for cost in costs), ""))
    rows.append(("memory an image", *(f"{cost['memory'] / 2**20:.0f} MiB" for cost in costs), ""))
    rows.append(("parameters", *(f"{cost['parameters'] / 1e6:.1f} M" for cost in costs), ""))
    rows.append(("images seen in training", *(f"{of['images']:,}" for of in trained), ""))
    return rows


def write_table(found: dict, out: Path) -> None:
    """The page beside the JSON."""
    head, *rows = rows_of(found)
    hardware = found["hardware"]
    lines = [
        "# What diffusion brings, and what it does not",
        "",
        f"Both kinds of generator on {found['data']}, {hardware['machine']}, {hardware['torch']}, {hardware['date']}; "
        f"`{hardware['command']}`. Each with its own defaults of sampling, on the captions of held-out images.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "![Samples of both, and the real images](samples.png)",
    ]
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure both and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raster", type=Path, help="run of a model that draws value after value")
    parser.add_argument("diffusion", type=Path, help="run of a diffusion model")
    parser.add_argument("--data", required=True, help="real images with a held-out part")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--n", type=int, default=256, help="samples that are compared with real images")
    parser.add_argument("--likelihood", type=int, default=64, help="held-out images whose bits are bounded")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    command = f"python scripts/tasks/generators.py RASTER DIFFUSION --n {options.n} --likelihood {options.likelihood}"
    found = {"hardware": describe_hardware("cpu") | {"command": command}, "data": Path(options.data).name, "models": {}}
    rows, captions = {}, []
    for kind, run in zip(KINDS, (options.raster, options.diffusion), strict=True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            cost = alone.submit(cost_of, str(run / "pipeline"), options.data, options.rounds).result()
        report, (shown, real, captions) = measure(run, options.data, options.n, options.likelihood)
        rows |= {"real": real, kind: shown}
        found["models"][kind] = {"training": training_of(run), "cost": asdict(cost), "report": report}
        write_json(options.out / "found.json", found)
    save_picture(contact_sheet(rows, captions), options.out / "samples.png")
    write_table(json.loads(json.dumps(found)), options.out)
    print((options.out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
