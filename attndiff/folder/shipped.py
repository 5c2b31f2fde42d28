"""Names of what ships with the package: a model and its images, so that everything can be tried offline."""

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"

# What the bundled model is shown by: a prompt is "concept, style".
CONCEPTS = (
    "rocket",
    "red apple",
    "grinning face",
    "cat face",
    "blue heart",
    "house",
    "umbrella",
    "fire",
    "deciduous tree",
    "pizza",
)


def bundled_model(name: str) -> Path | None:
    """Folder of the bundled pipeline of this name, or None."""
    folder = ASSETS / name
    return folder if "/" not in name and (folder / "model_index.json").is_file() else None


def bundled_data(name: str) -> Path | None:
    """Folder of the bundled images of this name, or None."""
    folder = ASSETS / name
    return folder if "/" not in name and (folder / "train.parquet").is_file() else None
