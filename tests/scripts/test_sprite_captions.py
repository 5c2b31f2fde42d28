"""What captions of sprites say, and how frames are divided."""

import io

import numpy as np
import pytest
from PIL import Image
from record import DIFFUSION, HUMAN, TEMPLATE, WEBP, entry_of
from sprite_attributes import agreement, said_by
from sprite_frames import FIXED, OF_TRAINING, SIDE, divide, frames_of, standing, who

CAPTION = "an olive orc man with green bunches hair, a beard, white cape, plate armour, red pants and brown shoes {}"


def test_a_caption_is_read_column_by_column():
    said = said_by(CAPTION.format("walks with a great bow towards us"))
    assert said == {
        "skin_colour": "olive",
        "kind": "orc man",
        "hair_colour": "green",
        "hair_style": "bunches",
        "facial": "a beard",
        "cape": "white cape",
        "torso": "plate armour",
        "legs": "red pants",
        "feet": "brown shoes",
        "weapon": "great bow",
        "action": "walk",
        "direction": "down",
    }
    assert said_by("a skeleton with blue robe and metal boots casts a spell to the left") == {
        "kind": "skeleton",
        "torso": "blue robe",
        "feet": "metal boots",
        "action": "cast",
        "direction": "left",
    }
    assert said_by("") == {} and said_by("walks") == {"action": "walk"}


def test_what_is_hidden_and_said_rightly_counts_neither_way():
    real = "a pale man with red shirt, red pants and black shoes walks away from us"
    shown = {"skin_colour", "kind", "torso", "legs"}
    whole = agreement([real], [real], [shown])["all"]
    assert (whole.right, whole.said, whole.visible, whole.f1) == (4, 4, 4, 1.0)
    wrong = "a pale man with red shirt, red pants and metal boots walks away from us"
    assert agreement([wrong], [real], [shown])["all"].f1 == pytest.approx(8 / 9)  # boots that are not there
    half = "a dark man with red shirt and black shoes walks away from us"
    found = agreement([half], [real], [shown])
    assert (found["all"].right, found["all"].said, found["all"].visible) == (2, 3, 4)
    assert (found["torso"].f1, found["legs"].f1, found["skin_colour"].f1) == (1.0, 0.0, 0.0)
    assert "action" not in found


def clip(character: int, hair: str | None, torso: str, shown: list[int]) -> dict:
    """A clip whose frame n has n for its grey, and the parts that are shown in it."""
    frames, parts = np.zeros((SIDE, 8 * SIDE), np.uint8), np.zeros((SIDE, 8 * SIDE), np.uint8)
    for n in range(8):
        frames[:, n * SIDE : (n + 1) * SIDE] = n
    parts[0, FIXED * SIDE : FIXED * SIDE + len(shown)] = shown
    files = [io.BytesIO(), io.BytesIO()]
    for array, file in zip((frames, parts), files, strict=True):
        Image.fromarray(array).save(file, "PNG")
    columns = dict.fromkeys(("facial", "legs", "feet", "head", "cape", "weapon", "hair_style"))
    known = {"skin_colour": "pale", "kind": "man", "torso": torso, "hair_colour": hair, "frames": 8}
    said = {"clip_id": f"{character}", "caption": "x", "action": "walk", "direction": "up", "licence": "", "author": ""}
    return {
        "character_id": character,
        "strip": files[0].getvalue(),
        "parts": files[1].getvalue(),
        **columns,
        **known,
        **said,
    }


def test_a_frame_says_what_it_shows():
    (row,) = frames_of([clip(0, "red", "white shirt", [1, 3])], train=False)
    assert set(row["visible"].split()) == {"skin_colour", "kind", "hair_colour"}
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.size == (SIDE, SIDE) and image.getpixel((0, 0))[0] == FIXED == row["frame"]
    assert len(list(frames_of([clip(0, "red", "white shirt", [1])], train=True))) == OF_TRAINING


def test_withheld_pairs_and_tested_characters_are_not_trained_on():
    colours, torsos = "abcdef", "uvwxyz"
    clips = [clip(i, colours[i % 6], torsos[i // 6 % 6], [1]) for i in range(216)]
    parts, withheld = divide(clips)
    pair = {(c["hair_colour"], c["torso"]) for c in parts["test"] if c["held_out"] == "pair"}
    assert pair == withheld and len(pair) == 12 and not pair & {(c["hair_colour"], c["torso"]) for c in parts["train"]}
    tested = {c["character_id"] for c in parts["test"]}
    assert not tested & {c["character_id"] for c in parts["train"]}
    assert sum(c["held_out"] == "character" for c in parts["test"]) == 60
    assert len(parts["train"]) + len(parts["test"]) == len(clips)


def test_edits_show_both_characters_in_four_directions_but_none_that_is_tested():
    before, after, paired = (
        f"a pale man with {hair} hair, red shirt and black shoes" for hair in ("red long", "tan wild", "blue long")
    )
    strip = np.zeros((SIDE, 4 * SIDE), np.uint8)
    for n in range(4):
        strip[:, n * SIDE : (n + 1) * SIDE] = n
    file = io.BytesIO()
    Image.fromarray(strip).save(file, "PNG")

    def pair(source: str, target: str) -> dict:
        images = {"source": file.getvalue(), "target": file.getvalue(), "directions": "up,left,down,right"}
        captions = {"caption_source": source, "caption_target": target}
        return {"pair_id": "tr0", "licence": "CC", "author": "A", **images, **captions}

    rows = standing([pair(before, after)], set(), set())
    assert [row["caption"] for row in rows[:4]] == [
        f"{before} stands {where}" for where in ("away from us", "to the left", "towards us", "to the right")
    ]
    shown = [Image.open(io.BytesIO(row["image"]["bytes"])).getpixel((0, 0))[0] for row in rows]
    assert shown == [0, 1, 2, 3] * 2 and said_by(rows[5]["caption"])["action"] == "stand"
    tested = {who(f"{before} walks with a bow to the left")}
    left = standing([pair(before, after), pair(after, paired)], tested, {("blue", "red shirt")})
    assert {who(row["caption"]) for row in left} == {who(after)} and len(left) == 8


def test_an_entry_has_what_a_value_stands_beside():
    one = {"value": 0.2, "floor": 0.1, "n": 7, "controls": {"best_template": 0.15}}
    found = {"plain": one, "several": {**one, "human": 0.8}}
    assert entry_of(found, "plain")["rival"] == TEMPLATE and entry_of(found, "plain")["rival_value"] == 0.15
    entry = entry_of(found, "several")
    assert (entry["rival"], entry["rival_value"], entry["floor_value"], entry["n"]) == (HUMAN, 0.8, 0.1, 7)
    ways = {"model": {"f1": 0.9}, "nearest_training_frame": {"f1": 0.3}, "best_template": {"f1": 0.2}}
    entry = entry_of({"n": 5, "ways": ways}, "f1")
    assert (entry["value"], entry["floor_value"], entry["rival_value"], entry["n"]) == (0.9, 0.3, 0.2, 5)
    bits = {"bits_per_value": {"value": 1.5, "floor": 1.8, "n": 9}}, {"bits_per_value_at_most": {"value": 2.5, "n": 4}}
    models = {kind: {"report": of} for kind, of in zip(("value after value", "diffusion"), bits, strict=True)}
    entry = entry_of({"models": models}, "bits_per_value")
    assert (entry["floor"], entry["rival"], entry["rival_value"], entry["n"]) == (WEBP, DIFFUSION, 2.5, 9)
    assert entry["lower_is_better"] and (entry["value"], entry["floor_value"], entry["rival_n"]) == (1.5, 1.8, 4)
