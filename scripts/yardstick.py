"""Is the yardstick of `attndiff evaluate` to be believed? Tried on models that are known to be bad.

    python scripts/yardstick.py DATA --out model_cards

For every data set at hand the extractor is trained as `attndiff evaluate` trains it, and measures, beside real images:
an untrained model; one trained for a few seconds; real images with much noise; real images of one class or style
alone; and, where images have captions or classes, real images with those of others. Every number that `attndiff
evaluate` would print as a judgement must put real images before all of these, but for precision and density where
variety alone is missing. DATA is a folder of data sets by name, `READERS`; those that are absent are left
out, and the emoji that come with the package are always there.

Writes yardstick.json and yardstick.png; exits with 1 if an order is wrong.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from attndiff.drawn import SOFTWARE
from attndiff.folder.open import load
from attndiff.folder.shipped import bundled_data
from attndiff.metrics.controls import CONTROLS, noised
from attndiff.metrics.extractors.base import Extractor, NothingLearned
from attndiff.metrics.extractors.pretext import Material
from attndiff.metrics.extractors.trained import CLASSES, trained_extractor
from attndiff.metrics.measure import DISTANCES, measure
from attndiff.metrics.own_condition import NAMES, exchanged, own_condition
from attndiff.metrics.samples import sample_pixels
from attndiff.metrics.shares import share
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer

AT_MOST = 600  # images a side
TRAINING = 6_000
STEPS = 8  # of sampling
BRIEFLY = 120  # training steps
FIDELITY = ("precision", "density")  # which need not see that variety alone is missing


# The data


@dataclass
class Parts:
    """Images to learn from and to compare with, as many others for the floor, and what a model is conditioned on."""

    rest: Material
    test: Material
    others: Material
    kind: str

    @property
    def conditions(self) -> list[str] | list[int]:
        """Of the test images."""
        return conditions_of(self.test, self.kind)


def conditions_of(material: Material, kind: str) -> list:
    """The first caption or the class of every image."""
    if kind == "text":
        return [several[0] for several in material.captions]
    return [int(label) for label in material.columns[CLASSES]] if kind == "class" else [None] * len(material)


def rows_of(material: Material, rows: list[int]) -> Material:
    """Some of the images."""
    captions = material.captions and [material.captions[i] for i in rows]
    columns = {name: [values[i] for i in rows] for name, values in material.columns.items()}
    return Material(material.images[rows], captions, columns)


def pixels(picture: bytes | Image.Image, mode: str, side: int) -> torch.Tensor:
    """``(C, side, side)`` in [-1, 1], clear parts white."""
    image = picture if isinstance(picture, Image.Image) else Image.open(io.BytesIO(picture))
    if image.mode in ("RGBA", "P") and mode == "RGB":
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    levels = np.asarray(image.convert(mode).resize((side, side), Image.Resampling.BOX), np.float32)
    return torch.from_numpy(levels.reshape(side, side, -1).transpose(2, 0, 1) / 127.5 - 1)


def read(
    file: Path,
    at_most: int,
    caption: str | None = None,
    columns: tuple[str, ...] = (),
    mode: str = "RGB",
    side: int = 32,
    frames: tuple[int, ...] | None = None,
) -> Material:
    """Images of a parquet file in random order; with ``frames``, those of its strips of 64 px."""
    table = pq.read_table(file)
    rows = table.take(np.random.default_rng(0).permutation(len(table))[:at_most]).to_pylist()
    images, captions, said = [], [], {name: [] for name in columns}
    for row in rows:
        strip = None if frames is None else Image.open(io.BytesIO(row["strip"])).convert("RGBA")
        cut = [row["image"]["bytes"]] if frames is None else [strip.crop((64 * k, 0, 64 * k + 64, 64)) for k in frames]
        texts = [] if caption is None else [row[caption]] if isinstance(row[caption], str) else row[caption]
        for picture in cut:
            images.append(pixels(picture, mode, side))
            captions.append(texts)
            for name in columns:
                said[name].append(str(row[name]))
    if "label" in said:
        said[CLASSES] = said.pop("label")
    return Material(torch.stack(images), captions if caption else None, said)


def emoji(_: Path) -> tuple[Material, Material]:
    """The emoji that come with the package."""
    folder, what = bundled_data("emoji32"), ("captions", ("style", "group"))
    return read(folder / "train.parquet", TRAINING, *what), read(folder / "validation.parquet", AT_MOST, *what)


def icons(root: Path) -> tuple[Material, Material]:
    """Icons with captions."""
    parts = (root / f"icons32/{part}.parquet" for part in ("train", "validation"))
    train, test = (read(part, TRAINING, "caption", ("style", "set"), "L") for part in parts)
    return train, test


def unnamed_icons(root: Path) -> tuple[Material, Material]:
    """The same of which nothing is said."""
    return tuple(replace(part, captions=None, columns={}) for part in icons(root))


def cifar(root: Path) -> tuple[Material, Material]:
    """Photographs of ten classes."""
    return tuple(read(root / f"cifar10/{part}.parquet", TRAINING, None, ("label",)) for part in ("train", "test"))


def sprites(root: Path) -> tuple[Material, Material]:
    """Single frames of figures in motion, described at length."""
    what = {"columns": ("kind", "hair_colour", "torso", "action", "direction"), "frames": (3,)}
    parts = (root / f"sprites/clips-{part}.parquet" for part in ("train", "validation"))
    return tuple(read(part, TRAINING, "caption", **what) for part in parts)


def views(root: Path) -> tuple[Material, Material]:
    """Objects from eight sides."""
    parts = (root / f"views/views-{part}.parquet" for part in ("train", "validation"))
    return tuple(read(part, TRAINING, "caption", ("pack",), frames=tuple(range(8))) for part in parts)


def camvid(root: Path) -> tuple[Material, Material]:
    """Street scenes, few and all alike, of which nothing is said; halved at random."""
    return halves(read(root / "camvid/train.parquet", TRAINING, side=64))


def flickr(root: Path) -> tuple[Material, Material]:
    """Few photographs with long captions; halved at random."""
    return halves(read(root / "flickr/train.parquet", TRAINING, "captions", side=64))


def halves(whole: Material) -> tuple[Material, Material]:
    """Every second image."""
    return rows_of(whole, [*range(0, len(whole), 2)]), rows_of(whole, [*range(1, len(whole), 2)])


READERS: dict[str, Callable[[Path], tuple[Material, Material]]] = {
    "emoji": emoji,
    "icons": icons,
    "icons, nothing said": unnamed_icons,
    "cifar": cifar,
    "sprites": sprites,
    "views": views,
    "camvid": camvid,
    "flickr": flickr,
}


def parts_of(train: Material, test: Material, at_most: int = AT_MOST) -> Parts:
    """As `attndiff evaluate` divides them."""
    n = min(at_most, len(test), len(train))
    others, rest = rows_of(train, [*range(n)]), rows_of(train, [*range(n, len(train))])
    kind = "text" if train.captions else "class" if CLASSES in train.columns else "none"
    return Parts(train if len(rest) < 500 else rest, rows_of(test, [*range(n)]), others, kind)


# The bad models


def one_condition(parts: Parts) -> torch.Tensor | None:
    """Real images of the commonest class, or value of the first column, again and again."""
    values = parts.rest.columns.get(CLASSES) or next(iter(parts.rest.columns.values()), None)
    if values is None:
        return None
    (commonest, _), *_ = Counter(values).most_common(1)
    rows = [i for i, value in enumerate(values) if value == commonest]
    return parts.rest.images[[rows[i % len(rows)] for i in range(len(parts.test))]]


def trained_samples(parts: Parts, steps: int, folder: Path) -> torch.Tensor:
    """Samples, for the conditions of the test images, of a tiny model that was trained for some steps."""
    mode, side = ("L" if parts.rest.images.shape[1] == 1 else "RGB"), parts.rest.images.shape[-1]
    data = {"path": str(_written(parts, folder)), "size": side, "channels": mode}
    data |= {"text": {"caption_column": "caption"}, "class": {"label_column": "label"}, "none": {}}[parts.kind]
    optim = {"steps": steps, "batch_size": 32, "warmup": 1, "precision": "fp32", "lr": 3e-3 if steps > 1 else 1e-9}
    settings = {"out": str(folder / f"run{steps}"), "data": data, "condition": {"kind": parts.kind}, "optim": optim}
    Trainer(make_config({**settings, "model": {"preset": "tiny"}, "log": {"tracker": None, "every": steps}})).run()
    pipeline = load(folder / f"run{steps}/pipeline")
    names = (pipeline.config.data or {}).get("class_names")
    conditions = [names.index(str(c)) if names else c for c in parts.conditions]
    return sample_pixels(pipeline, conditions, range(len(parts.test)), STEPS, 1.0)


def _written(parts: Parts, folder: Path) -> Path:
    """The training images as a parquet file."""
    file = folder / "data/train.parquet"
    if not file.is_file():
        file.parent.mkdir(parents=True)
        levels = ((parts.rest.images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        rows = [{"image": {"bytes": _png(level), "path": None}} for level in levels]
        for row, condition in zip(rows, conditions_of(parts.rest, parts.kind), strict=True):
            row |= {"caption": str(condition), "label": str(condition)}
        pq.write_table(pa.Table.from_pylist(rows), file)
    return file.parent


def _png(levels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(buffer, "PNG")
    return buffer.getvalue()


# The trial


def bad_models(parts: Parts, folder: Path) -> dict[str, torch.Tensor]:
    """Samples by what is wrong with them."""
    found = {
        "untrained": trained_samples(parts, 1, folder),
        "briefly_trained": trained_samples(parts, BRIEFLY, folder),
        "noise_added": noised(noised(parts.others.images)),
        "one_condition": one_condition(parts),
    }
    return {name: samples for name, samples in found.items() if samples is not None}


def trial(parts: Parts, bad: dict[str, torch.Tensor]) -> dict:
    """What the yardstick says of real images and of bad models, and where it is wrong."""
    began = time.perf_counter()
    try:
        extractor = trained_extractor(parts.rest, parts.test)
    except NothingLearned as refusal:
        return {"refused": str(refusal), "wrong": []}
    report = {"n": len(parts.test), "training_images": len(parts.rest), "extractor": extractor.name}
    report |= {"pretexts": extractor.accuracy["pretexts"], "seconds_to_train": round(time.perf_counter() - began, 1)}
    of = {name: measure(parts.test.images, x, parts.others.images, extractor) for name, x in bad.items()}
    report["metrics"] = {}
    for name, entry in next(iter(of.values())).items():
        kept = {key: entry[key] for key in ("floor", "controls", "judges", "why_not") if key in entry}
        report["metrics"][name] = {**kept, "bad": {model: found[name]["value"] for model, found in of.items()}}
    if parts.kind in extractor.own:
        report["metrics"][NAMES[parts.kind]] = own_trial(extractor, parts, bad)
    return {**report, "wrong": wrong_orders(report["metrics"])}


def own_trial(extractor: Extractor, parts: Parts, bad: dict[str, torch.Tensor]) -> dict:
    """Own captions or classes: real images, models, and real images with others' conditions."""
    own = {
        name: own_condition(extractor, parts.kind, bad[name], parts.test.images, parts.conditions)
        for name in ("untrained", "briefly_trained")
    }
    entry = own["untrained"]
    keys = ("floor", "floor_interval", "chance", "among", "controls", "judges", "why_not")
    result = extractor.own[parts.kind](parts.test.images, exchanged(parts.conditions))
    worse = {name: found["value"] for name, found in own.items()} | {"other_conditions": share(result.hits)["value"]}
    return {**{key: entry[key] for key in keys if key in entry}, "bad": worse}


