"""Datasets on the Hub."""

import ast
import re
from pathlib import Path

from attndiff.data.tables.splits import MissingPart, part_of
from attndiff.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_hub(repo_id: str, part: str, config: str | None = None, streaming: bool = False):
    """A part of a dataset on the Hub, or wherever HF_ENDPOINT points; no code of the repository's is ever run.

    Args:
        repo_id: ``"user/name"``.
        part: "train", "validation" or "test", whatever the split is called, see `part_of`.
        config: Name of the configuration; None: the default one.
        streaming: Whether to read it as it comes, for a `datasets.IterableDataset`.

    Raises:
        MissingPart: It has no such split.
        UserError: There is no such dataset or configuration, or it cannot be read.
    """
    from datasets import get_dataset_split_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    _require_hub_dataset(repo_id)
    try:
        return load_dataset(repo_id, config, split=part, streaming=streaming)
    except (DatasetNotFoundError, OSError) as error:  # ConnectionError is an OSError
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{repo_id}: cannot be read from the Hub ({reason}), check the dataset or the connection"
        ) from None
    except ValueError as error:
        if configs := _configs_named(error):
            wrong = f"no configuration {config!r}" if config else "no default configuration"
            raise UserError(f"{repo_id}: has {wrong}, choose one by config: {', '.join(configs)}") from None
        if "split" in str(error).lower():
            names = get_dataset_split_names(repo_id, config)
            called = next((name for name in names if name != part and part_of(name) == part), None)
            if called is not None:
                return load_dataset(repo_id, config, split=called, streaming=streaming)
            raise MissingPart(f"{repo_id}: has no part called {part!r}, it has {', '.join(names)}") from None
        raise UserError(f"{repo_id}: cannot be read ({str(error).splitlines()[0]})") from None


def require_no_config(config: str | None, path: str) -> None:
    """Raise `UserError` if a configuration is asked for of data that is here, which has none."""
    if config is not None:
        raise UserError(f"{path}: config={config!r} is for datasets on the Hub, and this is none, leave it out")


def _configs_named(error: ValueError) -> list[str]:
    """The configurations of a dataset that a message of `datasets` lists, after which it asked in vain for one."""
    listed = re.search(r"available[^:\[]*: (\[[^\]]*\])", str(error), re.IGNORECASE)
    return ast.literal_eval(listed[1]) if listed else []


def _require_hub_dataset(repo_id: str) -> None:
    """Ask the Hub once: `datasets` tries again for half a minute, even for a mistyped folder on a machine offline."""
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    cached = Path(config.HF_DATASETS_CACHE, repo_id.replace("/", "___")).is_dir()
    try:
        HfApi().dataset_info(repo_id, timeout=10)
    except (HTTPError, OSError) as error:  # no such dataset, no connection, offline mode
        if not cached:
            reason = str(error).splitlines()[0]
            raise UserError(f"{repo_id}: no such folder here, and no such dataset on the Hub ({reason})") from None
