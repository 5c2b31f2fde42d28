"""From rows to what the condition's encoder takes."""

import json

import numpy as np
import pytest
import torch
from commands import make_images
from factories import text_pipeline, word_tokenizer

from attndiff.apps.cli.doctor import check_data
from attndiff.data.order.draw import draw
from attndiff.data.tokenizer import train_tokenizer
from attndiff.errors import UserError
from attndiff.pipelines.call.tokenizing import tokenize
from attndiff.tasks.prompts import PROMPTS
from attndiff.training import conditioning
from attndiff.training.batches import DrawnDataset
from attndiff.training.build import build
from attndiff.training.conditioning import (
    FEW,
    WORD_DROPOUT,
    CaptionTokens,
    Conditioning,
    count_tokens,
    without_words,
    word_dropout,
)
from attndiff.training.config import ConditionConfig, make_config
from attndiff.training.evaluation.samples import sample_row

WORDS = ["a red apple", "two green pears", "a blue plum"]


def counted(monkeypatch) -> tuple[Conditioning, list[str]]:
    """A condition of texts, and the captions that its tokenizer is asked for."""
    made, asked = Conditioning(PROMPTS["text"], train_tokenizer(WORDS, 300, 8)), []
    tokens = made.tokens
    monkeypatch.setattr(made, "tokens", lambda captions: asked.extend(captions) or tokens(captions))
    return made, asked


def test_a_caption_becomes_tokens_once_however_often_it_is_visited(monkeypatch):
    made, asked = counted(monkeypatch)
    visits = [made.sample({"caption": WORDS}, choice) for choice in (0.0, 0.4, 0.9, 0.1, 0.5, 0.8)]
    assert asked == WORDS
    for i, inputs in enumerate(visits):
        again = made.tokenizer(WORDS[i % 3], padding="max_length", truncation=True, return_tensors="pt")
        assert all(torch.equal(inputs[key], again[key][0]) for key in ("input_ids", "attention_mask"))


def test_only_so_many_captions_are_kept(monkeypatch):
    monkeypatch.setattr(conditioning, "KNOWN", 2)
    made, asked = counted(monkeypatch)
    for caption in [*WORDS, *WORDS]:
        made.sample({"caption": [caption]}, 0.0)
    assert len(made._known) <= 2 and set(asked) == set(WORDS)


def test_words_are_left_out_each_as_often_as_asked_and_never_all_of_them():
    caption, generator = "Red apple, half-eaten; fluent 3d", np.random.default_rng(0)
    drawn = [without_words(caption, 0.2, generator) for _ in range(2000)]
    for word in ("Red", "apple", "half-eaten", "fluent", "3d"):
        assert 0.77 < sum(word in of.replace(";", " ").replace(",", " ").split() for of in drawn) / 2000 < 0.83
    assert 0.29 < drawn.count(caption) / 2000 < 0.37  # 0.8 ** 5
    assert {"apple, half-eaten; fluent 3d", "Red, half-eaten; fluent 3d", "Red apple, fluent 3d"} < {*drawn}
    assert {without_words("cat", 0.9, generator) for _ in range(50)} == {"cat"}
    assert without_words("", 0.5, generator) == "" and without_words("赤い りんご", 0.99, generator)


def test_a_visit_draws_its_words_after_all_else_and_draws_nothing_where_all_stay():
    made, rests = Conditioning(PROMPTS["text"], train_tokenizer(WORDS, 300, 8)), []
    row = {"image": np.zeros((3, 8, 8), np.float32), "caption": ["a small red apple on a tree"]}
    shorter = DrawnDataset([row], made, seed=0, left_out=0.5)
    visits = [shorter.sample(row, visit, 0) for visit in range(8)]
    assert len({tuple(of["input_ids"].tolist()) for of in visits}) > 4
    assert all(torch.equal(shorter.sample(row, i, 0)["input_ids"], of["input_ids"]) for i, of in enumerate(visits))
    whole = DrawnDataset([row], made, seed=0, make_sample=lambda row, rest: rests.append(rest) or {})
    assert torch.equal(whole.sample(row, 3, 0)["noise"], visits[3]["noise"])
    assert rests[0].random() == draw(0, 3, 0, (3, 8, 8), 0.0, 0.0).rest.random()


@pytest.mark.parametrize(
    ("asked", "grounded", "images", "expected"),
    [
        (None, True, FEW - 1, WORD_DROPOUT),
        (None, True, FEW, 0.0),
        (None, False, 100, 0.0),
        (0.0, True, 100, 0.0),
        (0.3, False, FEW, 0.3),
    ],
)
def test_words_are_left_out_of_few_captions_that_the_encoder_knows_first_unless_told_otherwise(
    asked, grounded, images, expected
):
    assert word_dropout(ConditionConfig(word_dropout=asked), grounded, images) == expected


def test_words_cannot_be_left_out_of_a_class():
    with pytest.raises(UserError, match="word_dropout: a condition of kind class has no words; leave it out"):
        ConditionConfig(kind="class", word_dropout=0.1)


