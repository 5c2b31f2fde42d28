"""Measures of samples against real emoji: caption retrieval, style, nearest training image."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from attndiff.data.image_set import ImageSet, open_validation
from attndiff.folder.shipped import bundled_data
from attndiff.metrics.extractors.classifier import ImageClassifier, classify, train_classifier
from attndiff.metrics.near_copies import QUANTILE, copy_threshold
from attndiff.metrics.neighbours import nearest_images
from attndiff.metrics.retrieval import CANDIDATES, CaptionRetrieval, new_retrieval, own_caption_ranks, train_retrieval
from attndiff.metrics.shares import share as exact_share
from attndiff.training.config import TrainConfig


@dataclass(frozen=True)
class Prompt:
    """A picture to make: a name in a style, from a seed."""

    name: str
    style: str
    seed: int = 0

    @property
    def text(self) -> str:
        """The caption as in training."""
        return f"{self.name}, {self.style}"


@dataclass
class Real:
    """Real images ``(N, C, H, W)`` in [-1, 1] with their names, styles and captions without style."""

    pixels: torch.Tensor
    names: list[str]
    styles: list[str]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.names)

    def where(self, keep: list[bool]) -> "Real":
        """The images that are to be kept."""
        kept = [i for i, k in enumerate(keep) if k]
        lists = [[column[i] for i in kept] for column in (self.names, self.styles, self.captions)]
        return Real(self.pixels[kept], *lists)


def read(images: ImageSet) -> Real:
    """A whole set in memory."""
    rows = [images.cells(i) for i in range(len(images))]
    captions = [
        [caption.removesuffix(f", {cells['style']}") for caption in row["caption"]]
        for row, cells in zip(images, rows, strict=True)
    ]
    pixels = torch.from_numpy(np.stack([row["image"] for row in images]))
    return Real(pixels, [row["caption"] for row in rows], [row["style"] for row in rows], captions)


@dataclass
class Emoji:
    """The data of an evaluation: what the model was trained on, its held-out families, and everything there is."""

    train: Real
    held_out: Real
    everything: Real
    styles: list[str]
    withheld: list[tuple[str, str]]


def read_emoji(config: TrainConfig) -> Emoji:
    """The images that belong to a recipe."""
    data = config.data.replace(path=str(bundled_data(config.data.path) or config.data.path))
    whole = data.replace(where=None, exclude=None)
    parts = [read(ImageSet(whole)), read(open_validation(whole))]
    columns = [[x for part in parts for x in getattr(part, c)] for c in ("names", "styles", "captions")]
    everything = Real(torch.cat([part.pixels for part in parts]), *columns)
    train, held_out = read(ImageSet(data)), read(open_validation(data))
    withheld = [(entry["caption"], entry["style"]) for entry in data.exclude or []]
    return Emoji(train, held_out, everything, list(data.where["style"]), withheld)


# What it is measured with


def kept(path: Path, model: torch.nn.Module, train) -> None:
    """Load a model's weights from a file, or train it and keep them."""
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.load_state_dict(train().state_dict())
        save_file(model.state_dict(), path)
    model.eval()


def style_classifier(emoji: Emoji, folder: Path, epochs: int) -> ImageClassifier:
    """Trained on the model's own training images."""
    model = ImageClassifier(len(emoji.styles))
    key = digest(emoji.train, epochs)
    kept(
        folder / f"style_{key}.safetensors",
        model,
        lambda: train_classifier(emoji.train.pixels, style_numbers(emoji.train.styles, emoji), epochs),
    )
    return model


def caption_judge(emoji: Emoji, unseen: set[tuple[str, str]], folder: Path, epochs: int) -> CaptionRetrieval:
    """Trained on all real images but those whose (name, style) is scored."""
    pairs = zip(emoji.everything.names, emoji.everything.styles, strict=True)
    real = emoji.everything.where([pair not in unseen for pair in pairs])
    model = new_retrieval(real.names, real.captions, real.pixels.shape[1])

    def train() -> CaptionRetrieval:
        train_retrieval(model, real.pixels, real.names, real.captions, epochs)
        return model

    kept(folder / f"captions_{digest(real, epochs)}.safetensors", model, train)
    return model


def digest(real: Real, epochs: int) -> str:
    """Name of what a model was trained on and for how long."""
    content = hashlib.sha256(real.pixels.numpy().tobytes())
    content.update(json.dumps([real.names, real.styles, epochs]).encode())
    return content.hexdigest()[:16]


def style_numbers(styles: list[str], emoji: Emoji) -> torch.Tensor:
    """Class of every style."""
    return torch.tensor([emoji.styles.index(style) for style in styles])


# What comes out


def share(hits: torch.Tensor) -> dict:
    """Share of hits ``(N,)`` bool with its interval, rounded."""
    found = exact_share(hits)
    low, high = found["interval"]
    return {"share": round(found["value"], 4), "interval": [round(low, 4), round(high, 4)], "n": found["n"]}


