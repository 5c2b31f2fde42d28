"""``model_index.json``: what a pipeline folder holds, and which attndiff wrote it."""

INDEX = "model_index.json"
FOLDER_FORMAT = 1  # indexes that name none are of this one
FORMAT_KEY, VERSION_KEY = "_attndiff_format", "_attndiff_version"  # diffusers passes over what begins with "_"


def stored_class(index: dict) -> str:
    """Name of a pipeline's class; a list has it after that of its code file."""
    name = index.get("_class_name")
    return str(name[-1] if isinstance(name, list) and name else name)


def check_format(place: str, index: dict) -> None:
    """Raise ValueError for a folder of another format than this."""
    stored, version = index.get(FORMAT_KEY, FOLDER_FORMAT), index.get(VERSION_KEY)
    if stored != FOLDER_FORMAT:
        by = f", which attndiff {version} wrote," if isinstance(version, str) else ""
        raise ValueError(
            f"{place} is a pipeline of format {str(stored)[:20]}{by} and this attndiff reads {FOLDER_FORMAT}; install "
            "a newer one."
        )
