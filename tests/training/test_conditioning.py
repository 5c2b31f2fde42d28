"""From rows to what the condition's encoder takes."""

import torch

from attndiff.data.tokenizer import train_tokenizer
from attndiff.tasks.prompts import PROMPTS
from attndiff.training import conditioning
from attndiff.training.conditioning import Conditioning

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
