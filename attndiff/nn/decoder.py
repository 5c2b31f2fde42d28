"""The Transformer decoder: tokens that attend to those before them and to a condition (arXiv 1706.03762, section 3.1).

Shapes: B batch, L tokens that are given, S tokens so far, those in the cache included, M condition tokens, C channels,
H heads, D channels per head, F rotated pairs, V tokens of the vocabulary.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn
from transformers import Cache

from attndiff.nn.attention import Attention, Remember, additive_mask, causal_mask
from attndiff.nn.blocks import FeedForward
from attndiff.nn.rope import Rotation, angles_at, cos_sin

KeyValue = tuple[torch.Tensor, torch.Tensor]


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention, cross-attention to the condition and gated feed-forward.

    Args:
        dim: Channels.
        head_dim: Channels per attention head.
        cross_attention_dim: Channels of the condition tokens; None leaves cross-attention out.
        dropout: Dropout probability of what attention and feed-forward add.
    """

    def __init__(self, dim: int, head_dim: int, cross_attention_dim: int | None = None, dropout: float = 0.0):
        super().__init__()
        self.norm_attn = nn.LayerNorm(dim, bias=False)
        self.attn = Attention(dim, head_dim, dropout=dropout)
        self.norm_cross = nn.LayerNorm(dim, bias=False) if cross_attention_dim else None
        self.cross_attn = Attention(dim, head_dim, cross_attention_dim, dropout) if cross_attention_dim else None
        self.norm_ff = nn.LayerNorm(dim, bias=False)
        self.ff = FeedForward(dim, dropout)

    def forward(
        self,
        x: torch.Tensor,  # (B, L, C)
        rotation: Rotation,  # 2 x (N, L, 1, F), where N divides B
        mask: torch.Tensor | None = None,  # (B, 1, L, S) additive; None: causal
        remember: Remember | None = None,
        key_value: KeyValue | None = None,  # 2 x (B, M, H, D)
        condition_mask: torch.Tensor | None = None,  # (B, 1, 1, M) additive
    ) -> torch.Tensor:
        causal = mask is None and x.shape[1] > 1
        x = x + self.attn(self.norm_attn(x), rotation=rotation, attention_mask=mask, causal=causal, remember=remember)
        if self.cross_attn is not None and key_value is not None:
            x = x + self.cross_attn(self.norm_cross(x), key_value=key_value, attention_mask=condition_mask)
        return x + self.ff(self.norm_ff(x))


class TransformerDecoder(nn.Module):
    """A stack of `DecoderBlock`, with what they attend to beside the tokens that are given.

    >>> decoder = TransformerDecoder(64, num_layers=2, head_dim=16, cross_attention_dim=32)
    >>> x, condition = torch.randn(3, 10, 64), torch.randn(3, 7, 32)
    >>> decoder(x, key_values=decoder.key_values(condition)).shape
    torch.Size([3, 10, 64])

    Args:
        dim: C, channels.
        num_layers: Blocks.
        head_dim: D, channels per attention head; a multiple of 8.
        cross_attention_dim: Channels of the condition tokens; None for a decoder without a condition.
        dropout: Dropout probability inside blocks.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        head_dim: int = 32,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.head_dim = head_dim
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, head_dim, cross_attention_dim, dropout) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim, bias=False)
        self.gradient_checkpointing = False

    def key_values(self, condition: torch.Tensor) -> list[KeyValue]:
        """Keys and values, 2 x ``(B, M, H, D)`` of every block, of condition tokens ``(B, M, cross_attention_dim)``.

        They do not depend on the other tokens, so that a condition needs them once.
        """
        return [block.cross_attn.key_value(condition) for block in self.blocks]

    def forward(
        self,
        x: torch.Tensor,
        counting: torch.Tensor | None = None,
        key_values: list[KeyValue] | None = None,
        condition_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        angles: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode tokens.

        Args:
            x: ``(B, L, C)``; with a cache, the tokens after those that are in it.
            counting: ``(B, S)`` bool, false for padding, which no other token attends to; of all tokens so far. All
                count by default.
            key_values: From `key_values`; None attends to no condition.
            condition_mask: ``(B, M)`` bool, true for condition tokens that count; all do by default.
            cache: Keys and values of the tokens so far, to which those of ``x`` are added.
            angles: Rotary angles ``(N, L, F)`` of ``x``, N dividing B; by default those of its places in the sequence,
                padding left out.

        Returns:
            ``(B, L, C)``, normalised.

        Raises:
            ValueError: If the batch is not that of the cache, or ``counting`` is not of all tokens so far.
        """
        past = cache.get_seq_length() if cache is not None else 0
        self._check(x, counting, cache, past)
        mask = None
        if counting is not None or (past and x.shape[1] > 1):  # one token after all others may look at all of them
            all_count = torch.ones(len(x), past + x.shape[1], dtype=torch.bool, device=x.device)
            mask = additive_mask(causal_mask(all_count if counting is None else counting, x.shape[1]), x.dtype)
        if angles is None:
            angles = angles_at(self._places(x, counting, past), self.head_dim)
        told = None if condition_mask is None else additive_mask(condition_mask, x.dtype)
        rotation = cos_sin(angles)
        for i, block in enumerate(self.blocks):
            remember = None if cache is None else partial(_remember, cache, i)
            x = self._call(block, x, rotation, mask, remember, key_values[i] if key_values else None, told)
        return self.norm_out(x)

    @staticmethod
    def _check(x: torch.Tensor, counting: torch.Tensor | None, cache: Cache | None, past: int) -> None:
        if past and len(cache.layers[0].keys) != len(x):
            raise ValueError(f"the cache is of {len(cache.layers[0].keys)} rows, and {len(x)} are given: start anew.")
        if counting is not None and counting.shape != (len(x), past + x.shape[1]):
            raise ValueError(
                f"the mask is {tuple(counting.shape)}, and with those in the cache there are "
                f"{len(x)} rows of {past + x.shape[1]} tokens."
            )

    @staticmethod
    def _places(x: torch.Tensor, counting: torch.Tensor | None, past: int) -> torch.Tensor:
        """Places ``(N, L)`` of the tokens in their sequences; padding has that of the token before it."""
        if counting is None:
            return torch.arange(past, past + x.shape[1], device=x.device)[None]
        return (counting.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :]

    def _call(self, block: DecoderBlock, *args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)


