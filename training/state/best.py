"""The weights of a run that have done best on held-out images so far, in a file that is whole or absent.

What learns likelihoods over-fits few images: its held-out loss rises long before the run ends, and what it makes gets
worse with it. Samples of a denoiser are not judged by its loss, so that nothing is kept of those.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from attndiff.errors import UserError
from attndiff.training.state.checkpoint import RunState, sync

FILE = "best.safetensors"
FOUND = "found"  # in the file's metadata


@dataclass
class Best:
    """The best so far.

    Args:
        name: Of the weights, and of their step.
        found: Their validation as JSON.
        weights: Parameters by name.
    """

    name: str
    found: dict
    weights: dict[str, torch.Tensor]


def keep_best(run: Path, state: RunState, found: dict[str, dict]) -> None:
    """Write the best of a run's weights into its folder if they are better than what lies there.

    Args:
        run: The folder.
        state: Unsharded.
        found: Their validations as JSON, by their names in `RunState.named`.

    Raises:
        UserError: If the disk is full or cannot be written; what was kept before is as it was.
    """
    name = min(found, key=lambda name: found[name]["loss"])
    before = _found(run / FILE)
    if before is not None and before["loss"] <= found[name]["loss"]:
        return
    entry = {"name": f"{name} of step {state.step}", **found[name]}
    weights = {key: value.detach().contiguous() for key, value in state.named()[name].items()}
    partial = run / f"{FILE}.partial"
    try:
        save_file(weights, partial, metadata={FOUND: json.dumps(entry)})
        sync(partial)
        os.replace(partial, run / FILE)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{run / FILE} could not be written ({error}); make room or give permission, run again."
        ) from None


def read_best(run: Path, step: int) -> Best | None:
    """The best up to a step; None where none were kept, or those that were are of a later one."""
    entry = _found(run / FILE)
    if entry is None or int(entry["name"].split()[-1]) > step:
        return None
    return Best(entry.pop("name"), entry, load_file(run / FILE))


def _found(file: Path) -> dict | None:
    """Name and validation of what a file holds; None where there is none, or one that cannot be read."""
    try:
        with safe_open(file, framework="pt") as stored:
            return json.loads(stored.metadata()[FOUND])
    except (FileNotFoundError, SafetensorError):
        return None
