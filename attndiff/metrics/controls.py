"""Real images spoilt in known ways: what measures samples must tell these from real images, or it judges nothing."""

import torch
import torch.nn.functional as F

NOISE = 0.2  # standard deviation, of values in [-1, 1]
SEED = 5


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Images ``(N, C, H, W)`` averaged down to half their size and drawn up again."""
    height, width = images.shape[-2:]
    small = F.interpolate(images, size=(max(1, height // 2), max(1, width // 2)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


def noised(images: torch.Tensor) -> torch.Tensor:
    """Images ``(N, C, H, W)`` in [-1, 1] with normal noise of `NOISE`, the same at every call."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
    return (images + NOISE * noise).clamp(-1, 1)


def exchanged_quarters(images: torch.Tensor) -> torch.Tensor:
    """Images ``(N, C, H, W)`` whose four quarters are exchanged crosswise; the middle of an odd side stays."""
    spoilt = images.clone()
    for (rows, columns), (other_rows, other_columns) in zip(
        _quarters(images), reversed(_quarters(images)), strict=True
    ):
        spoilt[..., rows, columns] = images[..., other_rows, other_columns]
    return spoilt


def composed(images: torch.Tensor) -> torch.Tensor:
    """Images ``(N, C, H, W)`` each quarter of which is another image's: every detail is right, and nothing is shown."""
    spoilt = images.clone()
    for i, (rows, columns) in enumerate(_quarters(images)):
        spoilt[..., rows, columns] = images.roll(i * (len(images) // 7 + 1), 0)[..., rows, columns]
    return spoilt


def _quarters(images: torch.Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns of the four corners, each followed by its neighbour in the row."""
    height, width = (side // 2 for side in images.shape[-2:])
    return [
        (rows, columns)
        for rows in (slice(0, height), slice(-height, None))
        for columns in (slice(0, width), slice(-width, None))
    ]


CONTROLS = {"blurred": blurred, "noised": noised, "exchanged_quarters": exchanged_quarters, "composed": composed}
OTHER_CAPTIONS, OTHER_CLASSES = "other_captions", "other_classes"
IN_WORDS = {
    "blurred": "blurred real images",
    "noised": "noised real images",
    "exchanged_quarters": "real images cut into exchanged quarters",
    "composed": "pictures composed of quarters of real ones",
    OTHER_CAPTIONS: "real images with other images' captions",
    OTHER_CLASSES: "real images with other images' classes",
}


def not_told_apart(unseen: list[str]) -> str:
    """A sentence on the controls that score like real images; empty if there are none."""
    names = [IN_WORDS[name] for name in unseen]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    return f"{listed} score like real ones" if names else ""
