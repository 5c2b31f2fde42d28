"""Captions to the tokens of a pipeline's tokenizer."""

import torch
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of captions, padded to the tokenizer's length; what is cut off is shown in a warning.

    Returns:
        Two int64 tensors ``(P, T)``; the mask is 1 for tokens that count.
    """
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    for text, kept in zip(texts, encoded["input_ids"].tolist()):
        whole = tokenizer(text, verbose=False)["input_ids"]
        if len(whole) > len(kept):
            same = next(i for i, (a, b) in enumerate(zip([*kept, None], whole)) if a != b)
            cut = tokenizer.decode(whole[same:], skip_special_tokens=True).strip()
            logger.warning(f"The prompt is longer than the model's {len(kept)} tokens; this was cut off: {cut!r}")
    return encoded["input_ids"], encoded["attention_mask"]
