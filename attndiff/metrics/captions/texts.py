"""Captions beside the real ones: CIDEr-D, BLEU-4, ROUGE-L, and how often they say exactly the same."""

import re
import unicodedata
from collections.abc import Sequence

from attndiff.metrics.captions.cider import cider_d

WORD = re.compile(r"[^\W_](?:[\w'-]*[^\W_])?")


def as_words(caption: str) -> list[str]:
    """The words of a caption, in lower case and without what stands between them."""
    return WORD.findall(unicodedata.normalize("NFKC", caption).lower())


def agreement_of_texts(captions: Sequence[str], real: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores by name, of all captions together.

    ``cider_d`` in [0, 10], see `cider_d`; ``bleu_4`` in [0, 1], of the corpus, runs of up to four words (Papineni et
    al., ACL 2002). The others in [0, 1], the best over an image's captions: ``rouge_l``, the F1 of the longest common
    sequence of words (Lin, 2004); ``parts``, that of what stands between commas, such as a thing and its style;
    ``exact``, the share of captions with all words of a real one in its order.

    Args:
        captions: One an image.
        real: The real captions of each image, one or several.
    """
    from torchmetrics.functional.text import bleu_score, rouge_score  # brings all of matplotlib: a second

    ours = [as_words(caption) for caption in captions]
    theirs = [[as_words(caption) for caption in each] for each in real]
    one, several = [" ".join(words) for words in ours], [[" ".join(words) for words in each] for each in theirs]
    rouge = rouge_score(one, several, accumulate="best", rouge_keys="rougeL")["rougeL_fmeasure"]
    return {
        "cider_d": sum(cider_d(ours, theirs)) / len(ours),
        "bleu_4": float(bleu_score(one, several, n_gram=4)),
        "rouge_l": float(rouge),
        "parts": sum(map(parts_f1, captions, real)) / len(one),
        "exact": sum(text in each for text, each in zip(one, several, strict=True)) / len(one),
    }


def parts_f1(caption: str, real: Sequence[str]) -> float:
    """F1 in [0, 1] of what stands between commas in a caption, the best over the real ones."""
    ours = _parts(caption)
    return max(2 * len(ours & theirs) / max(1, len(ours) + len(theirs)) for theirs in map(_parts, real))


def _parts(caption: str) -> set[str]:
    """What stands between commas, as words."""
    return {" ".join(words) for part in caption.split(",") if (words := as_words(part))}


def distinct_share(captions: Sequence[str]) -> float:
    """How many different captions there are, as a share of all."""
    return len({" ".join(as_words(caption)) for caption in captions}) / len(captions)


def copied_share(captions: Sequence[str], known: Sequence[str]) -> float:
    """Share of captions that are, word for word, some that were trained on."""
    trained = {" ".join(as_words(caption)) for caption in known}
    return sum(" ".join(as_words(caption)) in trained for caption in captions) / len(captions)
