"""From captions and labels to the tensors that the condition encoder takes."""

import re
from collections import defaultdict
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attndiff.data.rows import Row
from attndiff.errors import UserError
from attndiff.tasks.prompts import PROMPTS, Prompt
from attndiff.training.config import ConditionConfig
from attndiff.training.state.learned import Learned

KNOWN = 100_000  # captions whose tokens are kept; about a kilobyte each
COUNTED = 1000  # captions whose tokens are counted at once
WORD = re.compile(r"\s*[\w'-]+")
SEPARATORS = re.compile(r"([,;])\s*[,;]+")  # what stands between words that are gone
WORD_DROPOUT = 0.2
FEW = 20_000  # images; of 73,000, each seldom visited, it costs more than it brings (model_cards/words.md)


@dataclass
class Conditioning:
    """A run's condition: its kind of prompt, tokenizer and frozen text encoder, whichever apply.

    Args:
        prompt: What the model is told.
        tokenizer: Of text conditions.
        text_encoder: Frozen pretrained encoder of text conditions, or None where ours learns from tokens.
        encoder_settings: Which streams the `ConditionEncoder` needs.
    """

    prompt: Prompt
    tokenizer: PreTrainedTokenizerBase | None = None
    text_encoder: PreTrainedModel | None = None
    encoder_settings: dict = field(default_factory=dict)
    _known: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict, repr=False)

    def sample(
        self, row: Row, choice: float, left_out: float = 0.0, generator: np.random.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """The condition of one sample.

        Args:
            row: The sample.
            choice: In [0, 1), picks among its captions.
            left_out: Probability of each word of the caption to be left out.
            generator: That draws which ones; nothing is drawn where none is left out.
        """
        if not left_out:
            return self.prompt.inputs(row, choice, self._tokens_of)
        return self.prompt.inputs(
            row, choice, lambda caption: self._tokens_of(without_words(caption, left_out, generator))
        )

    def _tokens_of(self, caption: str) -> dict[str, torch.Tensor]:
        """Tokens of a caption ``(T,)``, made once: an image is visited many times."""
        if caption not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[caption] = {key: value[0] for key, value in self.tokens([caption]).items()}
        return self._known[caption]

    def tokens(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask``, both ``(B, T)`` int64, cut and padded to the tokenizer's length."""
        encoded = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    @torch.no_grad()
    def embed(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Replace the tokens of a batch by the hidden states of the pretrained encoder, where there is one."""
        if self.text_encoder is None or "input_ids" not in batch:
            return batch
        ids, mask = batch.pop("input_ids"), batch.pop("attention_mask")
        encoder = self.text_encoder.to(ids.device)
        return {**batch, "context": encoder(ids, attention_mask=mask).last_hidden_state, "context_mask": mask}


def word_dropout(config: ConditionConfig, grounded: bool, images: int) -> float:
    """Share of a caption's words that a visit leaves out.

    An encoder that knows every caption of a small collection makes each one the name of its image: the network then
    draws that image sooner than what an unknown caption has in common with known ones.

    Args:
        config: Of the run.
        grounded: Whether the encoder has learned words before step 1.
        images: How many are trained on.
    """
    if config.word_dropout is not None:
        return config.word_dropout
    return WORD_DROPOUT if grounded and images < FEW else 0.0


def without_words(caption: str, left_out: float, generator: np.random.Generator) -> str:
    """A caption some of whose words are left out, each with the same probability; whole where none would stay."""
    stays = generator.random(len(WORD.findall(caption))) >= left_out
    if not stays.any():
        return caption
    each = iter(stays)
    shortened = WORD.sub(lambda word: word[0] if next(each) else "", caption)
    return SEPARATORS.sub(r"\1", shortened).strip(" ,;")


@dataclass(frozen=True)
class CaptionTokens:
    """What becomes of captions as tokens.

    Args:
        captions: How many there are.
        kept: Tokens of a caption that are kept at most.
        longest: Tokens of the longest.
        cut: Captions that are longer than what is kept.
        equal: Captions, no two of them alike, that have the tokens of another once they are cut.
    """

    captions: int
    kept: int
    longest: int
    cut: int
    equal: int

    def note(self, adjustable: bool) -> str:
        """The same in a sentence, with what to do; ``adjustable`` is whether ``condition.max_length`` would help."""
        if not self.cut:
            return f"captions have at most {self.longest} tokens, and {self.kept} are kept"
        equal = f", and {self.equal} that differ become equal" if self.equal else ""
        advice = f"raise condition.max_length to keep up to {self.longest}"
        advice = advice if adjustable else "the model that reads them takes no more: write shorter ones"
        return (
            f"{self.cut / self.captions:.1%} of {self.captions} captions are longer than the {self.kept} tokens that "
            f"are kept (the longest has {self.longest}): the rest is cut off{equal}; {advice}"
        )

    def to_json(self, adjustable: bool) -> dict[str, int | str]:
        """The counts, and the ``note``."""
        return {**asdict(self), "note": self.note(adjustable)}


def count_tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> CaptionTokens:
    """What a tokenizer makes of captions."""
    kept, longest, cut = tokenizer.model_max_length, 0, 0
    alike: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)  # whole tokens by what is kept of them
    for start in range(0, len(captions), COUNTED):
        texts = captions[start : start + COUNTED]
        whole = tokenizer(texts, verbose=False)["input_ids"]
        longest, cut = max(longest, *map(len, whole)), cut + sum(len(ids) > kept for ids in whole)
        full = [(text, ids) for text, ids in zip(texts, whole, strict=True) if len(ids) >= kept]
        if full:
            shown = tokenizer([text for text, _ in full], truncation=True)["input_ids"]
            for (_, ids), rest in zip(full, shown, strict=True):
                alike[tuple(rest)].add(tuple(ids))
    equal = sum(len(ids) for ids in alike.values() if len(ids) > 1)
    return CaptionTokens(len(captions), kept, longest, cut, equal)


def make_conditioning(config: ConditionConfig, learned: Learned) -> Conditioning:
    """The condition of a run that is given none: from the classes or the captions that it learned."""
    prompt = PROMPTS[config.kind]
    tokenizer = learned.tokenizer if prompt.reads_text else None
    return Conditioning(prompt, tokenizer, encoder_settings=prompt.encoder_settings(learned.class_names, tokenizer))


def open_pretrained(config: ConditionConfig) -> Conditioning:
    """A frozen ``transformers`` encoder; of a two-tower model (CLIP) the text tower.

    Raises:
        UserError: If it cannot be opened.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.pretrained)
        encoder = AutoModel.from_pretrained(config.pretrained, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"condition.pretrained {config.pretrained}: {' '.join(str(error).split())[:300]}") from None
    encoder = getattr(encoder, "text_model", encoder)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_length)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = {"context_dim": encoder.config.hidden_size}
    return Conditioning(PROMPTS[config.kind], tokenizer, encoder.eval().requires_grad_(False), settings)
