"""``attndiff quickstart``."""

from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH


def quickstart(
    out: Annotated[
        Path, typer.Option(help="Folder to write to; an earlier quickstart in it is redone.", **PATH)
    ] = Path("quickstart"),
) -> None:
    """Sample the bundled model, look inside it, train two small models, and write a report with pictures."""
    from attndiff.apps.quickstart import run_quickstart

    run_quickstart(out)
