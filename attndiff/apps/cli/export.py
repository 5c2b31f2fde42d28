"""``attndiff export``."""

from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.", **PATH)],
    folder: Annotated[Path, typer.Argument(help="New folder for the pipeline.", **PATH)],
    sigma_rel: Annotated[
        float | None,
        typer.Option(min=0.01, max=0.28, help="Width of the weight average to rebuild from log.snapshot_every."),
    ] = None,
) -> None:
    """Package the newest checkpoint of a run, or a weight average of another width, as a pipeline folder."""
    from attndiff.training.export import export_checkpoint

    print(f"pipeline folder: {export_checkpoint(run, folder, sigma_rel)}")
