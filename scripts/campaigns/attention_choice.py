"""Kinds and places of attention, each changed alone from the preset, compared after equal time.

    python scripts/campaigns/attention_choice.py DATA --json model_cards/attention_choice.json

DATA holds ``icons32`` and ``sprites``; the emoji are bundled. At 32 px the finest level of the preset is a grid of
16 x 16, at 128 px with patches of 4 it is 32 x 32. All arms of a size train for the same short time at one learning
rate; the preset and the best of the others then train for longer, at three rates on one seed and at the best of them on
a second one; on the emoji, each at its best rate of the icons on two seeds. The figure is the squared error of the
denoised held-out image over eight noise levels. What wins by more than the seeds differ is chosen; else the preset
stays. `equal_time` says how time is counted.

The command goes on from what is in the JSON, and writes a page ``.md`` and a picture ``.png`` beside the JSON.
"""

import argparse
import io
from functools import partial
from pathlib import Path

import pandas as pd
from accelerate import Accelerator
from attention_report import AS_PRESET, write_report
from equal_time import Campaign, Trial
from PIL import Image

from attndiff.nn.presets import PRESETS
from attndiff.training.batches import DrawnDataset
from attndiff.training.build import Parts, build, build_without_data
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.evaluation.validation import validate

PRESET = PRESETS["xs"]["unet"]["levels"]
# What differs from the preset's levels, by level from the finest.
WINDOW = {"attention": "window"}
ARMS_32 = {
    AS_PRESET: {},
    "16: windows": {0: WINDOW},
    "16: global": {0: {"attention": "global"}},
    "16: windows with a coarse grid": {0: {"attention": "window_coarse"}},
    "16: windows, gated": {0: {**WINDOW, "gated": True}},
    "16: windows, temperature by noise": {0: {**WINDOW, "noise_temperature": True}},
    "16: cross-attention": {0: {"cross_attention": True}},
    "16: windows and cross-attention": {0: {**WINDOW, "cross_attention": True}},
    "8, 4: gated": {1: {"gated": True}, 2: {"gated": True}},
    "8, 4: temperature by noise": {1: {"noise_temperature": True}, 2: {"noise_temperature": True}},
    "8: none in the encoder": {1: {"attention_side": "decoder"}},
    "8: none in the decoder": {1: {"attention_side": "encoder"}},
    "4: none": {2: {"attention": "none"}},
}
ARMS_128 = {
    AS_PRESET: {},
    "32: windows": {0: WINDOW},
    "32: global": {0: {"attention": "global"}},
    "32: windows with a coarse grid": {0: {"attention": "window_coarse"}},
    "32: routed windows": {0: {"attention": "routed"}},
    "32: windows, gated": {0: {**WINDOW, "gated": True}},
    "32: windows, temperature by noise": {0: {**WINDOW, "noise_temperature": True}},
    "16: windows": {1: WINDOW},
    "16: windows with a coarse grid": {1: {"attention": "window_coarse"}},
}
SIZES = {"32 px": ARMS_32, "128 px": ARMS_128}
DATA = {"icons": "32 px", "emoji": "32 px", "sprites": "128 px"}  # sizes by data
BATCHES = {"icons": 32, "emoji": 32, "sprites": 16}
SCREENED = {"32 px": "icons", "128 px": "sprites"}  # on which data the arms of a size are chosen for the long runs
RATE = 4e-3  # of the short runs
RATES = (2e-3, 4e-3, 8e-3)
FRAMES = (0, 4)  # of a clip, that a sheet is made of
DIRECTIONS = ("up", "left", "down", "right")
FIRST_DIRECTION = " away from us"  # how captions say it


def levels_of(changes: dict[int, dict]) -> list[dict]:
    """The preset's levels with changes; global attention is global at every size here."""
    return [{**level, "max_tokens": 1024, **changes.get(i, {})} for i, level in enumerate(PRESET)]


def settings_of(data: str, folder: Path, sheets: Path) -> tuple[str, list[str]]:
    """Recipe, and its settings, of some data."""
    of_batch = f"optim.batch_size={BATCHES[data]}"
    if data == "icons":
        return "emoji-xs", [
            f"data.path={folder / 'icons32'}",
            "data.channels=L",
            "data.caption_column=caption",
            "data.where=null",
            "data.exclude=null",
            of_batch,
        ]
    if data == "sprites":
        return "emoji-xs", [
            f"data.path={sheets}",
            "data.size=128",
            "data.resize=nearest",
            "data.caption_column=caption",
            "data.where=null",
            "data.exclude=null",
            "condition.max_length=40",
            "model.unet.patch_size=4",
            of_batch,
        ]
    return "emoji-xs", [of_batch]


def make(trial: Trial, opened: Parts | None, folder: Path, sheets: Path) -> tuple[TrainConfig, Parts]:
    """Config and parts of a trial; the data of others' parts, where there are some."""
    recipe, settings = settings_of(trial.data, folder, sheets)
    own = [f"seed={trial.seed}", f"optim.lr={trial.lr}", "optim.steps=1000000", "optim.compile=false"]
    own.append("condition.grounding_steps=0")  # every arm learns its words alike
    levels = levels_of(SIZES[DATA[trial.data]][trial.arm])
    config = load_config(recipe, [*settings, *own, f"model.unet.levels={levels}"])
    if opened is None:
        return config, build(config)
    parts = build_without_data(config, opened.learned)
    parts.images, parts.validation = opened.images, opened.validation
    return config, parts


