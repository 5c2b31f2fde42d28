"""Words of a caption that are not true any more of a mirrored image."""

import re

SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left", "LEFT": "RIGHT", "RIGHT": "LEFT"}
SIDE = re.compile(r"\b(left|right)(?=(?:wards?|most)?\b)", re.IGNORECASE)


def of_mirrored(caption: str) -> str:
    """The caption of an image once it is mirrored: left for right and right for left; of English words."""
    return SIDE.sub(lambda found: SIDES.get(found[0], found[0]), caption)
