"""``attndiff distill``."""

import time
from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH


def distill(
    model: Annotated[str, typer.Argument(help="Pipeline folder, Hub id user/name, or the bundled model emoji-xs.")],
    data: Annotated[
        str, typer.Option("--data", help="Images like its own: folder, parquet file, Hub id or its training config.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as optim.lr=5e-4.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; the student is its pipeline folder.", **PATH)] = Path(
        "student"
    ),
    minutes: Annotated[
        float | None, typer.Option(help="For all of it, the comparison too; 30 if --steps is not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps instead of minutes.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Guidance to build in, at no cost when sampling; 3, or 1 of an unconditional model."),
    ] = None,
    adversarial: Annotated[
        float, typer.Option(help="Weight of a discriminator's verdict on samples of one step; 0 is none.")
    ] = 0.0,
    n: Annotated[
        int | None, typer.Option("--n", help="Samples to compare by; as many as there are, up to 1000.")
    ] = None,
) -> None:
    """Make a student of a model, which samples in one to four steps, and compare the two."""
    began = time.perf_counter()
    from attndiff.apps.sample import open_model
    from attndiff.errors import UserError
    from attndiff.tasks.registry import task_of

    if minutes is not None and steps is not None:
        raise UserError("--minutes and --steps: give one of them.")
    teacher = open_model(model)
    if task_of(teacher).head != "denoising":
        raise UserError(f"{model} takes no noise away, and few-step students are made of what does.")
    if teacher.config.student:
        raise UserError(f"{model} is a few-step student already; distil the model it was made of.")
    if guidance is None:
        guidance = teacher.own_defaults()[1]
    from attndiff.apps.data_settings import data_config
    from attndiff.clock import Deadline, in_words
    from attndiff.metrics.reference import model_settings, open_reference
    from attndiff.training.distill import as_text, comparable, compare, comparison_seconds, student_config
    from attndiff.training.run.loop import Trainer

    images = data_config(data, [], model_settings(teacher))
    reference = open_reference(images, teacher)
    n = comparable(reference, n)
    settings = {
        "out": str(out),
        "optim": {"steps": steps} if steps is not None else {"minutes": minutes or 30},
        "distill": {"guidance_scale": guidance, "adversarial_weight": adversarial},
    }
    config, kept = student_config(teacher, model, images, settings, overrides or []), 0.0
    if config.optim.minutes:
        deadline = Deadline(began + 60 * config.optim.minutes)
        kept = comparison_seconds(teacher, config.distill, reference, n, deadline)
    before = time.perf_counter() - began
    trainer = Trainer(config, kept=before + kept)
    if config.optim.minutes:
        minutes = f"{config.optim.minutes:g} min"
        trainer.accelerator.print(f"{in_words(kept)} of {minutes} are kept to compare the student with its teacher")
    folder = trainer.run()
    if not trainer.accelerator.is_main_process:
        return
    left = trainer.seconds_left
    deadline = None if left is None else Deadline.after(left - before)
    print(as_text(compare(teacher, open_model(folder), reference, out, n, deadline=deadline)))
    print(f"pipeline folder: {folder}")
    print(f"side by side:    {out / 'distill.png'}, numbers in {out / 'distill.json'}")