def measure(config: TrainConfig, parts: Parts) -> dict:
    """Held-out error, and by noise level."""
    held_out = DrawnDataset(parts.validation, parts.conditioning, 0, make_sample=parts.make_sample)
    found = validate(parts.model, held_out, Accelerator(cpu=True))
    return {"error": found.x0_error, "per_level": found.per_level, "noise_over_signal": found.noise_over_signal}


def make_sheets(clips: Path, out: Path) -> None:
    """Sheets of 2 x 2 directions of every character and action in `FRAMES`, on white, 128 px, with their captions."""
    out.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation"):
        rows = []
        for _, of_four in pd.read_parquet(clips / f"clips-{part}.parquet").groupby(["character_id", "action"]):
            strips = of_four.set_index("direction").loc[list(DIRECTIONS)]
            frames = [Image.open(io.BytesIO(strip)).convert("RGBA") for strip in strips["strip"].map(as_bytes)]
            caption = strips["caption"].iloc[0].removesuffix(FIRST_DIRECTION)
            rows += [{"image": {"bytes": sheet(frames, frame), "path": None}, "caption": caption} for frame in FRAMES]
        pd.DataFrame(rows).to_parquet(out / f"{part}.parquet")


def as_bytes(cell: dict | bytes) -> bytes:
    """The file in a cell."""
    return cell["bytes"] if isinstance(cell, dict) else cell


def sheet(strips: list[Image.Image], frame: int) -> bytes:
    """A PNG of one frame of each of four strips."""
    side = strips[0].height
    made = Image.new("RGBA", (2 * side, 2 * side), "white")
    for i, strip in enumerate(strips):
        made.alpha_composite(strip.crop((frame * side, 0, (frame + 1) * side, side)), (i % 2 * side, i // 2 * side))
    file = io.BytesIO()
    made.convert("RGB").save(file, "PNG")
    return file.getvalue()


def finalists(errors: dict[str, float], count: int) -> list[str]:
    """The preset and the best of the others."""
    others = sorted((name for name in errors if name != AS_PRESET), key=errors.get)
    return [AS_PRESET, *others[: count - 1]]


def best_rates(campaign: Campaign, data: str, arms: list[str], minutes: float) -> dict[str, float]:
    """Of three rates, the one at which each arm ends with the least error."""
    trials = [Trial(arm, data, lr, 0, minutes) for arm in arms for lr in RATES]
    results = campaign.run(trials)
    return {arm: min((r["error"], t.lr) for t, r in zip(trials, results) if t.arm == arm)[1] for arm in arms}


def long_runs(campaign: Campaign, size: str, arms: list[str], minutes: float) -> None:
    """Every arm at its best rate on two seeds, on all data of a size."""
    of_size = [data for data in DATA if DATA[data] == size]
    for data in of_size:
        campaign.time_steps([Trial(arm, data, RATE, 0, minutes) for arm in arms])
    rates = best_rates(campaign, SCREENED[size], arms, minutes)
    campaign.run(
        [Trial(arm, data, lr, seed, minutes) for data in of_size for arm, lr in rates.items() for seed in (0, 1)]
    )


def main() -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of icons32 and sprites")
    parser.add_argument("--json", type=Path, required=True, help="what was found; what is missing in it is run")
    parser.add_argument("--work", type=Path, default=Path("runs/attention_choice"), help="folder for what is prepared")
    parser.add_argument("--screen-minutes", type=float, default=8, help="length of a short run")
    parser.add_argument("--minutes", type=float, default=20, help="length of a long run")
    parser.add_argument("--finalists", type=int, default=4, help="arms of a size that train for longer")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=[*SIZES], help="whose arms are run")
    options = parser.parse_args()
    sheets = options.work / "sheets"
    if not (sheets / "validation.parquet").is_file():
        make_sheets(options.data / "sprites", sheets)
    made = partial(make, folder=options.data.resolve(), sheets=sheets.resolve())
    lengths = f"--screen-minutes {options.screen_minutes:g} --minutes {options.minutes:g}"
    command = f"python scripts/campaigns/attention_choice.py DATA {lengths} --json attention_choice.json"
    report = partial(write_report, command=command, data=DATA, batches=BATCHES)
    campaign = Campaign(options.json, made, measure, options.workers, report=report)
    short = [
        Trial(arm, SCREENED[size], RATE, 0, options.screen_minutes) for size in options.sizes for arm in SIZES[size]
    ]
    campaign.time_steps(short)
    results = campaign.run(short)
    for size in options.sizes:
        screened = {t.arm: r["error"] for t, r in zip(short, results) if t.data == SCREENED[size]}
        long_runs(campaign, size, finalists(screened, options.finalists), options.minutes)


if __name__ == "__main__":
    main()
