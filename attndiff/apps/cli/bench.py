"""``attndiff bench``."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A small version, under three minutes on two cores.")] = False,
    time_to_quality: Annotated[
        bool, typer.Option("--time-to-quality", help="Train every network and compare how soon each is how good.")
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Compare attention backends: numerics and time.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(help="Training time of a run of --time-to-quality; a quarter of one with --quick.")
    ] = 20.0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one by default.")] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Only peers with this in their name; may be given several times.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Result file; what it already holds is not measured again.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Picture of the ratios and of the growth with size.")] = None,
) -> None:
    """Measure speed, memory and quality beside other diffusion networks."""
    from attndiff.apps.option_checks import check_output_file, check_output_folder
    from attndiff.errors import UserError

    if json_file is not None:
        check_output_folder("--json", json_file.parent)
        if json_file.is_dir():
            raise UserError(f"--json {json_file} is a folder: name a file in it.")
    if picture is not None:
        check_output_file("--picture", picture)
    if time_to_quality and attention:
        raise UserError("--time-to-quality and --attention are two measurements: give one of them.")
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes} must be a time above zero.")
    from attndiff.training.bench.command import Request, run

    kind = "quality" if time_to_quality else "attention" if attention else "speed"
    run(Request(kind, quick, minutes, device, peer or [], json_file, picture))
