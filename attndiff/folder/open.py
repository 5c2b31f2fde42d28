"""Opening a pipeline from a folder or the Hugging Face Hub."""

import os

import attndiff  # its pipelines are imported when they are asked for: diffusers takes seconds
from attndiff.errors import UserError
from attndiff.folder.hub import download, one_line
from attndiff.folder.shipped import bundled_model
from attndiff.paths import expand


def load(path_or_hub_id: str | os.PathLike, **kwargs):
    """Open a pipeline that attndiff saved; no code that comes with it is run, or even fetched.

    Args:
        path_or_hub_id: A folder, a Hub repository such as ``"user/name"``, or the name of a bundled model.
        kwargs: As for `diffusers.DiffusionPipeline.from_pretrained`, such as ``dtype``, ``variant``, ``revision``,
            ``token``.

    Returns:
        The pipeline, of the class that the folder names.

    Raises:
        UserError: If there is no such folder or repository, or something in it is missing or damaged.
    """
    folder = bundled_model(str(path_or_hub_id)) or expand(path_or_hub_id)
    if not folder.is_dir():
        if "/" not in folder.as_posix():
            raise UserError(f"{folder}: no such folder; name a Hub repository user/name or the bundled emoji-xs.")
        folder = download(str(path_or_hub_id), kwargs)
    from attndiff.folder.check import check_folder  # diffusers takes seconds to import

    name = check_folder(folder)
    try:
        return getattr(attndiff, name).from_pretrained(folder, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path_or_hub_id} could not be opened: {one_line(error)}") from error


def load_quietly(path_or_hub_id: str | os.PathLike, **kwargs):
    """As `load`, without the progress bar, which would stand above every answer of a command."""
    from diffusers.utils import logging  # diffusers takes seconds to import

    logging.disable_progress_bar()
    try:
        return load(path_or_hub_id, **kwargs)
    finally:
        logging.enable_progress_bar()
