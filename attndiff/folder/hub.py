"""Opening a pipeline from a folder or the Hugging Face Hub, and sharing one."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

import attndiff  # its pipelines are imported when they are asked for: diffusers takes seconds
from attndiff.errors import UserError
from attndiff.folder.shipped import bundled_model

INDEX = "model_index.json"
BUSY = (429, 500, 502, 503, 504)  # HTTP status of a server that may take the same request a moment later
WAITS_S = (2, 8)  # before a busy server is asked again
Answer = TypeVar("Answer")


def load(path_or_hub_id: str | os.PathLike, **kwargs):
    """Open a pipeline that attndiff saved; no code that comes with it is run, or even fetched.

    Args:
        path_or_hub_id: A folder, a Hub repository such as ``"user/name"``, or the name of a bundled model.
        kwargs: As for `diffusers.DiffusionPipeline.from_pretrained`, such as ``dtype``, ``variant``, ``revision``,
            ``token``.

    Returns:
        The pipeline, an `AttnDiffPipeline`.

    Raises:
        UserError: If there is no such folder or repository, or something in it is missing or damaged.
    """
    folder = bundled_model(str(path_or_hub_id)) or Path(path_or_hub_id)
    if not folder.is_dir():
        if "/" not in folder.as_posix():
            raise UserError(f"{folder}: no such folder; name a Hub repository user/name or the bundled emoji-xs.")
        folder = _download(str(path_or_hub_id), kwargs)
    check_folder(folder)
    try:
        return attndiff.AttnDiffPipeline.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path_or_hub_id} could not be opened: {_one_line(error)}") from error


def load_quietly(path_or_hub_id: str | os.PathLike):
    """As `load`, without the progress bar, which would stand above every answer of a command."""
    from diffusers.utils import logging  # diffusers takes seconds to import

    logging.disable_progress_bar()
    try:
        return load(path_or_hub_id)
    finally:
        logging.enable_progress_bar()


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
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give the folder of a saved pipeline.")
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
                delete_patterns="*_????????????.py",  # code files of earlier versions
            )
        )
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a Hub repository: {_one_line(error)}") from error
    except Exception as error:  # of whichever HTTP client huggingface_hub uses
        raise UserError(
            f"{repo_id}: the Hub did not take the upload ({_one_line(error)}); log in with `hf auth login` or give a "
            "token that may write there."
        ) from error
    return f"{api.endpoint}/{repo_id}"


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


def check_folder(folder: Path) -> None:
    """Look through a pipeline folder for what would not open.

    Raises:
        UserError: Naming the file that is missing, damaged, or not what attndiff wrote.
    """
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is no pipeline folder: it has no {INDEX}; give one that was saved or exported.")
    for path in sorted([folder / INDEX, *folder.glob("*/*.json")]):
        _read_json(path)
    index = _read_json(folder / INDEX)
    name = index.get("_class_name") if isinstance(index, dict) else None
    name = name[-1] if isinstance(name, list) and name else name
    if not str(name).startswith("AttnDiff"):
        raise UserError(f"{folder} holds a {name}, not a pipeline of attndiff's; open it with diffusers.")
    from attndiff.folder.check import NETWORKS, check_index, check_network  # diffusers takes seconds to import

    check_index(folder / INDEX, index)
    parts = {part: entry for part, entry in index.items() if isinstance(entry, list) and part != "_class_name"}
    for part, (library, _) in parts.items():
        if library and not (folder / part).is_dir():
            raise UserError(f"{folder} is incomplete: its folder {part} is missing; copy or download it again.")
    networks = {part: name for part, (_, name) in parts.items() if name in NETWORKS}
    for part, name in networks.items():
        check_network(folder / part, name)
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name not in networks:
            _check_weights(path)


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no valid JSON; copy or download it again.") from error


def _check_weights(path: Path) -> None:
    """Raise UserError unless the file's header is sound and all of its data is there."""
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); copy or download it again.") from error


def _download(repo_id: str, kwargs: dict) -> Path:
    """A repository's weights and configs in the local cache, all of one commit."""
    try:
        return Path(_patiently(lambda: attndiff.AttnDiffPipeline.download(repo_id, **kwargs)))
    except HFValidationError as error:
        raise UserError(f"{repo_id}: there is no such folder.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "such model (or it is private: log in with `hf auth login`)"
        what = f"revision {kwargs.get('revision')} of it" if isinstance(error, RevisionNotFoundError) else what
        raise UserError(f"{repo_id} is no folder here, and the Hub has no {what}.") from error
    except Exception as error:  # of whichever HTTP client huggingface_hub uses
        raise UserError(f"{repo_id} is no folder here, and the Hub could not be reached: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__
