"""What the bundled emoji model has learned, in pictures and figures.

    python scripts/evaluate_emoji.py MODEL --out evaluation --json evaluation/report.json

Everything is held against the same measure of real images:

- **Grid**: ten concepts in every style; pairs of concept and style withheld from training have a red frame. In a second
  picture the nearest training image stands below every sample.
- **Caption retrieval**: the share of pictures whose own caption comes first among 50 in the eyes of two towers trained
  on real images (`attndiff.metrics.retrieval`). These have seen every concept, held-out families included, but never
  the very picture whose (concept, style) is scored; how well they do on these real pictures stands beside as the
  ceiling. Chance is 1 in 50.
- **Style accuracy** of a small classifier trained on the model's training images, with its accuracy on real held-out
  families beside.
- **Nearest training image**: distances as in `attndiff.metrics.neighbours`, beside those of real held-out families. A
  near-copy is nearer than all but the nearest 5 % of these.

Samples and measuring models are kept in the output folder, so that a stopped evaluation goes on where it was. The
folder also gets `evaluation.md`, the figures as a section of a model card. Shares have 95 % Wilson intervals.
"""

import argparse
import hashlib
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from emoji_measures import Emoji, Evaluation, Prompt, Real, caption_judge, evaluate, read_emoji, style_classifier
from emoji_report import markdown
from PIL import Image, ImageDraw

from attndiff.drawn import save_picture
from attndiff.folder.shipped import CONCEPTS, bundled_model
from attndiff.metrics.neighbours import neighbour_sheet
from attndiff.training.config import load_config
from attndiff.viewing import contact_sheet, enlarge

SEEDS_OF_WITHHELD = 8
BATCH = 10


# What is made


def choose_prompts(emoji: Emoji, n: int, seed: int) -> dict[str, list[Prompt]]:
    """Prompts by set; those of real pictures name one style a concept, so that other styles remain to learn it from."""
    concepts = {prompt for prompt in CONCEPTS if prompt in emoji.train.names}
    seen = pick(emoji.train, n, seed, leave_out=concepts)
    held_out = pick(emoji.held_out, n, seed, leave_out=set())
    withheld = [Prompt(name, style, 100 + s) for name, style in emoji.withheld for s in range(SEEDS_OF_WITHHELD)]
    grid = [Prompt(name, style) for style in emoji.styles for name in CONCEPTS]
    return {"grid": grid, "training captions": seen, "held-out captions": held_out, "withheld pairs": withheld}


def pick(real: Real, n: int, seed: int, leave_out: set[str]) -> list[Prompt]:
    """Up to ``n`` (name, style) pairs, each name once and present in another style too."""
    styles = defaultdict(list)
    for name, style in zip(real.names, real.styles, strict=True):
        styles[name].append(style)
    names = sorted(name for name, of in styles.items() if len(set(of)) > 1 and name not in leave_out)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(names)[:n].tolist()
    return [Prompt(name, str(rng.choice(styles[name])), 1000 + i) for i, name in enumerate(chosen)]


class Samples:
    """Makes pictures and keeps them, by everything that determines them.

    Args:
        model: Pipeline folder.
        folder: Where to keep the pictures.
        steps: Sampling steps.
        guidance: Guidance scale.
    """

    def __init__(self, model: Path, folder: Path, steps: int, guidance: float):
        self.model, self.folder, self.steps, self.guidance = model, folder, steps, guidance
        weights = sorted(model.glob("*/*.safetensors"))
        self.digest = hashlib.sha256(b"".join(hashlib.sha256(w.read_bytes()).digest() for w in weights)).hexdigest()
        self._pipe = None
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, prompt: Prompt) -> Path:
        """Where a prompt's picture is kept."""
        key = json.dumps([self.digest, self.steps, self.guidance, prompt.text, prompt.seed])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.png"

    def make(self, prompts: list[Prompt]) -> list[Image.Image]:
        """Pictures of all prompts, new ones in batches."""
        missing = [prompt for prompt in prompts if not self.path(prompt).is_file()]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            images = self.pipe(
                [prompt.text for prompt in batch],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator().manual_seed(prompt.seed) for prompt in batch],
            ).images
            for prompt, image in zip(batch, images, strict=True):
                save_picture(image.convert("RGB"), self.path(prompt))
        return [Image.open(self.path(prompt)).convert("RGB") for prompt in prompts]

    @property
    def pipe(self):
        """The pipeline, opened when first needed."""
        if self._pipe is None:
            from attndiff.folder.open import load

            self._pipe = load(self.model)
            self._pipe.set_progress_bar_config(disable=True)
        return self._pipe


