"""``attndiff sample``."""

from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH, check_output_file, check_output_folder, parse_size


def sample(
    model: Annotated[str, typer.Argument(help="Pipeline folder, Hub id user/name, emoji-xs or emoji-xs-student.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="Captions, or classes of a class model; none if unconditional."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Picture to write: a grid, one column a prompt.", **PATH)] = Path(
        "grid.png"
    ),
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps; 20, or as many as a few-step student was made for.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How closely to follow the prompt; 1 is no guidance. 3, or 1 of a student.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the others count up from it.")] = 0,
    count: Annotated[int | None, typer.Option(help="Images of each prompt; 8 if unconditional, else 1.")] = None,
    size: Annotated[str | None, typer.Option(help="SIDE or HEIGHTxWIDTH in pixels, if not the training size.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder for every image as a file of its own, in the data's bit depth.", **PATH)
    ] = None,
    file_format: Annotated[
        str, typer.Option("--format", help="Of --images: png, webp or tif, all without loss and with alpha.")
    ] = "png",
    ground: Annotated[
        str | None, typer.Option(help="Colour under transparent images in the grid, such as white; else checkered.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="fp32, or bf16: faster where the device computes in it, pictures differ by a little."),
    ] = "fp32",
    attention_maps: Annotated[
        Path | None, typer.Option(help="Folder for pictures of where each word acted.", **PATH)
    ] = None,
) -> None:
    """Sample images from a model."""
    check_output_file("--out", out)
    for option, folder in {"--images": images, "--attention-maps": attention_maps}.items():
        check_output_folder(option, folder)
    height, width = parse_size(size)
    from attndiff.data.config import colour_of
    from attndiff.device import describe_slow_bfloat16
    from attndiff.settings import check_choice

    check_choice("--format", file_format, ("png", "webp", "tif"))
    check_choice("--precision", precision, ("fp32", "bf16"))
    if ground is not None:
        colour_of(ground, "--ground")
    from attndiff.apps.sample import Request, check_draws, open_model, sample_rows, save_attention, save_images, sheet
    from attndiff.drawn import save_picture

    request = Request(prompts or [], steps, guidance, seed, count, height, width, attention_maps is not None)
    request.check()
    pipeline = open_model(model, precision)
    check_draws(pipeline, model)
    if precision == "bf16" and (said := describe_slow_bfloat16(pipeline.device.type)):
        print(f"--precision bf16: {said}")
    rows = sample_rows(pipeline, request)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(sheet(pipeline, rows, request.prompts, ground), out)
    print(f"grid:            {out}")
    if images is not None:
        print(f"images:          {save_images(pipeline, rows, images, file_format)} in {images}")
    if attention_maps is not None:
        pictures = save_attention(pipeline, rows, request.prompts, attention_maps)
        print(f"attention maps:  {len(pictures)} in {attention_maps}")
