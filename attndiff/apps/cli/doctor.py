"""``attndiff doctor``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.option_checks import PATH, check_json_file


def doctor(
    data: Annotated[
        str | None,
        typer.Argument(help="Folder, parquet file, Hub id or training config; without it the environment is checked."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="How to read it, such as size=64 channels=5.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the findings to this file, too.", **PATH)
    ] = None,
) -> None:
    """List everything in the data that would be dropped or altered, and why; or check the environment."""
    check_json_file(json_file)
    text, findings = check_environment() if data is None else check_data(data, overrides or [])
    print(text)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(findings, encoding="utf-8")


def check_environment() -> tuple[str, str]:
    """What this machine offers: to be read, and as JSON."""
    from attndiff.apps.environment import describe_environment, environment_text

    findings = describe_environment()
    return environment_text(findings), json.dumps(findings, indent=1)


def check_data(data: str, overrides: list[str]) -> tuple[str, str]:
    """What training would drop or alter: to be read, and as JSON."""
    from attndiff.apps.data_settings import data_config
    from attndiff.data.doctor import diagnose

    report = diagnose(data_config(data, overrides))
    return report.to_text(), report.to_json()
