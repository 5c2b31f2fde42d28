"""``attndiff apply``."""

from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH, check_output_folder


def apply(
    model: Annotated[str, typer.Argument(help="Pipeline folder, Hub id user/name or emoji-xs.")],
    pictures: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE... [KEY=VALUE]...",
            help="Files, folders or patterns, and arguments of the pipeline's call, such as strength=0.6.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="What the results show, for a model that reads captions.")] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="White where it is to draw: a picture for all, or a folder of one each.", **PATH),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; else beside the pictures.", **PATH)] = None,
    count: Annotated[int, typer.Option(help="Results of each picture.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of each picture's first result; the others count up.", min=0)] = 0,
    again: Annotated[bool, typer.Option("--again", help="Replace results that are there.")] = False,
) -> None:
    """Make pictures of pictures: larger ones, holes filled, drawn anew, whatever the model was trained for."""
    check_output_folder("--out", out)
    from attndiff.apps.applying.files import find_pictures, place_results
    from attndiff.apps.applying.model import MADE, Work, apply_model, for_pictures, read_settings
    from attndiff.apps.applying.reading import Reader, masks_for
    from attndiff.apps.sample import open_model

    named = [one for one in pictures if "=" not in one or Path(one).exists()]
    pipeline = for_pictures(open_model(model), mask is not None, count, model)
    settings = read_settings(pipeline, [one for one in pictures if one not in named])
    made = MADE[type(pipeline).__name__]
    found = find_pictures(named, made)
    places = place_results(found, out, made, count)
    masks = None if mask is None else masks_for(found, mask)
    reader, work = Reader(pipeline), Work(prompt, settings, count, seed, masks, again)
    written = list(apply_model(pipeline, found, places, work, reader))
    kept = sum(map(len, places)) - len(written)
    print(f"{made + ':':<10} {len(written)} written {f'in {out}' if out else 'beside the pictures'}")
    if kept:
        print(f"kept:      {kept} that were there; --again replaces them")
    for note, times in reader.notes.items():
        print(f"altered:   {note} ({times} of {len(found)})")
