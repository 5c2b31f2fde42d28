"""Words of a prompt that no training caption has are named, and nothing else is."""

import pytest
from commands import attndiff
from factories import pretrained_text_pipeline, text_pipeline
from runs import FOOD, settings, train

from attndiff.data.tokenizer import train_tokenizer
from attndiff.folder.open import load
from attndiff.training.config import make_config
from attndiff.training.parts import learning
from attndiff.training.parts.given import open_given
from attndiff.words import KNOWN_WORDS, describe_unknown, take_words, with_words, words_of

UNKNOWN = "No training caption has 'piza' ('pizza' is known), 'zeppelin': the model was never shown what that means."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on food of one style, its pipeline in a folder."""
    out = tmp_path_factory.mktemp("words") / "run"
    train(out, data__=FOOD, log__prompts=["piza, zeppelin"])
    return out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Red  apple, FLUENT 3d", {"red", "apple", "fluent", "d"}),
        ("x-ray of the cat's 2 paws", {"x", "ray", "of", "the", "cat", "s", "paws"}),
        ("Käse ﬁn", {"käse", "fin"}),  # the ligature is two letters
        ("赤いりんご 123 !?", set()),  # no spaces between words
        ("", set()),
    ],
)
def test_words_of_a_text(text, words):
    assert words_of(text) == words


def test_a_prompt_with_a_word_that_no_caption_has_is_told_so(run, tmp_path, caplog):
    sampled = ["sample", run / "pipeline", "--steps", 1, "--out", tmp_path / "grid.png"]
    assert attndiff(*sampled, "Pizza, NOTO", "").code == 0 and not caplog.messages
    assert attndiff(*sampled, "piza, zeppelin noto", "--count", 2).code == 0
    assert caplog.messages == [UNKNOWN]


def test_training_is_silent_on_its_own_prompts(run, tmp_path, caplog):
    train(tmp_path / "run", model__init_from=str(run / "pipeline"), log__prompts=["piza, zeppelin"])
    assert "No training caption" not in caplog.text


def test_a_model_that_is_gone_on_with_knows_the_words_of_both(run, tmp_path):
    activities = {**FOOD, "where": {"style": ["fluent flat"], "group": ["Activities"]}}
    train(tmp_path / "on", data__=activities, model__init_from=str(run / "pipeline"))
    before, after = (take_words(load(folder / "pipeline").tokenizer) for folder in (run, tmp_path / "on"))
    assert "pizza" in before and "flat" not in before
    assert after > before and "flat" in after


def test_where_not_all_words_are_at_hand_none_are_unknown(run, tmp_path, monkeypatch):
    texts = ["a zeppelin"]
    text_pipeline().save_pretrained(tmp_path / "older")
    older = open_given(make_config(settings("x", model__init_from=str(tmp_path / "older"))))
    assert learning.known_words(older, texts) == []
    encoder = tmp_path / "encoder"
    pretrained = pretrained_text_pipeline(max_length=12)
    pretrained.text_encoder.save_pretrained(encoder)
    pretrained.tokenizer.save_pretrained(encoder)
    condition = {"kind": "text", "pretrained": str(encoder)}
    config = make_config(settings("x", condition__=condition))
    assert learning.known_words(open_given(config), texts) == []
    own = open_given(make_config(settings("x")))
    assert learning.known_words(own, texts) == ["a", "zeppelin"]
    monkeypatch.setattr(learning, "MOST", 1)
    assert learning.known_words(own, texts) == []


def test_a_stream_says_nothing_of_words(tmp_path):
    data = {**FOOD, "stream": True, "shuffle_buffer": 4, "validation": None}
    train(tmp_path / "run", data__=data)
    assert KNOWN_WORDS not in load(tmp_path / "run/pipeline").tokenizer.init_kwargs


def test_words_come_through_a_folder_and_the_original_stays(tmp_path):
    tokenizer = train_tokenizer(["a pizza"], 300, 8)
    knowing = with_words(tokenizer, {"pizza", "a"})
    knowing.save_pretrained(tmp_path)
    opened = type(tokenizer).from_pretrained(tmp_path)
    assert describe_unknown(opened, "a piza, zeppelin") == UNKNOWN
    assert describe_unknown(opened, "a pizza") is None and describe_unknown(tokenizer, "zeppelin") is None
    assert take_words(opened) == {"a", "pizza"} and describe_unknown(opened, "zeppelin") is None
