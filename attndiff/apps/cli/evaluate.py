"""``attndiff evaluate``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH, check_json_file, check_output_folder


def evaluate(
    model: Annotated[str, typer.Argument(help="Pipeline folder, Hub id user/name, emoji-xs or emoji-xs-student.")],
    data: Annotated[
        str, typer.Option("--data", help="Real images: folder, parquet file, Hub id, emoji32 or a training config.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="How to read the data, such as caption_column=title."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the numbers to this file, too.", **PATH)
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help="Samples; by default as many as there are real ones, up to 1000.")
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="What images are compared by: inception (FID), classifier (trained here on what the data says of its "
            "images), unnamed (on what they show by themselves), or the folder or Hub id of a vision model. By default "
            "inception if its weights are there, else classifier."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps; 20, or as many as a few-step student was made for.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How closely to follow the condition; 1 is no guidance. 3, or 1 of a student.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first sample; the others count up from it.")] = 0,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="Column that says of which kind a held-out image is: own captions and gains of each apart, too.",
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(help="Column, such as style: other captions are those of images with the same value there."),
    ] = None,
    bounded: Annotated[
        int | None,
        typer.Option(
            "--likelihood",
            help="Of so many held-out images, bound the bits per value by the model's probability flow; each takes 120 "
            "calls of the network and as many backward passes.",
        ),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(help="Of a model that draws images of maps: the model that reads the parts of what it draws."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for pictures: samples, nearest training images, error by noise.", **PATH)
    ] = None,
) -> None:
    """Measure a model's samples against real images, and how much of its training images it repeats."""
    from attndiff.errors import UserError

    check_output_folder("--pictures", pictures)
    check_json_file(json_file)
    if n is not None and n < 1:
        raise UserError(f"--n {n}: at least one sample is needed, and more for most metrics; give a larger number.")
    from attndiff.apps.data_settings import data_config
    from attndiff.apps.evaluate import EvaluationSettings, as_text
    from attndiff.apps.evaluate import evaluate as measure
    from attndiff.apps.sample import Request, open_model
    from attndiff.metrics.reference import model_settings, open_reference
    from attndiff.tasks.registry import task_of
    from attndiff.words import take_words

    Request([], steps, guidance, seed).check()
    pipeline = open_model(model)
    if pipeline.tokenizer is not None:
        take_words(pipeline.tokenizer)  # held-out captions have words of their own
    draws = task_of(pipeline).makes != "captions"
    if not draws and (steps or guidance):
        raise UserError("--steps and --guidance are of what draws, and this model writes captions: leave them out.")
    settings = EvaluationSettings(*(pipeline.own_defaults(steps, guidance) if draws else (1, 1.0)), seed, by, within)
    reference = open_reference(data_config(data, overrides or [], model_settings(pipeline)), pipeline, seed)
    if reference.halves:
        print("the data names no held-out part: it is halved at random, and either half may be known to the model")
    read_by = None if reader is None else open_model(reader)
    report = measure(pipeline, reference, settings, n, extractor, pictures, bounded, read_by)
    print(as_text(report))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"numbers:   {json_file}")
    if pictures is not None:
        print(f"pictures:  {pictures}")
