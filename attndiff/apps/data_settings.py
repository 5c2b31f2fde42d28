"""What images a command is to read: a training config, or a path with settings."""

from pathlib import Path

from attndiff.data.config import DataConfig
from attndiff.folder.shipped import bundled_data
from attndiff.settings import check_choice


def is_config(data: str) -> bool:
    """Whether it is a training config's name, which says itself how its images are read."""
    return Path(data).suffix.lower() in (".yaml", ".yml")


def data_config(data: str, overrides: list[str]) -> DataConfig:
    """The data part of a training config, or a path with ``KEY=VALUE`` settings.

    Raises:
        UserError: If a setting is unknown or wrong.
    """
    if is_config(data):
        from attndiff.training.config import load_config

        config = load_config(data, overrides).data
        return config.replace(path=str(bundled_data(config.path) or config.path))
    return DataConfig(path=str(bundled_data(data) or data), **dict(map(_setting, overrides)))


def _setting(override: str) -> tuple[str, object]:
    """``KEY=VALUE`` of `DataConfig`."""
    from attndiff.training.settings.plain_yaml import read_override

    key, value = read_override(override, "size=64")
    check_choice("setting", key, tuple(name for name in DataConfig.model_fields if name != "path"))
    return key, value
