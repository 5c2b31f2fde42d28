"""How much a model's captions, or classes, help it to see what noise hides.

Of an image ``x`` of the caption ``c``, noise ``e`` and a ratio ``r`` of noise to signal, with the denoised image ``D``
and the mean over pixels and channels, the gain over ``o`` is

    g(x, r) = mean (D(x + r e; o) - x)^2 - mean (D(x + r e; c) - x)^2

where ``o`` is the learned null, or the caption of another row. Both errors have the same noise, so that what they have
in common falls out. Where noise is more than twice the signal, little but the caption says what the image shows: words
without a meaning for the model gain nothing there, and what was learned by heart gains on training images alone.

Shapes: N images, L ratios, C channels, H rows, W columns; images in [-1, 1].
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from attndiff.data.columns import IMAGE
from attndiff.data.rows import Rows
from attndiff.diffusion.objectives import Objective
from attndiff.metrics.denoising.bootstrap import bootstrap_means, interval_of
from attndiff.metrics.denoising.told import Tell
from attndiff.metrics.grounds import View, views
from attndiff.progress import progress
from attndiff.tasks.prompts import Prompt, Value

NOISE_OVER_SIGNAL = (2.0, 4.0, 8.0, 16.0)
FAMILY_COLUMNS = ("family", "concept")  # of rows that show the same thing, the first that there is
NAMES = {"text": "caption_gain", "class": "class_gain"}
WORDS = {"text": "caption", "class": "class"}
BATCH = 64
SEED = 21


@dataclass
class ToldErrors:
    """Squared errors of the same noisy images by what the model was told, each ``(N, L)``.

    Args:
        null: Told nothing.
        own: Told the image's own condition.
        other: Told another row's; as `own` where there is none.
        has_other: ``(N,)`` bool, whether there is another.
        families: Of the rows.
    """

    null: torch.Tensor
    own: torch.Tensor
    other: torch.Tensor
    has_other: torch.Tensor
    families: list[str]


@dataclass
class Gain:
    """The gain of some images.

    Args:
        without: Error at every ratio ``(L,)`` without the own condition.
        own: With it.
        draws: The gain in every draw of the bootstrap, ``(DRAWS, L)``.
        n: Images.
        families: Families of them.
    """

    without: torch.Tensor
    own: torch.Tensor
    draws: torch.Tensor
    n: int
    families: int

    @property
    def value(self) -> float:
        """Mean over ratios."""
        return (self.without - self.own).mean().item()

    @property
    def interval(self) -> list[float]:
        """Of `value`."""
        return interval_of(self.draws.mean(1))

    def to_json(self) -> dict:
        """What it is of and at each ratio."""
        return {
            "n": self.n,
            "families": self.families,
            "interval": self.interval,
            "gain": (self.without - self.own).tolist(),
            "gain_intervals": [interval_of(column) for column in self.draws.T],
            "error_without": self.without.tolist(),
            "error_with": self.own.tolist(),
        }


@torch.no_grad()
def told_errors(
    tell: Tell, objective: Objective, rows: Rows, prompt: Prompt, within: str | None = None, device: str = "cpu"
) -> dict[str, ToldErrors]:
    """Errors on images with nothing, their own and another row's condition, by view; the same at every call.

    Args:
        tell: The model.
        objective: Its path from image to noise.
        rows: The images with what is said of them.
        prompt: The model's kind; its values are the rows' conditions.
        within: A column in which the other row has the same value.
        device: The model's.
    """
    values, families = prompt.of_all(rows), families_of(rows)
    chosen = other_rows(values, families, rows.texts()[within] if within else [""] * len(rows))
    others = [values[i if other is None else other] for i, other in enumerate(chosen)]
    seen, generator = views(rows.describe()), torch.Generator().manual_seed(SEED)
    parts: list[torch.Tensor] = []
    with progress(None, "Gain", len(rows) * 3 * len(NOISE_OVER_SIGNAL), "image") as bar:
        for start in range(0, len(rows), BATCH):
            now = slice(start, start + BATCH)
            real = torch.stack([torch.from_numpy(rows[i][IMAGE.name]) for i in range(len(rows))[now]])
            noise = torch.randn(real.shape, generator=generator)
            pair = real.to(device), noise.to(device)
            told = [None] * len(real), values[now], others[now]
            parts.append(torch.stack([_errors(tell, objective, *pair, said, seen.values(), bar) for said in told]))
    errors = torch.cat(parts, dim=2)  # (3, views, N, L)
    has_other = torch.tensor([other is not None for other in chosen])
    return {end: ToldErrors(*errors[:, i], has_other, families) for i, end in enumerate(seen)}


def _errors(
    tell: Tell,
    objective: Objective,
    real: torch.Tensor,
    noise: torch.Tensor,
    values: list[Value],
    seen: Iterable[View],
    bar: tqdm,
) -> torch.Tensor:
    """Errors ``(views, B, L)`` float64 on the CPU of images ``(B, C, H, W)`` under one condition each."""
    denoise, columns = tell(values), []
    for ratio in NOISE_OVER_SIGNAL:
        level = objective.level_from_log_ratio(torch.full((len(real),), math.log(ratio), device=real.device))
        made = denoise(objective.add_noise(real, noise, level), level)
        squares = [(view(made) - view(real)).square() for view in seen]
        columns.append(torch.stack([square.mean((1, 2, 3)) for square in squares]).cpu().double())
        bar.update(len(real))
    return torch.stack(columns, dim=2)


def families_of(rows: Rows) -> list[str]:
    """What rows show, by the first of `FAMILY_COLUMNS` that there is; each its own where there is none."""
    texts = rows.texts()
    name = next((name for name in FAMILY_COLUMNS if name in texts), None)
    return texts[name] if name else [str(i) for i in range(len(rows))]


def other_rows(values: list[Value], families: list[str], groups: list[str]) -> list[int | None]:
    """For each row one of its group of another family and another condition, drawn at random, the same at every call.

    None where there is no such row.
    """
    rng, members, found = np.random.default_rng(SEED), {}, []
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    for value, family, group in zip(values, families, groups, strict=True):
        fit = [j for j in members[group] if values[j] != value and families[j] != family]
        found.append(int(rng.choice(fit)) if fit else None)
    return found


def gain_of(errors: ToldErrors, over_other: bool = False) -> Gain | None:
    """The gain over the null, or over another row's condition; None where fewer than two families have one."""
    chosen = errors.has_other if over_other else torch.ones_like(errors.has_other)
    families = [family for family, is_in in zip(errors.families, chosen.tolist(), strict=True) if is_in]
    count = len(set(families))
    if count < 2:
        return None
    without, own = (errors.other if over_other else errors.null)[chosen], errors.own[chosen]
    return Gain(without.mean(0), own.mean(0), bootstrap_means(without - own, families), len(families), count)


