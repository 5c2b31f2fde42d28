"""What is measured of a run of `words`: caption gains, and own captions first for a judge of its own."""

from collections.abc import Callable
from pathlib import Path

import torch
from equal_time import Trial
from safetensors.torch import load_file, save_file

from attndiff.data.columns import CAPTION
from attndiff.data.rows import Rows
from attndiff.data.subset import Subset
from attndiff.device import cpu_is_faster_in_bfloat16
from attndiff.metrics.denoising.caption_gain import gain_of, told_errors
from attndiff.metrics.denoising.told import tells
from attndiff.metrics.retrieval import (
    CaptionRetrieval,
    captions_within,
    new_retrieval,
    own_caption_ranks,
    train_retrieval,
)
from attndiff.metrics.samples import sample_pixels
from attndiff.training.build import Parts
from attndiff.training.config import TrainConfig
from attndiff.training.evaluation.samples import make_pipeline

ROWS = 200  # measured of each kind
SAMPLING = {"steps": 12, "guidance": 2.0}
JUDGE = "judge.safetensors"
JUDGE_EPOCHS = 8
JUDGE_WIDTH = 64


def chosen_rows(parts: Parts) -> dict[str, Subset]:
    """Trained, ``set`` and ``family`` rows."""
    kinds = parts.validation.texts()["held_out"]
    found = {"trained": spread(parts.images, range(len(parts.images)))}
    for kind in ("set", "family"):
        found[kind] = spread(parts.validation, [i for i, of in enumerate(kinds) if of == kind])
    return found


def spread(images: Rows, of: list[int] | range) -> Subset:
    """`ROWS` of some rows, evenly."""
    return Subset(images, [of[round(i)] for i in torch.linspace(0, len(of) - 1, min(ROWS, len(of))).tolist()])


def captions(images: Rows) -> list[str]:
    """The caption of every row."""
    return [row[CAPTION.name][0] for row in images]


def judge(work: Path, parts: Parts) -> CaptionRetrieval:
    """What tells captions from samples, trained once on the training images."""
    said = captions(parts.images)
    model = new_retrieval(said, [[one] for one in said], len(parts.learned.data["channels"]), width=JUDGE_WIDTH)
    kept = work / JUDGE
    if kept.is_file():
        model.load_state_dict(load_file(kept))
        return model
    images = Subset(parts.images, range(len(parts.images))).tensor()
    train_retrieval(model, images, said, [[one] for one in said], JUDGE_EPOCHS)
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), kept)
    return model


def judge_once(work: Path, make: Callable, trial: Trial) -> None:
    """Train the judge, so that runs side by side find it."""
    if not (work / JUDGE).is_file():
        judge(work, make(trial, None)[1])


def first_of_style(model: CaptionRetrieval, images: torch.Tensor, rows: Subset, pool_rows: Rows) -> float:
    """Share of images whose caption comes first among 50 of the same style, of a pool of rows."""
    said, styles = captions(pool_rows), pool_rows.texts()["style"]
    pool = list(dict.fromkeys(said))
    within = captions_within(styles, said, pool)
    allowed = within[torch.tensor(rows.indices)]
    ranks = own_caption_ranks(model, images, captions(rows), pool, 0, allowed)
    return (ranks == 1).float().mean().item()


@torch.no_grad()
def measure(config: TrainConfig, parts: Parts, work: Path) -> dict:
    """Caption gains, and own captions first."""
    parts.model.eval()
    pipeline, rows = make_pipeline(parts), chosen_rows(parts)
    found = {}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_is_faster_in_bfloat16()):
        for kind, some in rows.items():
            errors = told_errors(tells(pipeline), parts.model.objective, some, parts.conditioning.prompt, "style")[""]
            found[f"gain_{kind}"] = entry(gain_of(errors))
            found[f"gain_over_others_{kind}"] = entry(gain_of(errors, over_other=True))
        samples = sample_pixels(pipeline, captions(rows["set"]), range(len(rows["set"])), **SAMPLING)
    model = judge(work, parts)
    found["own_caption_set"] = first_of_style(model, samples, rows["set"], parts.validation)
    found["own_caption_set_real"] = first_of_style(model, rows["set"].tensor(), rows["set"], parts.validation)
    return found


def entry(gain) -> dict:
    """A gain with its interval."""
    return {"value": gain.value, "interval": gain.interval, "by_ratio": (gain.without - gain.own).tolist()}
