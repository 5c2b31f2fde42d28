"""``attndiff train``, which `accelerate launch training/train.py` runs in each of its processes."""

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from attndiff.training.loop import Trainer


def train(
    config: Annotated[str, typer.Argument(help="YAML file, or the name of a bundled recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as optim.steps=2000.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the run would cost, and stop.")] = False,
) -> None:
    """Train a model, or go on with a run that was interrupted."""
    from attndiff.training.config import load_config

    settings = load_config(config, overrides or [])
    from attndiff.training.loop import Trainer

    trainer = Trainer(settings)
    if dry_run:
        plan = trainer.plan()
        trainer.accelerator.print("\n".join(plan.lines(trainer.config, len(trainer.train_set))))
        return
    folder = trainer.run()
    if trainer.accelerator.is_main_process:
        print("\n".join(summary(trainer, folder)))


def summary(trainer: "Trainer", folder: "Path") -> list[str]:
    """Where the result of a run is, and the next command to type."""
    from attndiff.training.export import best_weights
    from attndiff.training.progress import read_log
    from attndiff.training.samples import grid_prompts

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
