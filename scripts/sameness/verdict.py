"""What became of a run in both checkouts."""

from dataclasses import dataclass, field

from sameness.figures import PARTS, Figures

EXPECTED: dict[str, dict[str, str]] = {
    "text": {"held-out losses": "the 256 of 310 images that are looked at are spread over all instead of the first"},
    "format 1 goes on": {
        "training losses": "Muon multiplies matrices of one shape together, in bfloat16 that rounds: one loss by 8e-8",
        "held-out losses": "likewise, after it",
    },
    "distances": {"held-out losses": "distances are those of an extractor that learns what is said of the images"},
}


@dataclass
class Verdict:
    """What became of a run in both checkouts.

    Args:
        counts: Of each part: how many numbers are equal, and how many there are.
        different: The first numbers of each part that are not.
        problem: What is wrong, in words; None if everything is as it should be.
        note: What differs as said.
    """

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    different: dict[str, list[str]] = field(default_factory=dict)
    problem: str | None = None
    note: str | None = None

    def __str__(self) -> str:
        return self.problem or self.note or "the same"


def compare(name: str, both: list[Figures]) -> Verdict:
    """Count equal numbers; a part may differ only where `EXPECTED` says so."""
    verdict, said = Verdict(), EXPECTED.get(name, {})
    for part in PARTS:
        old, new = (figures.get(part, {}) for figures in both)
        keys = list(old | new)
        different = [key for key in keys if old.get(key) != new.get(key)]
        verdict.counts[part] = (len(keys) - len(different), len(keys))
        if different:
            verdict.different[part] = different[:5]
    unsaid = [f"{part} ({ks[0]})" for part, ks in verdict.different.items() if part not in said]
    if unsaid:
        verdict.problem = f"DIFFERS: {', '.join(unsaid)}"
    as_said = [f"{part}: {said[part]}" for part in verdict.different if part in said]
    equal = [part for part in said if part not in verdict.different]
    notes = [f"differs, as said: {'; '.join(as_said)}"] * bool(as_said)
    verdict.note = "; ".join([*notes, *(f"{part} are said to differ and do not" for part in equal)]) or None
    return verdict
