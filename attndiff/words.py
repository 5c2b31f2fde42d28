"""Words of the training captions, by which a prompt's others are noticed: most are misspelt ones."""

import copy
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

from transformers import PreTrainedTokenizerBase

KNOWN_WORDS = "known_words"  # in a tokenizer's configuration: words, joined by spaces
MOST = 50_000  # of a longer list the configuration would be larger than many a model
WORD = re.compile(r"[^\W\d_]+")


def words_of(text: str) -> set[str]:
    """Words of a text in lower case, of scripts that have one: many of the others put no spaces between words."""
    found = WORD.findall(unicodedata.normalize("NFKC", text).lower())
    return {word for word in found if word != word.upper()}


def with_words(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer whose configuration names the words of the training captions."""
    made = copy.deepcopy(tokenizer)
    made.init_kwargs[KNOWN_WORDS] = " ".join(sorted(words))
    return made


def take_words(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Take them out again, so that prompts with others pass unnoticed; none where there are none."""
    return set(tokenizer.init_kwargs.pop(KNOWN_WORDS, "").split())


def describe_unknown(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """Which words of a text no training caption has, as a sentence; None where all are known, or it cannot be told."""
    known = tokenizer.init_kwargs.get(KNOWN_WORDS, "").split()
    unknown = sorted(words_of(text).difference(known)) if known else []
    if not unknown:
        return None
    near = {word: get_close_matches(word, known, n=1, cutoff=0.75) for word in unknown}
    named = (f"{word!r} ({near[word][0]!r} is known)" if near[word] else repr(word) for word in unknown)
    return f"No training caption has {', '.join(named)}: the model was never shown what that means."
