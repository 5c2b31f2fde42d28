"""Datasets on the Hub."""

import re
from pathlib import Path

from attndiff.data.tables.splits import MissingPart
from attndiff.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_hub(repo_id: str, part: str, streaming: bool = False):
    """A part of a dataset on the Hub, or wherever HF_ENDPOINT points; no code of the repository's is ever run."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    _require_hub_dataset(repo_id)
    try:
        return load_dataset(repo_id, split=part, streaming=streaming)
    except (DatasetNotFoundError, OSError) as error:  # ConnectionError is an OSError
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{repo_id}: cannot be read from the Hub ({reason}), check the dataset or the connection"
        ) from None
    except ValueError as error:
        if "split" in str(error).lower():
            raise MissingPart(f"{repo_id}: has no part called {part!r} ({str(error).splitlines()[0]})") from None
        raise UserError(f"{repo_id}: cannot be read ({str(error).splitlines()[0]})") from None


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
