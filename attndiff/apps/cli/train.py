"""``attndiff train``, which `accelerate launch training/train.py` runs in each of its processes."""

from typing import Annotated

import typer

from attndiff.errors import UserError


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
    from attndiff.apps.runs import carry_out, print_batch_sizes, print_lr, print_plan

    if find_lr:
        print_lr(settings)
    elif find_batch_size:
        print_batch_sizes(settings)
    elif dry_run:
        print_plan(settings, elastic)
    else:
        carry_out(settings, elastic)
