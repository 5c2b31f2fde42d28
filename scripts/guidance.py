"""What guidance costs and brings: Frechet distance over evaluations of the network, measured on one model.

    python scripts/guidance.py MODEL --data training/recipes/emoji-xs.yaml --guide EARLIER --student STUDENT --json OUT

Every way to sample draws the same captions from the same noise at several numbers of steps:

- no guidance;
- classifier-free guidance at every step: two evaluations each;
- the same within an interval of noise levels (arXiv 2404.07724): one evaluation outside it;
- autoguidance by an earlier snapshot of the model (arXiv 2406.02507): two evaluations each;
- a few-step student with its guidance built in: one evaluation a step.

Scales and intervals are chosen on training captions; the curves are of held-out ones. The classifier that measures has
seen neither set. The JSON holds the curves and what was tried; the picture beside it has the same name.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from attndiff.apps.data_settings import data_config
from attndiff.apps.sample import open_model
from attndiff.data.subset import Subset
from attndiff.device import best_device
from attndiff.drawn import SOFTWARE
from attndiff.metrics.extractors.base import Extractor
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.frechet import frechet_distance
from attndiff.metrics.reference import open_reference
from attndiff.metrics.samples import BATCH
from attndiff.tasks.prompts import PROMPTS
from attndiff.training.card import hardware

STEPS = (32, 16, 8, 4)
SCALES = (1.5, 2.0, 3.0, 4.0)
INTERVALS = ((0.2, 0.8), (0.4, 1.0))  # noise / (noise + signal)
EVERYWHERE = (0.0, 1.0)
TRIED_AT = 16  # steps


@dataclass(frozen=True)
class Way:
    """A way to sample.

    Args:
        kind: What stands in the legend.
        scale: Guidance scale.
        interval: Noise levels at which it holds.
    """

    kind: str
    scale: float = 1.0
    interval: tuple[float, float] = EVERYWHERE


class Curves:
    """Draws and measures.

    Args:
        pipelines: By kind of guidance.
        extractor: What sees the images.
        n: Samples of a point.
    """

    def __init__(self, pipelines: dict[str, object], extractor: Extractor, n: int):
        self.pipelines, self.extractor, self.n = pipelines, extractor, n

    def point(self, way: Way, steps: int, images: Subset) -> dict:
        """Evaluations an image and the distance to these images, drawn for their own captions."""
        pipe, captions = self.pipelines[way.kind], PROMPTS["text"].of_all(images)
        calls = Calls(pipe)
        samples = []
        for start in range(0, len(captions), BATCH):
            now = captions[start : start + BATCH]
            samples.append(
                pipe(
                    now,
                    num_inference_steps=steps,
                    guidance_scale=way.scale,
                    guidance_interval=way.interval,
                    generator=[torch.Generator().manual_seed(start + i) for i in range(len(now))],
                    output_type="pt",
                ).images.cpu()
            )
        pixels = (torch.cat(samples) * 255).round() / 127.5 - 1
        distance = frechet_distance(self.extractor(images.tensor()), self.extractor(pixels))
        return {"steps": steps, "evaluations": calls.stop() / len(captions), "frechet_distance": distance}


class Calls:
    """Counts images that go through a pipeline's networks, the guide's included."""

    def __init__(self, pipe):
        self.images = 0
        networks = [network for network in (pipe.unet, pipe.guide) if network is not None]
        self.hooks = [network.register_forward_pre_hook(self._count, with_kwargs=True) for network in networks]

    def _count(self, _, args, kwargs) -> None:
        if not kwargs.get("return_condition_cache"):
            self.images += len(args[0])

    def stop(self) -> int:
        """How many there were."""
        for hook in self.hooks:
            hook.remove()
        return self.images


def candidates(kinds: list[str]) -> dict[str, list[Way]]:
    """What is tried of each kind."""
    ways = {
        "no guidance": [Way("no guidance")],
        "guidance": [Way("guidance", scale) for scale in SCALES],
        "guidance in an interval": [Way("guidance in an interval", s, i) for s in SCALES[1:] for i in INTERVALS],
        "autoguidance": [Way("autoguidance", scale) for scale in SCALES[:3]],
        "student": [Way("student")],
    }
    return {kind: ways[kind] for kind in kinds}


def draw(curves: dict[str, list[dict]], path: Path) -> None:
    """The distances over the evaluations, one curve a kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for kind, points in curves.items():
        axes.plot([p["evaluations"] for p in points], [p["frechet_distance"] for p in points], marker="o", label=kind)
    axes.set(xlabel="evaluations of the network an image", ylabel="Frechet distance (classifier)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": SOFTWARE})
    pyplot.close(figure)


def open_pipelines(model: str, guide: str | None, student: str | None) -> dict[str, object]:
    """One pipeline a kind; those of the model share its weights."""
    pipe = open_model(model)
    pipe.set_progress_bar_config(disable=True)
    found = dict.fromkeys(("no guidance", "guidance", "guidance in an interval"), pipe)
    if guide is not None:
        earlier = open_model(guide)
        if earlier.tokenizer.get_vocab() != pipe.tokenizer.get_vocab():
            raise SystemExit(f"--guide {guide} reads other tokens than {model}; give an earlier snapshot of it.")
        parts = {"guide": earlier.unet, "guide_encoder": earlier.condition_encoder}
        found["autoguidance"] = type(pipe).from_pipe(pipe, **parts)
    if student is not None:
        found["student"] = open_model(student)
    for each in found.values():
        each.set_progress_bar_config(disable=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--guide")
    parser.add_argument("--student")
    parser.add_argument("--n", type=int, default=300, help="samples of a point, at most")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    pipelines = open_pipelines(arguments.model, arguments.guide, arguments.student)
    reference = open_reference(data_config(arguments.data, []), pipelines["no guidance"])
    n = min(arguments.n, len(reference.test))
    test, tried_on, rest = reference.choose(n, 0)
    extractor = choose_extractor("classifier", test, tried_on, rest, 0, best_device())
    curves = Curves(pipelines, extractor, n)
    report = {"hardware": hardware(), "extractor": extractor.name, "n": n, "tried": [], "curves": {}, "chosen": {}}
    report["floor"] = frechet_distance(extractor(test.tensor()), extractor(tried_on.tensor()))
    for kind, ways in tqdm(candidates(list(pipelines)).items(), "Guidance"):
        found = {}
        for way in ways if len(ways) > 1 else []:
            found[way] = curves.point(way, TRIED_AT, tried_on)
            report["tried"].append({"kind": kind, "scale": way.scale, "interval": way.interval, **found[way]})
        best = min(found, key=lambda w: found[w]["frechet_distance"]) if found else ways[0]
        report["chosen"][kind] = {"scale": best.scale, "interval": best.interval}
        numbers = [int(s) for s in pipelines[kind].config.student["sigmas"]] if kind == "student" else STEPS
        report["curves"][kind] = [curves.point(best, steps, test) for steps in numbers]
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(report["curves"], arguments.json.with_suffix(".png"))
    print(json.dumps({k: report[k] for k in ("floor", "chosen", "curves")}, indent=1))


if __name__ == "__main__":
    main()
