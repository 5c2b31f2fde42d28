"""``attndiff export``."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the pipeline.")],
) -> None:
    """Package the newest checkpoint of a run that has not ended as a pipeline folder."""
    from attndiff.training.export import export_checkpoint

    print(f"pipeline folder: {export_checkpoint(run, folder)}")
