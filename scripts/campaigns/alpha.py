"""What alpha costs and brings: a recipe on white and the same with alpha, equal steps, several seeds.

    python scripts/campaigns/alpha.py --out runs/alpha --json model_cards/alpha.json

Measured of each run, on the same held-out images:

- the squared error of the denoised image on white, at the noise levels of validation: what the model without alpha is
  trained on, and of the other what is seen once its prediction is laid over white;
- Frechet distance of samples on white to the held-out images;
- fringes: on black, how much brighter the edge of what is shown is than its inside explains. Samples without alpha are
  cut out of their white as a hand would do it, by a magic wand from the border.

A run that was interrupted goes on, and what was measured is kept in OUT. Beside the JSON lie a page ``.md`` and a
picture ``.png`` of the same name.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image

from attndiff.alpha import laid_over, opacity, premultiplied
from attndiff.apps.bench.report import describe_hardware
from attndiff.apps.sample import open_model
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.subset import Subset
from attndiff.diffusion.objectives import make_objective
from attndiff.drawn import save_picture
from attndiff.folder.shipped import bundled_data
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.grounds import on_white
from attndiff.metrics.measure import Yardstick, distances
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import Reference
from attndiff.metrics.restoration.psnr import LUMA
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import prompt_of
from attndiff.training.batches import DrawnDataset
from attndiff.training.conditioning import Conditioning
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.evaluation.validation import validate
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.run.loop import Trainer
from attndiff.viewing import CELL, contact_sheet, enlarge

ARMS = {"on white": "RGB", "with alpha": "RGBA"}  # by channels
SAMPLING = {"steps": 16, "guidance": 2.0}
TOLERANCE = 32 / 127.5  # of the wand, as in most programs
INSIDE = 0.95  # alpha from which a pixel counts as opaque
SEEN = 0.05  # alpha from which a pixel counts at all
SHOWN = 10


@dataclass
class Arm:
    """A run.

    Args:
        name: A key of `ARMS`.
        seed: Of weights, order and noise.
        config: Its settings.
    """

    name: str
    seed: int
    config: TrainConfig

    @property
    def out(self) -> Path:
        """Its folder."""
        return Path(self.config.out)


def make_arm(name: str, seed: int, out: Path, recipe: str, steps: int, settings: list[str]) -> Arm:
    """An arm of the comparison; all differ in channels and seed alone."""
    own = [f"out={out / f'{ARMS[name].lower()}-{seed}'}", f"seed={seed}", f"data.channels={ARMS[name]}"]
    rare = [f"log.{every}={steps}" for every in ("validate_every", "sample_every")]
    rest = [f"optim.steps={steps}", *rare, "log.checkpoint_every=200", "log.tracker=null"]
    return Arm(name, seed, load_config(recipe, [*rest, *settings, *own]))


def images_of(config: TrainConfig) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images of a run."""
    data: DataConfig = config.data.replace(path=str(bundled_data(config.data.path) or config.data.path))
    return ImageSet(data), open_validation(data)


# What is measured


def held_out_errors(pipeline, held_out: ImageSet) -> list[float]:
    """Squared errors of the denoised image on white by noise level."""
    conditioning = Conditioning(prompt_of(pipeline), pipeline.tokenizer, pipeline.text_encoder)
    model = DenoisingModel(pipeline.unet, pipeline.condition_encoder, make_objective(pipeline.config.objective))
    found = validate(model, DrawnDataset(held_out, conditioning, seed=0), Accelerator(cpu=True), held_out.describe())
    return found.of_views.get("_on_white", found.per_level)


def cut_out(images: torch.Tensor) -> torch.Tensor:
    """Opaque images ``(N, 3, H, W)`` without the white that is joined to their border, premultiplied with alpha."""
    near = (images > 1 - TOLERANCE).all(1, keepdim=True).float()
    reached = near.clone()
    reached[..., 1:-1, 1:-1] = 0
    while True:
        wider = F.max_pool2d(reached, 3, stride=1, padding=1) * near
        if torch.equal(wider, reached):
            return premultiplied(torch.cat([images, 1 - 2 * reached], dim=1))
        reached = wider


