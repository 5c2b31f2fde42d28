"""What images a command is to read: a training config, or a path with settings."""

from pathlib import Path
from typing import Any

from attndiff.data.config import DataConfig
from attndiff.folder.shipped import bundled_data
from attndiff.settings import check_choice


def is_config(data: str) -> bool:
    """Whether it is a training config's name, which says itself how its images are read."""
    return Path(data).suffix.lower() in (".yaml", ".yml")


def data_config(data: str, overrides: list[str], own: dict[str, Any] | None = None) -> DataConfig:
    """The data part of a training config, or a path with ``KEY=VALUE`` settings.

    Args:
        data: The config or the path.
        overrides: The settings.
        own: Where a path is given, what holds for what is not set.

    Raises:
        UserError: If a setting is unknown, wrong or given twice.
    """
    if is_config(data):
        from attndiff.training.config import load_config

        config = load_config(data, overrides).data
        return config.replace(path=str(bundled_data(config.path) or config.path))
    from attndiff.training.settings.overrides import apply_overrides

    values = dict(own or {})
    apply_overrides(values, overrides, DataConfig, "size=64")
    for key in values:
        check_choice("setting", key, tuple(name for name in DataConfig.model_fields if name != "path"))
    return DataConfig(path=str(bundled_data(data) or data), **values)
