"""What `words` trains on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """What is trained on: channels, and what a report says of it and of its ``family`` rows."""

    channels: str
    said: str
    family: str


IMAGES = {
    "icons": Images("L", "73,356 icons with captions of a thing and a style", "whose words never stood together"),
    "emoji": Images(
        "RGB", "11,500 emoji of ten styles with captions of a thing and a style", "whose things no training row shows"
    ),
}
