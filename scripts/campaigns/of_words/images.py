"""What `words` trains on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Images:
    """What is trained on.

    Args:
        channels: Of an image.
        said: What a report says of it.
        family: And of its ``family`` rows.
        known: Other styles in which a thing is drawn at least for one of its rows to be held out as ``set``.
        things: Of which one row each is held out as ``set``.
        styles: Those that are trained on and held out; empty for all.
    """

    channels: str
    said: str
    family: str
    known: int = 0
    things: int = 0
    styles: tuple[str, ...] = ()


NEW_THINGS = "whose things no training row shows"
IMAGES = {
    "icons": Images("L", "73,356 icons with captions of a thing and a style", "whose words never stood together"),
    "emoji": Images(
        "RGB", "11,500 emoji of ten styles with captions of a thing and a style", NEW_THINGS, known=3, things=950
    ),
    "few emoji": Images(
        "RGB",
        "4,200 emoji of three styles with captions of a thing and a style",
        NEW_THINGS,
        known=2,
        things=330,
        styles=("fluent_3d", "fluent_flat", "noto"),
    ),
}