def fringes(images: torch.Tensor) -> dict:
    """How much brighter, on black, edges are than alpha and the inside beside them explain, in levels of 255.

    An edge is what is seen and not inside; inside is opaque, and so are all its neighbours. An edge pixel is explained
    by alpha times the mean brightness of what is inside within two pixels, and left out where nothing is.

    Args:
        images: ``(N, 4, H, W)``, premultiplied.
    """
    luma = LUMA.view(1, 3, 1, 1) / LUMA.sum()
    on_black = (laid_over(images, -1.0).add(1).div(2) * luma).sum(1, keepdim=True)
    alpha = opacity(images)
    opaque = (alpha >= INSIDE).float()
    inside = 1 - F.max_pool2d(1 - opaque, 3, stride=1, padding=1)
    count, total = (F.avg_pool2d(x, 5, stride=1, padding=2) for x in (inside, inside * on_black))
    edge = (alpha > SEEN) & (inside == 0) & (count > 0)
    excess = 255 * (on_black - alpha * total / count.clamp_min(1e-6))[edge]
    return {"mean": excess.mean().item(), "brighter": excess.clamp_min(0).mean().item(), "pixels": int(edge.sum())}


class Measures:
    """Everything that is measured of an arm, on held-out images and their captions.

    Args:
        n: Samples and real images at most.
        white: An arm on white, whose images stand for what is seen.
        alpha: An arm with alpha, likewise.
    """

    def __init__(self, n: int, white: Arm, alpha: Arm):
        train, held_out = images_of(white.config)
        self.n = min(n, len(held_out))
        self.sets = Reference(train.origin, train, held_out, halves=False).choose(self.n, 0)
        self.with_alpha = Subset(images_of(alpha.config)[1], self.sets[0].indices).tensor()
        self._yardstick: Yardstick | None = None

    @property
    def yardstick(self) -> Yardstick:
        """Of distances on white."""
        if self._yardstick is None:
            extractor = choose_extractor("classifier", *self.sets, 0, "cpu")
            self._yardstick = Yardstick(self.sets[0].tensor(), self.sets[1].tensor(), extractor, distances)
        return self._yardstick

    def samples(self, pipeline) -> torch.Tensor:
        """One of every held-out caption ``(n, C, H, W)``."""
        values = prompt_of(pipeline).of_all(self.sets[0])
        return sample_pixels(pipeline, values, range(self.n), **SAMPLING, quiet=False)

    def of(self, arm: Arm) -> dict:
        """All measures of a finished arm."""
        pipeline = open_model(arm.out / "pipeline").to("cpu")
        errors, samples = held_out_errors(pipeline, images_of(arm.config)[1]), self.samples(pipeline)
        found = self.yardstick.measure(on_white(pipeline.config.data)(samples))["frechet_distance"]
        transparent = samples if arm.name == "with alpha" else cut_out(samples)
        return {
            "error_on_white": mean(errors),
            "error_on_white_by_level": errors,
            "frechet_distance_on_white": found["value"],
            "fringes": fringes(transparent),
        }

    def of_real(self) -> dict:
        """What real held-out images reach."""
        white = laid_over(self.with_alpha, 1.0)
        found = self.yardstick
        return {
            "frechet_distance_on_white": found.floor["frechet_distance"],
            "extractor": found.extractor.name,
            "fringes": fringes(self.with_alpha),
            "fringes_cut_out_of_white": fringes(cut_out(white)),
            "n": self.n,
        }


# What is written


def picture(measures: Measures, arms: list[Arm]) -> Image.Image:
    """Samples of the first seed and real images on white, on black and on squares."""
    first = {arm.name: arm for arm in reversed(arms)}
    few = Subset(measures.sets[0], range(min(SHOWN, measures.n)))
    rows = {"real": measures.with_alpha[: len(few)]}
    for name, arm in first.items():
        pipeline = open_model(arm.out / "pipeline").to("cpu")
        made = sample_pixels(pipeline, prompt_of(pipeline).of_all(few), range(len(few)), **SAMPLING)
        rows[name if name == "with alpha" else "cut out of white"] = made if name == "with alpha" else cut_out(made)
    shown = {}
    for name, images in rows.items():
        for label, ground in {"on white": "white", "on black": "black", "on squares": None}.items():
            pictures = [as_image(image, {"channels": [*"RGBA"]}) for image in images]
            shown[f"{name}, {label}"] = [enlarge(one, CELL, ground=ground) for one in pictures]
    captions = [row["caption"][0].rpartition(",")[0] for row in few]
    return contact_sheet(shown, captions)


def spread(values: list[float]) -> str:
    """Values of the seeds, and their mean."""
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{mean(values):.4g} ({', '.join(f'{value:.4g}' for value in values)})"


