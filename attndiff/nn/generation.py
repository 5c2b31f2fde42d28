"""Texts from a `TextDecoderModel` by the search of `transformers`: greedy, beams, sampling and all that it knows.

Shapes: B batch, L tokens that are given, S tokens so far, M condition tokens, C channels, V tokens of the vocabulary.
"""

import torch
from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from attndiff.nn.decoder import KeyValue, TextDecoderModel


class TextGenerationConfig(PreTrainedConfig):
    """What the search needs to know of a decoder."""

    model_type = "attndiff_text_decoder"


class TextGenerator(PreTrainedModel, GenerationMixin):
    """A decoder as `generate` of `transformers` takes it; the decoder is shared, and this is not saved.

    >>> decoder = TextDecoderModel(vocab_size=100, hidden_size=64, head_dim=16, cross_attention_dim=32).eval()
    >>> generator = TextGenerator(decoder, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    >>> start, condition = torch.tensor([[1], [1]]), torch.randn(2, 16, 32)
    >>> ids = generator.generate(start, encoder_hidden_states=condition, num_beams=4, max_new_tokens=5)
    >>> len(ids), ids.shape[1] <= 6
    (2, True)

    Args:
        decoder: The network.
        bos_token_id: Token that a text begins with.
        eos_token_id: Token that ends it.
        pad_token_id: Token that stands for none.
    """

    config_class = TextGenerationConfig
    main_input_name = "input_ids"
    _supports_attention_backend = True

    def __init__(self, decoder: TextDecoderModel, bos_token_id: int, eos_token_id: int, pad_token_id: int):
        config = TextGenerationConfig(
            vocab_size=decoder.config.vocab_size,
            num_hidden_layers=decoder.config.num_layers,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
        )
        super().__init__(config)
        self.decoder = decoder
        self._condition: torch.Tensor | None = None
        self._key_values: list[KeyValue] | None = None

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Cache | None = None, **kwargs
    ) -> dict[str, torch.Tensor | Cache | None]:
        """What `forward` is given at a step: the tokens that are not in the cache yet, and the condition.

        Args:
            input_ids: ``(B, S)``, all tokens so far.
            past_key_values: Cache of the tokens before.
            kwargs: ``attention_mask (B, S)``, ``encoder_hidden_states (B, M, C)``, ``encoder_attention_mask (B, M)``.
        """
        told = {
            name: kwargs.get(name) for name in ("attention_mask", "encoder_hidden_states", "encoder_attention_mask")
        }
        known = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {"input_ids": input_ids[:, known:], "past_key_values": past_key_values, **told}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits ``(B, L, V)`` of every token's successor; arguments as of `TextDecoderModel.forward`."""
        logits = self.decoder(
            input_ids,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            self._key_values_of(encoder_hidden_states),
            past_key_values,
        ).logits
        return CausalLMOutputWithPast(logits=logits.float(), past_key_values=past_key_values)

    def _key_values_of(self, condition: torch.Tensor | None) -> list[KeyValue] | None:
        """Those of the condition, made once a search: all its steps are given the same tensor."""
        if condition is None:
            return None
        if self._condition is not condition:
            self._condition, self._key_values = condition, self.decoder.key_values(condition)
        return self._key_values
