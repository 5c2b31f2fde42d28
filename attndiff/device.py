"""Where to compute when nobody says."""


def best_device() -> str:
    """``"cuda"``, ``"mps"`` or ``"cpu"``, the first that is there."""
    import torch  # takes a second to import

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
