"""``attndiff train``, which `accelerate launch training/train.py` runs in each of its processes."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attndiff.errors import UserError

if TYPE_CHECKING:
    from attndiff.training.config import TrainConfig
    from attndiff.training.run.loop import Trainer


def train(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a bundled recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as optim.steps=2000.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the run would cost, and stop.")] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Train 100 steps at a growing learning rate, suggest one, and stop.")
    ] = False,
    find_batch_size: Annotated[
        bool, typer.Option("--find-batch-size", help="Time growing micro-batches, suggest one, and stop.")
    ] = False,
    elastic: Annotated[
        bool,
        typer.Option("--elastic", help="Go on with other processes or micro-batches; losses agree within rounding."),
    ] = False,
) -> None:
    """Train a model, or go on with a run that was interrupted."""
    flags = {"--dry-run": dry_run, "--find-lr": find_lr, "--find-batch-size": find_batch_size}
    given = [flag for flag, on in flags.items() if on]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each replace the run: give one of them.")
    from attndiff.training.config import load_config

    settings = load_config(config, overrides or [])
    if find_lr:
        return print_lr(settings)
    if find_batch_size:
        return print_batch_sizes(settings)
    from attndiff.training.run.loop import Trainer

    trainer = Trainer(settings, elastic)
    if dry_run:
        plan = trainer.plan()
        trainer.accelerator.print("\n".join(plan.lines(trainer.config, len(trainer.train_set))))
        return
    folder = trainer.run()
    if trainer.accelerator.is_main_process:
        print("\n".join(summary(trainer, folder)))


def print_lr(config: "TrainConfig") -> None:
    """Run the learning-rate range test of a config."""
    from attndiff.apps.cli.checks import check_output_folder
    from attndiff.training.run.loop import Trainer
    from attndiff.training.run.lr_range import range_config, range_test

    check_output_folder("out", Path(config.out))
    trainer = Trainer(range_config(config))
    found = range_test(trainer)
    trainer.accelerator.print("\n".join(found.lines(trainer.out)))


def print_batch_sizes(config: "TrainConfig") -> None:
    """Run the batch-size finder on a config."""
    from rich.console import Console

    from attndiff.training.run.batch_size import finder_config, try_batch_sizes
    from attndiff.training.run.loop import Trainer

    trainer = Trainer(finder_config(config))
    found = try_batch_sizes(trainer)
    if trainer.accelerator.is_main_process:
        Console().print(found.table())
        print("\n".join(found.lines()))


def summary(trainer: "Trainer", folder: Path) -> list[str]:
    """Where the result of a run is, and the next command to type."""
    from attndiff.training.evaluation.samples import grid_prompts
    from attndiff.training.export import best_weights
    from attndiff.training.run.progress import read_log

    last = read_log(trainer.out / "log.jsonl")[1][-1]
    best = best_weights(last)
    prompts = [prompt for prompt in grid_prompts(trainer.parts, trainer.config.log.prompts)[:2] if prompt is not None]
    command = ["attndiff", "sample", str(folder), *prompts, "--out", "grid.png"]
    return [
        f"pipeline folder: {folder}",
        f"best weights:    {best}, held-out loss {last[best]['loss']:.4f} at step {last['step']}",
        f"loss curve:      {trainer.out / 'loss_curve.png'}",
        f"next:            {shlex.join(command)}",
    ]
