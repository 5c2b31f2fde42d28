"""Captions to the tokens of a pipeline's tokenizer."""

from threading import Lock
from weakref import WeakKeyDictionary

import torch
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase

from attndiff.words import describe_unknown

logger = logging.get_logger(__name__)

REMEMBERED = 10_000  # prompts of a tokenizer that are not warned of again
# How a call pads and cuts is kept in the tokenizer while it works, and pipelines in several threads may share one.
_tokenizing = Lock()
_warned: WeakKeyDictionary[PreTrainedTokenizerBase, set[int]] = WeakKeyDictionary()


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of captions, padded to the tokenizer's length.

    What is cut off, and words that no training caption has, are shown in a warning, once.

    Returns:
        Two int64 tensors ``(P, T)``; the mask is 1 for tokens that count.
    """
    with _tokenizing:
        return _tokenize(tokenizer, texts)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """`tokenize`, by one thread at a time."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    for text, kept in zip(texts, encoded["input_ids"].tolist()):
        said = [one for one in (_describe_cut(tokenizer, text, kept), describe_unknown(tokenizer, text)) if one]
        if said and _is_news(tokenizer, text):
            for one in said:
                logger.warning(one)
    return encoded["input_ids"], encoded["attention_mask"]


def _describe_cut(tokenizer: PreTrainedTokenizerBase, text: str, kept: list[int]) -> str | None:
    """What is cut off a text, as a sentence; None where nothing is."""
    whole = tokenizer(text, verbose=False)["input_ids"]
    if len(whole) <= len(kept):
        return None
    same = next(i for i, (a, b) in enumerate(zip([*kept, None], whole)) if a != b)
    cut = tokenizer.decode(whole[same:], skip_special_tokens=True).strip()
    return f"The prompt is longer than the model's {len(kept)} tokens; this was cut off: {cut!r}"


def _is_news(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether nothing was said of a prompt yet: a training run draws the same ones again and again."""
    known = _warned.setdefault(tokenizer, set())
    if hash(text) in known:
        return False
    if len(known) >= REMEMBERED:
        known.clear()
    known.add(hash(text))
    return True
