"""What `attndiff train` does with a config: train, or say what training would cost or which settings would suit it."""

import shlex
from pathlib import Path

from attndiff.apps.option_checks import check_output_folder
from attndiff.clock import in_words
from attndiff.training.config import TrainConfig
from attndiff.training.evaluation.samples import grid_prompts
from attndiff.training.export import best_weights
from attndiff.training.parts.grounding import Contrast
from attndiff.training.run.batch_size import finder_config, try_batch_sizes
from attndiff.training.run.loop import Trainer
from attndiff.training.run.lr_range import range_config, range_test
from attndiff.training.run.progress import read_log
from attndiff.training.state.best import read_best


def carry_out(config: TrainConfig, elastic: bool) -> None:
    """Train, and say where the result is."""
    trainer = Trainer(config, elastic)
    folder = trainer.run()
    if trainer.accelerator.is_main_process:
        print("\n".join(summary(trainer, folder)))


def print_plan(config: TrainConfig, elastic: bool) -> None:
    """What the run would cost."""
    trainer = Trainer(config, elastic, grounds=False)
    parts, lines = trainer.parts, []
    contrast = Contrast(config, parts.model.condition_encoder, parts.images, parts.conditioning)
    if trainer.begins and contrast.steps:
        trainer.kept += contrast.seconds
        lines = [f"words           {contrast.steps} steps of a contrast before step 1: {in_words(contrast.seconds)}"]
    plan = trainer.plan()
    trainer.accelerator.print("\n".join(plan.lines(trainer.config, len(trainer.train_set)) + lines))


def print_lr(config: TrainConfig) -> None:
    """Run the learning-rate range test of a config."""
    check_output_folder("out", Path(config.out))
    trainer = Trainer(range_config(config), grounds=False)
    found = range_test(trainer)
    trainer.accelerator.print("\n".join(found.lines(trainer.out)))


def print_batch_sizes(config: TrainConfig) -> None:
    """Run the batch-size finder on a config."""
    from rich.console import Console

    trainer = Trainer(finder_config(config), grounds=False)
    found = try_batch_sizes(trainer)
    if trainer.accelerator.is_main_process:
        Console().print(found.table())
        print("\n".join(found.lines()))


def summary(trainer: Trainer, folder: Path) -> list[str]:
    """Where the result of a run is, and the next command to type."""
    last = read_log(trainer.out / "log.jsonl")[1][-1]
    best, found = best_weights(last, read_best(trainer.out, last["step"]))
    return [
        f"pipeline folder: {folder}",
        f"best weights:    {best}, held-out loss {found['loss']:.4f}",
        f"loss curve:      {trainer.out / 'loss_curve.png'}",
        f"next:            {shlex.join(next_command(trainer, folder))}",
    ]


def next_command(trainer: Trainer, folder: Path) -> list[str]:
    """What a model is tried with."""
    task = trainer.parts.task
    if task.makes == "captions":
        return ["attndiff", "caption", str(folder), "FOLDER"]
    if task.call:  # of pictures
        return ["attndiff", "apply", str(folder), "PICTURES", *(["--mask", "MASK"] if task.takes_masks else [])]
    prompts = [prompt for prompt in grid_prompts(trainer.parts, trainer.config.log.prompts)[:2] if prompt is not None]
    return ["attndiff", "sample", str(folder), *prompts, "--out", "grid.png"]
