"""``attndiff bench``."""

from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH, check_json_file


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A small version, a minute or two on two cores.")] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Compare attention backends instead: numerics and time.")
    ] = False,
    preset: Annotated[str | None, typer.Option(help="tiny, xs, s or b; xs on a CPU and s on CUDA by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one by default.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Result file; what it already holds is not measured again.", **PATH)
    ] = None,
) -> None:
    """Measure how fast attndiff trains and samples here, in how much memory."""
    check_json_file(json_file)
    from attndiff.apps.bench.command import choose_device, print_attention, print_speed

    (print_attention if attention else print_speed)(preset, choose_device(device), quick, json_file)