class Evaluation:
    """Scores any pictures, made or real.

    Args:
        emoji: The data.
        styles: The style classifier.
        judge: The caption judge.
        seed: Of the candidates' draw.
    """

    def __init__(self, emoji: Emoji, styles: ImageClassifier, judge: CaptionRetrieval, seed: int):
        self.emoji, self.styles, self.judge, self.seed = emoji, styles, judge, seed
        self.pools = {
            "training": sorted({*emoji.train.names, *(name for name, _ in emoji.withheld)}),
            "held-out": sorted(set(emoji.held_out.names)),
        }
        real = self.distances(emoji.held_out.pixels)[1]
        self.threshold = copy_threshold(real)
        self.real_distances = self._distance_report(real)

    def distances(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index of and distance ``(N,)`` to the nearest training image."""
        index, distance = nearest_images(pixels, self.emoji.train.pixels)
        return index[:, 0], distance[:, 0]

    def ranks(self, pixels: torch.Tensor, names: list[str], pool: str) -> torch.Tensor:
        """Rank ``(N,)`` of the own caption among 50 of a pool."""
        return own_caption_ranks(self.judge, pixels, names, self.pools[pool], self.seed)

    def retrieval(self, pixels: torch.Tensor, names: list[str], pool: str) -> dict:
        """Share of first places, with the median rank."""
        ranks = self.ranks(pixels, names, pool)
        return {**share(ranks == 1), "median_rank": ranks.float().median().item()}

    def style(self, pixels: torch.Tensor, styles: list[str]) -> dict:
        """Share of pictures that are classified as their own style."""
        return share(classify(self.styles, pixels) == style_numbers(styles, self.emoji))

    def neighbours(self, pixels: torch.Tensor, names: list[str], styles: list[str]) -> dict:
        """Distances, and how often the nearest training image is the one of the same caption."""
        index, distance = self.distances(pixels)
        near = [(self.emoji.train.names[i], self.emoji.train.styles[i]) for i in index.tolist()]
        same = torch.tensor([a == b for a, b in zip(near, zip(names, styles, strict=True), strict=True)])
        return {**self._distance_report(distance), "nearest_is_own_training_image": share(same)}

    def _distance_report(self, distance: torch.Tensor) -> dict:
        near = share(distance < self.threshold)
        return {"median": round(distance.median().item(), 5), "near_copies": near, "n": len(distance)}

    def score(self, pixels: torch.Tensor, prompts: list[Prompt], pool: str) -> dict:
        """All measures of some pictures."""
        names, styles = [p.name for p in prompts], [p.style for p in prompts]
        return {
            "caption_retrieval": self.retrieval(pixels, names, pool),
            "style_accuracy": self.style(pixels, styles),
            "nearest_training_image": self.neighbours(pixels, names, styles),
        }


def real_pictures(emoji: Emoji, prompts: list[Prompt]) -> torch.Tensor:
    """The real pictures of some prompts."""
    at = {pair: i for i, pair in enumerate(zip(emoji.everything.names, emoji.everything.styles, strict=True))}
    return emoji.everything.pixels[[at[p.name, p.style] for p in prompts]]


def score_withheld(evaluation: Evaluation, prompts: list[Prompt], pixels: torch.Tensor) -> list[dict]:
    """One row a withheld pair: its samples, and the real picture that the model never saw."""
    rows = []
    for name, style in evaluation.emoji.withheld:
        chosen = [i for i, p in enumerate(prompts) if (p.name, p.style) == (name, style)]
        real = real_pictures(evaluation.emoji, [Prompt(name, style)])
        scores = evaluation.score(pixels[chosen], [prompts[i] for i in chosen], "training")
        ranks = evaluation.ranks(pixels[chosen], [name] * len(chosen), "training").tolist()
        of_real = int(evaluation.ranks(real, [name], "training"))
        rows.append({"concept": name, "style": style, "ranks": ranks, "rank_of_real_picture": of_real, **scores})
    return rows


def evaluate(evaluation: Evaluation, prompts: dict[str, list[Prompt]], pixels: dict[str, torch.Tensor]) -> dict:
    """All figures."""
    emoji = evaluation.emoji
    report = {"chance": {"caption_retrieval": 1 / CANDIDATES, "style_accuracy": 1 / len(emoji.styles)}, "real": {}}
    report["near_copy_threshold"] = round(evaluation.threshold, 5)
    report["near_copy_quantile"] = QUANTILE
    held_out = emoji.held_out
    report["real"] = {
        "style_accuracy_held_out_families": evaluation.style(held_out.pixels, held_out.styles),
        "nearest_training_image_held_out_families": evaluation.real_distances,
    }
    report["generated"] = {}
    for name, pool in (("training captions", "training"), ("held-out captions", "held-out")):
        if not prompts[name]:
            continue
        real = real_pictures(emoji, prompts[name])
        names = [p.name for p in prompts[name]]
        report["real"][f"caption_retrieval_{name}"] = evaluation.retrieval(real, names, pool)
        report["generated"][name] = evaluation.score(pixels[name], prompts[name], pool)
    report["withheld_pairs"] = score_withheld(evaluation, prompts["withheld pairs"], pixels["withheld pairs"])
    return report