def gains(kind: str, held_out: dict[str, ToldErrors], training: dict[str, ToldErrors], of: str = "") -> dict[str, dict]:
    """The gains on held-out images beside those on training images, by name.

    Args:
        kind: ``"text"`` or ``"class"``.
        held_out: As of `told_errors`.
        training: Likewise.
        of: What names end in, such as ``"_of_letters"``.
    """
    report = {}
    for over_other, over in ((False, ""), (True, f"_over_other_{'captions' if kind == 'text' else 'classes'}")):
        for end in held_out:
            ours, theirs = gain_of(held_out[end], over_other), gain_of(training[end], over_other)
            if ours is not None and theirs is not None:
                report[f"{NAMES[kind]}{over}{of}{end}"] = _entry(WORDS[kind], ours, theirs, over_other)
    return report


def _entry(word: str, ours: Gain, theirs: Gain, over_other: bool) -> dict:
    """The gain on held-out images as a metric; the floor is that on training images."""
    instead = f"with another's {word}" if over_other else f"without {word}"
    return {
        "value": ours.value,
        "interval": ours.interval,
        "n": ours.n,
        "extractor": f"squared error of the model's own denoised images {instead} minus that with their own",
        "floor": theirs.value,
        "floor_interval": theirs.interval,
        "by_heart": theirs.value - ours.value,
        # Draws of the two are paired in opposite orders: the same numbers drew the same places of both.
        "by_heart_interval": interval_of(theirs.draws.mean(1).flip(0) - ours.draws.mean(1)),
        "noise_over_signal": list(NOISE_OVER_SIGNAL),
        "held_out": ours.to_json(),
        "training": theirs.to_json(),
    }
