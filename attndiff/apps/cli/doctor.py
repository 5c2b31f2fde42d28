"""``attndiff doctor``."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attndiff.folder.shipped import bundled_data

if TYPE_CHECKING:
    from attndiff.data.config import DataConfig


def doctor(
    data: Annotated[
        str | None,
        typer.Argument(help="Folder, parquet file, Hub id or training config; without it the environment is checked."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="How to read it, such as size=64 channels=5.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file, too.")] = None,
) -> None:
    """List everything in the data that would be dropped or altered, and why; or check the environment."""
    if json_file is not None:
        from attndiff.apps.cli.checks import check_output_folder

        check_output_folder("--json", json_file.parent)
    if data is None:
        from attndiff.apps.environment import describe_environment, environment_text

        findings = describe_environment()
        text = environment_text(findings)
    else:
        from attndiff.data.doctor import diagnose

        report = diagnose(data_config(data, overrides or []))
        findings, text = report.to_json(), report.to_text()
    print(text)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(
            findings if isinstance(findings, str) else json.dumps(findings, indent=1), encoding="utf-8"
        )


def data_config(data: str, overrides: list[str]) -> "DataConfig":
    """The data part of a training config, or a path with ``KEY=VALUE`` settings.

    Raises:
        UserError: If a setting is unknown or wrong.
    """
    if Path(data).suffix.lower() in (".yaml", ".yml"):
        from attndiff.training.config import load_config

        config = load_config(data, overrides).data
        return replace(config, path=str(bundled_data(config.path) or config.path))
    import yaml

    from attndiff.data.config import DataConfig, check_choice
    from attndiff.errors import UserError

    settings = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"setting {override!r} must have the form KEY=VALUE, such as size=64.")
        check_choice("setting", key, tuple(field.name for field in fields(DataConfig) if field.name != "path"))
        settings[key] = yaml.safe_load(value)
    return DataConfig(str(bundled_data(data) or data), **settings)
