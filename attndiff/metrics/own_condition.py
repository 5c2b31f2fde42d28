"""Does a picture show what was asked for? Its own caption first among others, or its own class.

A text or class model is judged by this before any distance, which knows nothing of what was asked for: pictures of the
right kind under the wrong captions are at no distance from real ones.
"""

from functools import partial

import torch

from attndiff.metrics.controls import CONTROLS, OTHER_CAPTIONS, OTHER_CLASSES, not_told_apart
from attndiff.metrics.extractors.base import Extractor
from attndiff.metrics.extractors.pretext import Result
from attndiff.metrics.shares import is_clear_of_chance, share

NAMES = {"text": "own_caption_first", "class": "own_class"}
OTHERS = {"text": OTHER_CAPTIONS, "class": OTHER_CLASSES}


def own_condition(
    judge: Extractor,
    kind: str,
    samples: torch.Tensor,
    real: torch.Tensor,
    conditions: list[str | int],
    groups: list[str] | None = None,
) -> dict:
    """The share of samples that are seen to be what was asked for, with its interval.

    Args:
        judge: An extractor whose `own` has the kind.
        kind: ``"text"`` or ``"class"``.
        samples: ``(N, C, H, W)`` in [-1, 1].
        real: The real images of the same conditions, which it was not trained on.
        conditions: Captions or numbers of classes, one an image.
        groups: One an image: captions are chosen among those of its group alone, such as its style.

    Returns:
        ``value``, ``interval``, ``n``, ``among`` (of captions), ``floor`` and ``floor_interval`` (real images),
        ``chance``, ``controls``, ``extractor``, and ``judges``: whether real images do clearly better than chance and
        than real images with other images' conditions.
    """
    own = judge.own[kind] if groups is None else partial(judge.own[kind], groups=groups)
    of_samples, of_real = own(samples, conditions), own(real, conditions)
    spoilt = {name: own(spoil(real), conditions) for name, spoil in CONTROLS.items()}
    spoilt[OTHERS[kind]] = own(real, exchanged(conditions, groups))
    floor = share(of_real.hits)
    among = {"among": round(1 / of_real.chance)} if kind == "text" else {}
    return {
        **share(of_samples.hits),
        **among,
        "extractor": judge.name,
        "floor": floor["value"],
        "floor_interval": floor["interval"],
        "chance": of_real.chance,
        "controls": {name: share(result.hits)["value"] for name, result in spoilt.items()},
        **_verdict(floor, of_real.chance, spoilt[OTHERS[kind]], OTHERS[kind]),
    }


def _verdict(floor: dict, chance: float, others: Result, name: str) -> dict:
    """Whether the share judges, and if not, why."""
    if not is_clear_of_chance(floor, chance):
        return {"judges": False, "why_not": "real images do hardly better than chance"}
    if floor["interval"][0] <= share(others.hits)["interval"][1]:
        return {"judges": False, "why_not": not_told_apart([name])}
    return {"judges": True}


def is_choice(conditions: list[str | int], groups: list[str]) -> bool:
    """Whether some group has two conditions to choose among; a condition and a group an image."""
    return len(set(zip(groups, conditions, strict=True))) > len(set(groups))


def exchanged(conditions: list[str | int], groups: list[str] | None = None) -> list[str | int]:
    """The same conditions, each with another image than its own, and as far as may be another than it had.

    With ``groups``, one an image, each stays in its group.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups or [""] * len(conditions)):
        members.setdefault(group, []).append(i)
    found = {}
    for rows in members.values():
        order = sorted(rows, key=lambda i: conditions[i])
        moved = order[len(order) // 2 :] + order[: len(order) // 2]
        found |= dict(zip(order, (conditions[i] for i in moved), strict=True))
    return [found[i] for i in range(len(conditions))]
