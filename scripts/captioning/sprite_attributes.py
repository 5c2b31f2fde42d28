"""What a caption of a sprite says, column by column, and how well captions agree in that.

Captions follow one pattern: "a SKIN KIND with COLOUR STYLE hair, FACIAL, HEAD, CAPE, TORSO, LEGS and FEET ACTS".
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Attributes = dict[str, str]  # what is said, by column

VERBS = {
    "stands": "stand",
    "walks": "walk",
    "casts": "cast",
    "slashes": "slash",
    "thrusts": "thrust",
    "shoots": "shoot",
}
DIRECTIONS = {"away from us": "up", "towards us": "down", "to the left": "left", "to the right": "right"}
WEAPONS = ("spear", "dagger", "wooden wand", "steel wand", "recurve bow", "great bow", "bow")
ENDS = {  # last words of what is worn, by column
    "facial": ("beard", "mustache"),
    "head": ("helmet", "hat", "hood", "cap", "bandana", "tiara"),
    "cape": ("cape",),
    "torso": ("armour", "tabard", "shirt", "mail", "top", "robe", "tunic", "dress"),
    "legs": ("pants", "greaves", "skirt"),
    "feet": ("boots", "shoes", "slippers"),
}
OF_LAST_WORD = {word: column for column, words in ENDS.items() for word in words}
SPLIT = re.compile(r",\s*| and ")


def said_by(caption: str) -> Attributes:
    """What a caption says, as far as it follows the pattern."""
    caption = " ".join(caption.lower().split())
    verb = re.search(rf"\b({'|'.join(VERBS)})\b", caption)
    who, rest = (caption[: verb.start()], caption[verb.start() :]) if verb else (caption, "")
    body, _, worn = who.partition(" with ")
    said = _of_body(body)
    for piece in SPLIT.split(worn.strip()):
        said |= _of_piece(piece.strip())
    if verb:
        said["action"] = VERBS[verb[1]]
    directions = [name for phrase, name in DIRECTIONS.items() if rest.rstrip(". ").endswith(phrase)]
    weapons = [weapon for weapon in WEAPONS if re.search(rf"\b{weapon}\b", rest)]
    for column, found in {"direction": directions, "weapon": weapons}.items():
        said |= {column: found[0]} if found else {}
    return said


def _of_body(body: str) -> Attributes:
    """Of "a dark elf woman" or the like: an article, a colour and a kind."""
    words = body.split()
    if len(words) < 2 or words[0] not in ("a", "an"):
        return {}
    if len(words) == 2:  # a skeleton
        return {"kind": words[1]}
    return {"skin_colour": words[1], "kind": " ".join(words[2:])}


def _of_piece(piece: str) -> Attributes:
    """Of "white curly hair" or "brown shirt"."""
    words = piece.split()
    if not words:
        return {}
    if words[-1] == "hair" and len(words) > 2:
        return {"hair_colour": words[0], "hair_style": " ".join(words[1:-1])}
    column = OF_LAST_WORD.get(words[-1])
    return {column: piece} if column else {}


@dataclass
class Agreement:
    """Attributes counted over captions.

    Args:
        right: That are visible and said.
        said: That are said, but for those which the real caption says too and the image does not show.
        visible: That are visible and in the real caption.
    """

    right: int = 0
    said: int = 0
    visible: int = 0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.right / max(1, self.said + self.visible)


def agreement(said: Sequence[str], real: Sequence[str], visible: Iterable[set[str]]) -> dict[str, Agreement]:
    """How captions agree with the real ones in what is visible, by column, and ``all`` together.

    Args:
        said: Captions.
        real: The images' own.
        visible: Names of the columns that each image shows.
    """
    counts: dict[str, Agreement] = {"all": Agreement()}
    for ours, theirs, shown in zip(said, real, visible, strict=True):
        one, other = said_by(ours), said_by(theirs)
        for column in (one.keys() | other.keys()) - {"action", "direction"}:
            found = counts.setdefault(column, Agreement())
            hidden = column in other and column not in shown
            for count in (found, counts["all"]):
                count.visible += column in other and not hidden
                count.right += not hidden and column in one and one[column] == other.get(column)
                count.said += column in one and not (hidden and one[column] == other[column])
    return counts


def accuracy(said: Sequence[str], real: Sequence[str], column: str) -> float:
    """Share of captions that say the same of a column as the real ones."""
    pairs = [(said_by(one).get(column), said_by(other).get(column)) for one, other in zip(said, real, strict=True)]
    return sum(one == other for one, other in pairs) / len(pairs)
