"""From captions and labels to the tensors that the condition encoder takes."""

from dataclasses import dataclass, field

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attndiff.data.rows import Row
from attndiff.errors import UserError
from attndiff.tasks.prompts import PROMPTS, Prompt
from attndiff.training.config import ConditionConfig
from attndiff.training.state.learned import Learned

KNOWN = 100_000  # captions whose tokens are kept; about a kilobyte each


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

    def sample(self, row: Row, choice: float) -> dict[str, torch.Tensor]:
        """The condition of one sample; ``choice`` in [0, 1) picks among its captions."""
        return self.prompt.inputs(row, choice, self._tokens_of)

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
