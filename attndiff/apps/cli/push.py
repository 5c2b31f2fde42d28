"""``attndiff push``."""

from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH


def push(
    model: Annotated[Path, typer.Argument(help="Pipeline folder.", **PATH)],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the Hub, made if absent.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload a pipeline folder and its model card to the Hugging Face Hub."""
    from attndiff.folder.hub import push as upload

    print(f"uploaded to {upload(model, repository, private=private or None)}")
