"""Where a run can be followed, by the names that Accelerate has for it."""

from importlib.util import find_spec

from attndiff.errors import UserError

# Each with the modules of which one has to be there, and the package that brings it.
TRACKERS = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
    "trackio": (("trackio",), "trackio"),
    "comet_ml": (("comet_ml",), "comet_ml"),
    "mlflow": (("mlflow",), "mlflow"),
    "clearml": (("clearml",), "clearml"),
    "dvclive": (("dvclive",), "dvclive"),
    "swanlab": (("swanlab",), "swanlab"),
    "aim": (("aim",), '"aim<4"'),
    "all": ((), ""),  # those that are installed
}


def check_installed(tracker: str | None) -> None:
    """Raise `UserError`, which says what to install, if a tracker of `TRACKERS` is not there; None is none."""
    modules, package = TRACKERS[tracker] if tracker is not None else ((), "")
    if modules and not any(map(find_spec, modules)):
        raise UserError(f"log.tracker {tracker} is not installed: pip install {package}, or leave it out with null.")