def wrong_orders(metrics: dict[str, dict]) -> list[str]:
    """Judgements that do not put real images before a bad model."""
    wrong = []
    for name, entry in metrics.items():
        spared = ("one_condition",) if name in FIDELITY else ()
        for model, value in entry["bad"].items():
            worse = value > entry["floor"] if name in DISTANCES else value < entry["floor"]
            if entry["judges"] and model not in spared and not worse:
                wrong.append(f"{name}: {model} {value:.4g}, real images {entry['floor']:.4g}")
    return wrong


def draw(report: dict[str, dict], file: Path) -> None:
    """The Fréchet distance of every bad model over that of real images, by data set."""
    measured = {name: found["metrics"]["frechet_distance"] for name, found in report.items() if "metrics" in found}
    scores = [{**entry["controls"], **entry["bad"]} for entry in measured.values()]
    floors = [entry["floor"] for entry in measured.values()]
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for model in dict.fromkeys(model for of in scores for model in of):
        at = [(i, of[model] / floors[i]) for i, of in enumerate(scores) if model in of]
        axes.plot(*zip(*at), "x" if model in CONTROLS else "o", label=model.replace("_", " "))
    axes.axhline(1, color="black", linewidth=1)
    axes.set(yscale="log", ylabel="Fréchet distance, of that of real images")
    axes.set_xticks(range(len(measured)), [name.replace(", ", ",\n") for name in measured])
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(file, dpi=120, metadata={"Software": SOFTWARE})


def main() -> int:
    """Try every data set at hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of yardstick.json and yardstick.png")
    parser.add_argument("--sets", nargs="*", default=list(READERS), help="only these")
    args = parser.parse_args()
    file, report = args.out / "yardstick.json", {}
    if file.is_file():
        report = json.loads(file.read_text(encoding="utf-8"))
    for name in args.sets:
        try:
            parts = parts_of(*READERS[name](args.data))
        except FileNotFoundError as error:
            print(f"{name}: left out, {error}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            report[name] = trial(parts, bad_models(parts, Path(folder)))
        found = report[name]
        print(
            f"{name}: {found.get('extractor', found.get('refused'))}; wrong: {found['wrong'] or 'nothing'}", flush=True
        )
        file.write_text(
            json.dumps({key: report[key] for key in READERS if key in report}, indent=1) + "\n", encoding="utf-8"
        )
    draw(report, args.out / "yardstick.png")
    return int(any(found["wrong"] for found in report.values()))


if __name__ == "__main__":
    sys.exit(main())