def test_tokens_of_captions_are_counted(monkeypatch):
    tokenizer = word_tokenizer(5)  # begin and end among them
    same = ["red apple flat cat", "red apple flat rocket", "red apple flat rocket"]
    captions = [*same, "red apple flat", "blue heart flat cat", "cat"]
    expected = CaptionTokens(captions=6, kept=5, longest=6, cut=4, equal=3)  # one that just fits among the equal
    assert count_tokens(tokenizer, captions) == expected
    monkeypatch.setattr(conditioning, "COUNTED", 2)
    assert count_tokens(tokenizer, captions) == expected
    assert count_tokens(tokenizer, ["cat", "cat"]) == CaptionTokens(2, 5, 3, 0, 0)


def test_what_is_cut_is_said_with_what_to_do():
    note = CaptionTokens(captions=8, kept=24, longest=90, cut=2, equal=0).note(adjustable=True)
    assert note.startswith("25.0% of 8 captions are longer than the 24 tokens that are kept (the longest has 90)")
    assert "equal" not in note and note.endswith("raise condition.max_length to keep up to 90")
    note = CaptionTokens(captions=8, kept=24, longest=90, cut=2, equal=2).note(adjustable=False)
    assert "2 that differ become equal" in note and "max_length" not in note and note.endswith("write shorter ones")


ENDS = [f"a very long caption about one and the same thing but for its end {i % 3}" for i in range(6)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    """Of a run on captions of which some differ at their ends alone."""
    root = tmp_path_factory.mktemp("captions")
    images = make_images(root / "images", count=6)
    for path, text in zip(sorted(images.rglob("*.txt")), ENDS, strict=True):
        path.write_text(text)
    return {
        "out": str(root / "run"),
        "data": {"path": str(images), "size": 16, "validation": 0.1, "caption_column": "text"},
        "condition": {"kind": "text", "vocab_size": 300, "max_length": 12},
        "model": {"preset": "tiny"},
        "optim": {"steps": 2, "batch_size": 4, "warmup": 1, "precision": "fp32"},
        "log": {"tracker": None},
    }


def test_a_run_says_at_its_start_what_share_of_captions_is_cut(settings):
    parts = build(make_config(settings))
    (note,) = [note for note in parts.notes if "captions" in note]
    assert (
        note.startswith("100.0% of 5 captions are longer than the 12 tokens") and "3 that differ become equal" in note
    )
    longest = int(note.rpartition(" ")[2])
    enough = settings | {"condition": settings["condition"] | {"max_length": longest}}
    assert not [note for note in build(make_config(enough)).notes if "captions" in note]


def test_a_model_that_is_gone_on_with_keeps_what_its_tokenizer_keeps(settings, tmp_path):
    text_pipeline(max_length=12).save_pretrained(tmp_path)
    parts = build(make_config(settings | {"model": {"preset": "tiny", "init_from": str(tmp_path)}}))
    (note,) = [note for note in parts.notes if "captions" in note]
    assert "the 12 tokens" in note and note.endswith("write shorter ones")


def test_the_doctor_of_a_config_says_what_its_run_would(settings, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    text, found = check_data(str(tmp_path / "run.yaml"), [])
    (note,) = [note for note in build(make_config(settings)).notes if "captions" in note]
    assert f"Tokens: {note}" in text.splitlines()
    tokens = json.loads(found)["tokens"]
    assert (tokens["captions"], tokens["kept"], tokens["cut"], tokens["equal"]) == (5, 12, 5, 3)
    text, found = check_data(str(tmp_path / "run.yaml"), ["condition.max_length=99"])
    assert f"Tokens: captions have at most {tokens['longest']} tokens, and 99 are kept" in text
    text, found = check_data(settings["data"]["path"], ["size=16", "caption_column=text"])
    assert json.loads(found)["tokens"] is None and "words 15" in text
    text, _ = check_data(str(tmp_path / "run.yaml"), ["condition.kind=none"])
    assert "Tokens" not in text


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """What is warned of by prompts."""
    said = []
    monkeypatch.setattr("attndiff.pipelines.call.tokenizing.logger.warning", said.append)
    return said


def test_sample_grids_warn_of_a_prompt_once(settings, warned):
    parts = build(make_config(settings))
    for prompts in (ENDS[:2], ENDS[:2], ENDS[1:3], ["short"]):
        sample_row(parts, prompts, 1.0)
    assert len(warned) == 3


def test_every_tokenizer_warns_for_itself(warned, monkeypatch):
    monkeypatch.setattr("attndiff.pipelines.call.tokenizing.REMEMBERED", 2)
    first, second = (train_tokenizer(WORDS, 300, 4) for _ in range(2))
    for tokenizer, text in ((first, ENDS[0]), (first, ENDS[0]), (second, ENDS[0]), (first, ENDS[1]), (first, ENDS[2])):
        tokenize(tokenizer, [text])
    assert len(warned) == 4
    tokenize(first, [ENDS[0]])  # forgotten among so many
    assert len(warned) == 5
