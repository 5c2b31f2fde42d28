"""``attndiff caption``."""

from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH, check_output_file, check_output_folder


def caption(
    model: Annotated[str, typer.Argument(help="Pipeline folder or Hub id user/name of a model that writes captions.")],
    folder: Annotated[Path, typer.Argument(help="Folder of images.", **PATH)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="How images are read, as under data.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Replace captions that are there.")] = False,
    beams: Annotated[int, typer.Option(help="Captions that are kept while searching for the likeliest.")] = 4,
    draw: Annotated[bool, typer.Option("--draw", help="Draw words by how likely they are: captions vary.")] = False,
    temperature: Annotated[float, typer.Option(help="Of --draw: less than 1 draws likelier words.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of --draw.")] = 0,
    attention_maps: Annotated[
        Path | None, typer.Option(help="Folder for pictures of where each word was seen, of the first images.", **PATH)
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Picture to write: the first images with their captions.", **PATH)
    ] = None,
) -> None:
    """Write a caption beside every image of a folder, as training reads them."""
    if sheet is not None:
        check_output_file("--sheet", sheet)
    check_output_folder("--attention-maps", attention_maps)
    import torch

    from attndiff.apps.captioning.folder import caption_folder, check_writes
    from attndiff.apps.sample import open_model
    from attndiff.drawn import save_picture
    from attndiff.metrics.captions.sheet import captions_beside

    pipeline = open_model(model)
    check_writes(pipeline, model)
    search = {"num_beams": 1 if draw else beams, "do_sample": draw, "temperature": temperature}
    torch.manual_seed(seed)
    done = caption_folder(pipeline, folder, search, again, overrides or [], attention_maps is not None)
    print(f"captions:  {len(done.captions)} written beside images of {folder}")
    if done.kept:
        print(f"kept:      {done.kept} that were there; --again replaces them")
    for name, reason in done.unread[:1]:
        print(f"left out:  {len(done.unread)} images, first {name}: {reason}")
    print("They say what the captions of its training images say, right or not: read them before you train on them.")
    if attention_maps is not None:
        attention_maps.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(done.looks):
            save_picture(picture, attention_maps / f"attention-{i:02d}.png")
        print(f"attention: {len(done.looks)} pictures in {attention_maps}")
    if sheet is not None and done.captions:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        save_picture(captions_beside(done.images, {"written": done.captions}), sheet)
        print(f"sheet:     {sheet}")
