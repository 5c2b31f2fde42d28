"""Pipelines on the Hugging Face Hub: upload and download."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from attndiff.errors import UserError
from attndiff.folder.fetch import fetch_without_code
from attndiff.folder.weights import same_weights
from attndiff.paths import expand

BUSY = (429, 500, 502, 503, 504)  # HTTP status of a server that may take the same request a moment later
WAITS_S = (2, 8)  # before a busy server is asked again
Answer = TypeVar("Answer")


def push(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Upload a pipeline folder, its model card ``README.md`` included, to the Hugging Face Hub.

    All files come in one commit, so that an upload that breaks off leaves the repository as it was.

    Args:
        folder: What `save_pretrained` or ``attndiff export`` wrote.
        repo_id: ``"user/name"``; made if it does not exist.
        private: Whether a new repository is private; None leaves that to the account's settings.
        token: Access token; the one that ``hf auth login`` stored by default.

    Returns:
        The address of the repository.

    Raises:
        UserError: If the folder is no pipeline, lacks its card, or the Hub refuses.
    """
    folder = expand(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder of a saved pipeline.")
    from attndiff.folder.check import check_folder  # diffusers takes seconds to import

    check_folder(folder)
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder} has no README.md; write its model card before sharing it.")
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        _patiently(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message="Upload pipeline",
                delete_patterns=["*_????????????.py", *_weights_in(folder)],  # of earlier versions
            )
        )
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a Hub repository: {one_line(error)}") from error
    except Exception as error:  # of whichever HTTP client huggingface_hub uses
        raise UserError(
            f"{repo_id}: the Hub did not take the upload ({one_line(error)}); log in with `hf auth login` or give a "
            "token that may write there."
        ) from error
    return f"{api.endpoint}/{repo_id}"


def _weights_in(folder: Path) -> list[str]:
    """Patterns of the names, in a repository, that the same weights may have: shards may have become a whole file."""
    files = [path.relative_to(folder) for path in folder.glob("*/*.safetensors")]
    return sorted({f"{file.parent}/{pattern}" for file in files for pattern in same_weights(file.name)})


def _patiently(ask: Callable[[], Answer]) -> Answer:
    """The answer of a Hub, asked again if it is busy: huggingface_hub tries neither a commit nor a file twice."""
    for wait in WAITS_S:
        try:
            return ask()
        except HfHubHTTPError as error:
            if error.response.status_code not in BUSY:
                raise
        time.sleep(wait)
    return ask()


def download(repo_id: str, kwargs: dict) -> Path:
    """A repository's weights and configs in the local cache, all of one commit.

    Args:
        repo_id: ``"user/name"``.
        kwargs: As for `attndiff.folder.fetch.fetch_without_code`.

    Raises:
        UserError: If there is no such repository, or no answer.
    """
    try:
        return Path(_patiently(lambda: fetch_without_code(repo_id, **kwargs)))
    except HFValidationError as error:
        raise UserError(f"{repo_id}: there is no such folder.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "such model (or it is private: log in with `hf auth login`)"
        what = f"revision {kwargs.get('revision')} of it" if isinstance(error, RevisionNotFoundError) else what
        raise UserError(f"{repo_id} is no folder here, and the Hub has no {what}.") from error
    except Exception as error:  # of whichever HTTP client huggingface_hub uses
        raise UserError(f"{repo_id} is no folder here, and the Hub could not be reached: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__