def page(report: dict, name: str) -> str:
    """The figures as a page."""
    seeds = "Means, and each seed." if len(report["runs"]) > len(ARMS) else "One seed."
    return "\n".join(
        [
            "# With alpha and without",
            "",
            f"    {report['hardware']['command']}",
            "",
            f"The recipe `{report['recipe']}` on white and with alpha, {report['steps']} steps each, the same but for "
            f"`data.channels`. Held-out images and captions: {report['real']['n']}. {seeds} "
            f"{', '.join(report['hardware'][key] for key in ('machine', 'torch', 'date'))}.",
            "",
            f"![Samples on white, on black and on squares]({name}.png)",
            "",
            "| | trained on white | trained with alpha | real images |",
            "|---|---|---|---|",
            *rows_of(report),
            "",
            f"{verdict(report)} At the same level of noise the model with alpha is shown a channel more. Images of the "
            "model that was trained on white are cut out by a magic wand from the border, tolerance "
            f"{TOLERANCE * 127.5:.0f} of 255.",
            "",
        ]
    )


def rows_of(report: dict) -> list[str]:
    """The table: each measure by arm, beside what real images reach."""
    real = report["real"]
    edges, cut = (f"{real[key]['brighter']:.3g}" for key in ("fringes", "fringes_cut_out_of_white"))
    measures = [
        ("squared error of the denoised image, on white", lambda run: run["error_on_white"], ""),
        (
            f"Fréchet distance on white, `{real['extractor']}`",
            lambda run: run["frechet_distance_on_white"],
            f"{real['frechet_distance_on_white']:.4g}",
        ),
        (
            "fringes: how much brighter edges are on black than their inside explains, levels of 255",
            lambda run: run["fringes"]["brighter"],
            f"{edges}; cut out of white {cut}",
        ),
    ]
    return [
        f"| {title} | {' | '.join(spread([of(run) for run in runs]) for runs in by_arm(report).values())} | {beside} |"
        for title, of, beside in measures
    ]


def verdict(report: dict) -> str:
    """Whether the arms' errors differ by more than the seeds of one arm."""
    errors = [[run["error_on_white"] for run in runs] for runs in by_arm(report).values()]
    if len(errors[0]) == 1:
        return "How far seeds lie apart is not known of one seed each."
    apart, seeds = abs(mean(errors[1]) - mean(errors[0])), max(max(few) - min(few) for few in errors)
    how = "no more" if apart <= seeds else "more"
    return f"The errors of the two differ by {how} than the seeds of one do ({apart:.2g} and {seeds:.2g})."


def by_arm(report: dict) -> dict[str, list[dict]]:
    """Runs by the name of their arm."""
    return {arm: [run for run in report["runs"] if run["arm"] == arm] for arm in ARMS}


def main() -> None:
    """Train what is not trained yet, measure what is not measured yet, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE settings of all runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--recipe", default="emoji-xs")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--n", type=int, default=222, help="samples at most")
    asked = parser.parse_args()
    fixed = asked.out, asked.recipe, asked.steps, asked.settings
    arms = [make_arm(name, seed, *fixed) for seed in range(asked.seeds) for name in ARMS]
    measures, runs = Measures(asked.n, arms[0], arms[1]), []
    for arm in arms:
        if not (arm.out / "pipeline").is_dir():
            Trainer(arm.config).run()
        # By its extractor, too, whose training rounds otherwise with other threads.
        kept = arm.out / f"alpha-{measures.n}-{measures.yardstick.extractor.name.rpartition('@')[2]}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(measures.of(arm)) + "\n", encoding="utf-8")
        runs.append({"arm": arm.name, "seed": arm.seed, **json.loads(kept.read_text(encoding="utf-8"))})
        print(arm.name, arm.seed, runs[-1], flush=True)
    command = f"python scripts/campaigns/alpha.py --steps {asked.steps} --seeds {asked.seeds} --n {asked.n}"
    report = {
        "hardware": describe_hardware("cpu") | {"command": " ".join([command, *asked.settings])},
        "recipe": asked.recipe,
        "steps": asked.steps,
        "sampling": SAMPLING,
        "real": measures.of_real(),
        "runs": runs,
    }
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    save_picture(picture(measures, arms), asked.json.with_suffix(".png"))
    asked.json.with_suffix(".md").write_text(page(report, asked.json.stem), encoding="utf-8")


if __name__ == "__main__":
    main()
