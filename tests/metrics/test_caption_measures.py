"""Captions beside the real ones: known answers, and the reference implementation where it is installed."""

import math
import random

import numpy as np
import pytest
from PIL import Image

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset
from attndiff.metrics.captions.cider import cider_d
from attndiff.metrics.captions.measure import Beside, measure_captions
from attndiff.metrics.captions.texts import agreement_of_texts, as_words, copied_share, distinct_share, parts_f1

WORDS = ["cat", "dog", "red", "blue", "sits", "runs", "on", "the", "a", "mat", "hat"]


def sentences(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS[:4], k=rng.randint(1, 9))) for _ in range(n)]


def as_all_words(texts: list[list[str]]) -> list[list[list[str]]]:
    return [[as_words(text) for text in each] for each in texts]


def test_words_are_what_stands_between_marks():
    assert as_words("A man's T-shirt, 3 dogs - and “Éclairs”!") == [
        "a",
        "man's",
        "t-shirt",
        "3",
        "dogs",
        "and",
        "éclairs",
    ]
    assert as_words(" ,. ") == []


def test_a_caption_that_is_the_real_one_has_the_highest_score_of_runs_that_are_there():
    real = [["a red cat sits"], ["the blue dog runs"], ["a hat on the mat"]]
    texts = [captions[0] for captions in real]
    assert cider_d([as_words(text) for text in texts], as_all_words(real)) == pytest.approx([10.0] * 3)
    scores = agreement_of_texts(texts, real)
    assert scores == pytest.approx({"cider_d": 10.0, "bleu_4": 1.0, "rouge_l": 1.0, "parts": 1.0, "exact": 1.0})


def test_rare_words_count_more_and_other_lengths_less():
    """By hand: one run of one word is shared, of weights ln 3 and ln 1.5, in captions of two words."""
    real = [["cat sits"], ["dog sits"], ["hat"]]
    rare, common = math.log(3), math.log(3 / 2)
    found = cider_d([["cat", "runs"], ["red", "sits"], ["hat", "hat", "hat"]], as_all_words(real))
    norm = math.hypot(rare, common)
    assert found[0] == pytest.approx(10 / 4 * rare**2 / (math.hypot(rare, rare) * norm))
    assert found[1] == pytest.approx(10 / 4 * common**2 / (math.hypot(rare, common) * norm))
    assert found[2] == pytest.approx(10 / 4 * (rare * rare) / (3 * rare * rare) * math.exp(-4 / 72))


def test_nothing_written_scores_nothing():
    assert agreement_of_texts(["", ""], [["a cat"], ["a dog"]]) == {
        "cider_d": 0.0,
        "bleu_4": 0.0,
        "rouge_l": 0.0,
        "parts": 0.0,
        "exact": 0.0,
    }


def test_scores_are_those_of_the_reference_implementation():
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    written = sentences(0, 40)
    real = [sentences(100 + i, 1 + i % 4) for i in range(40)]
    theirs = dict(enumerate(real)), {i: [text] for i, text in enumerate(written)}
    total, each = cider.Cider().compute_score(*theirs)
    ours = cider_d([as_words(text) for text in written], as_all_words(real))
    assert ours == pytest.approx(list(each)) and agreement_of_texts(written, real)["cider_d"] == pytest.approx(total)
    four = bleu.Bleu(4).compute_score(*theirs, verbose=0)[0][3]
    assert agreement_of_texts(written, real)["bleu_4"] == pytest.approx(four, rel=1e-4)


def test_parts_stand_between_commas():
    assert parts_f1("Star, mdi filled", ["heart, mdi  filled"]) == 0.5
    assert parts_f1("star", ["star, mdi filled", "heart"]) == pytest.approx(2 / 3)
    assert parts_f1("a, a, a", ["a"]) == 1.0 and parts_f1("", [""]) == 0.0


def test_shares_are_of_words():
    assert distinct_share(["A cat.", "a cat", "a dog"]) == pytest.approx(2 / 3)
    assert copied_share(["A cat.", "a bird"], ["a cat", "a dog"]) == 0.5


def test_what_needs_no_looking_stands_beside(tmp_path):
    """Grey squares whose caption is their grey: the nearest image says it, one caption for all mostly not."""
    for i in range(24):
        Image.fromarray(np.full((8, 8, 3), 10 * (i // 2), np.uint8)).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(f"grey number {'abcdefghijkl'[i // 2]}")
    images = ImageSet(DataConfig(path=str(tmp_path), size=8, caption_column="text"))
    test, train = Subset(images, range(0, 24, 2)), Subset(images, range(1, 24, 2))
    written = [row["caption"][0] for row in test]
    found = measure_captions([*written[:-1], "grey number z"], test, Beside.of(test, train), seed=0)
    exact = found["exact"]
    assert exact["value"] == pytest.approx(11 / 12) and exact["floor"] == 1.0 and exact["n"] == 12
    assert exact["controls"]["best_template"] == pytest.approx(1 / 12)
    assert exact["controls"]["shuffled_images"] < 0.5
    assert found["distinct_captions"]["value"] == 1.0 and found["copied_captions"]["value"] == pytest.approx(11 / 12)
    assert "human" not in exact