def _remember(cache: Cache, layer: int, key: torch.Tensor, value: torch.Tensor) -> KeyValue:
    """Add keys and values ``(B, L, H, D)`` to a layer's; all of them ``(B, S, H, D)``."""
    key, value = cache.update(key.transpose(1, 2), value.transpose(1, 2), layer)
    return key.transpose(1, 2), value.transpose(1, 2)


class TiedEmbedding(nn.Embedding):
    """Embeds tokens, and reads them from channels (arXiv 1608.05859); offloading hooks wrap nothing but a call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(B, L, C)`` of tokens ``(B, L)``, or logits ``(B, L, V)`` of channels ``(B, L, C)``."""
        return F.linear(x, self.weight.to(x.dtype)) if x.is_floating_point() else super().forward(x)


@dataclass
class TextDecoderOutput(BaseOutput):
    """``logits (B, L, V)``: of the token after each."""

    logits: torch.Tensor


class TextDecoderModel(ModelMixin, ConfigMixin, AttentionMixin):
    """A text, token after token, that may attend to a condition.

    >>> model = TextDecoderModel(vocab_size=100, hidden_size=64, head_dim=16, cross_attention_dim=32)
    >>> ids = torch.tensor([[1, 5, 9]])
    >>> model(ids, encoder_hidden_states=torch.randn(1, 16, 32)).logits.shape
    torch.Size([1, 3, 100])

    Args:
        vocab_size: V.
        hidden_size: Channels.
        num_layers: Blocks.
        head_dim: Channels per attention head; a multiple of 8.
        cross_attention_dim: Channels of the condition tokens, or None without a condition.
        max_length: Tokens of a text at most.
        dropout: Dropout probability of embeddings and inside blocks.
        token_dropout: Probability of a whole token to be left out of what later ones see (arXiv 1511.06349, section
            3.1): without what was said before, it is the condition that has to be looked at.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderBlock"]
    _repeated_blocks = ["DecoderBlock"]
    _skip_layerwise_casting_patterns = ["norm", "embedding"]

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 192,
        num_layers: int = 3,
        head_dim: int = 32,
        cross_attention_dim: int | None = None,
        max_length: int = 48,
        dropout: float = 0.0,
        token_dropout: float = 0.0,
    ):
        super().__init__()
        self.embedding = TiedEmbedding(vocab_size, hidden_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.drop_embedding, self.drop_tokens = nn.Dropout(dropout), nn.Dropout1d(token_dropout)
        self.decoder = TransformerDecoder(hidden_size, num_layers, head_dim, cross_attention_dim, dropout)

    def key_values(self, encoder_hidden_states: torch.Tensor) -> list[KeyValue]:
        """As of `TransformerDecoder.key_values`."""
        return self.decoder.key_values(encoder_hidden_states.to(self.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        key_values: list[KeyValue] | None = None,
        past_key_values: Cache | None = None,
        return_dict: bool = True,
    ) -> TextDecoderOutput | tuple[torch.Tensor]:
        """Logits of every token's successor.

        Args:
            input_ids: ``(B, L)`` int64; with a cache, the tokens after those that are in it.
            attention_mask: ``(B, S)``, nonzero for tokens that count, of all tokens so far.
            encoder_hidden_states: Condition tokens ``(B, M, cross_attention_dim)``.
            encoder_attention_mask: ``(B, M)``, nonzero for condition tokens that count.
            key_values: What `key_values` makes of the condition tokens, instead of them.
            past_key_values: Cache of the tokens so far; grows by those that are given.
            return_dict: Return `TextDecoderOutput` rather than a tuple.

        Raises:
            ValueError: If a condition is given that the model was not made for or the other way round, or the cache is
                of another batch.
        """
        if key_values is None and encoder_hidden_states is not None and self.config.cross_attention_dim is not None:
            key_values = self.key_values(encoder_hidden_states)
        given = key_values is not None or encoder_hidden_states is not None
        if given != (self.config.cross_attention_dim is not None):
            takes = "no condition: leave it out" if given else "a condition: give encoder_hidden_states"
            raise ValueError(f"this decoder takes {takes}.")
        counting = None if attention_mask is None else attention_mask.bool()
        told = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        x = self.drop_tokens(self.drop_embedding(self.embedding(input_ids)))  # (B, L, C)
        x = self.decoder(x, counting, key_values, told, past_key_values)
        logits = self.embedding(x)
        return TextDecoderOutput(logits) if return_dict else (logits,)