def as_pixels(pictures: list[Image.Image]) -> torch.Tensor:
    """``(N, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p, np.float32) for p in pictures])).permute(0, 3, 1, 2) / 127.5 - 1


def as_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """Pictures of ``(N, 3, H, W)`` in [-1, 1]."""
    levels = pixels.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return [Image.fromarray(level.numpy()) for level in levels]


# Pictures


def framed(image: Image.Image) -> Image.Image:
    """The picture at the grid's size with a red frame."""
    large = enlarge(image)
    ImageDraw.Draw(large).rectangle((0, 0, large.width - 1, large.height - 1), outline="red", width=3)
    return large


def draw_grids(evaluation: Evaluation, prompts: list[Prompt], pictures: list[Image.Image], out: Path) -> list[dict]:
    """Write the grid and the grid with neighbours; what stands in the cells."""
    emoji = evaluation.emoji
    index, distance = evaluation.distances(as_pixels(pictures))
    nearest = as_pictures(emoji.train.pixels[index])
    withheld = [(p.name, p.style) in emoji.withheld for p in prompts]
    shown = [framed(picture) if w else picture for picture, w in zip(pictures, withheld, strict=True)]
    rows = {style: [i for i, p in enumerate(prompts) if p.style == style] for style in emoji.styles}
    samples = {style: [shown[i] for i in cells] for style, cells in rows.items()}
    neighbours = {style: [nearest[i] for i in cells] for style, cells in rows.items()}
    save_picture(contact_sheet(samples, CONCEPTS), out / "grid.png")
    save_picture(neighbour_sheet(samples, neighbours, CONCEPTS), out / "grid_neighbours.png")
    ranks = evaluation.ranks(as_pixels(pictures), [p.name for p in prompts], "training").tolist()
    return [
        {
            "prompt": p.text,
            "withheld": w,
            "retrieval_rank": rank,
            "nearest": f"{emoji.train.names[i]}, {emoji.train.styles[i]}",
            "distance": round(d, 5),
        }
        for p, w, rank, i, d in zip(prompts, withheld, ranks, index.tolist(), distance.tolist(), strict=True)
    ]


def main() -> None:
    """Parse the command line, sample, measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="pipeline folder, or the name of the bundled model")
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures, samples and measuring models")
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--recipe", default="emoji-xs", help="recipe that the model was trained by")
    parser.add_argument("--n", type=int, default=100, help="pictures per set at most")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--style-epochs", type=int, default=12, help="of the style classifier")
    parser.add_argument("--caption-epochs", type=int, default=20, help="of the caption judge")
    args = parser.parse_args()

    began = time.perf_counter()
    emoji = read_emoji(load_config(args.recipe))
    prompts = choose_prompts(emoji, args.n, args.seed)
    samples = Samples(bundled_model(args.model) or Path(args.model), args.out / "samples", args.steps, args.guidance)
    pictures = {name: samples.make(chosen) for name, chosen in prompts.items()}
    print(f"{sum(map(len, pictures.values()))} samples after {time.perf_counter() - began:.0f} s", flush=True)
    unseen = {(p.name, p.style) for name, chosen in prompts.items() if name != "grid" for p in chosen}
    classifier = style_classifier(emoji, args.out / "measuring", args.style_epochs)
    judge = caption_judge(emoji, unseen, args.out / "measuring", args.caption_epochs)
    evaluation = Evaluation(emoji, classifier, judge, args.seed)
    settings = {"steps": args.steps, "guidance_scale": args.guidance, "seed": args.seed, "weights": samples.digest}
    report = evaluate(evaluation, prompts, {name: as_pixels(chosen) for name, chosen in pictures.items()})
    report = {
        "settings": settings,
        **report,
        "grid": draw_grids(evaluation, prompts["grid"], pictures["grid"], args.out),
    }
    report["seconds"] = round(time.perf_counter() - began, 1)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.out / "evaluation.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
