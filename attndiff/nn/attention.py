"""Self- and cross-attention over diffusers' backend dispatcher, with a plain-softmax reference.

Shapes: B batch, L query tokens, S key tokens, H heads, D channels per head, C = H * D.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from torch import nn

from attndiff.nn.rope import Rotation, rotate
from attndiff.nn.routing import best_sequences, gather_sequences

# Keys and values (B, L, H, D) of new tokens to those of all tokens so far (B, S, H, D).
Remember = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention written out (arXiv 1706.03762, Eq. 1): what every backend is tested against.

    Args:
        query: ``(B, L, H, D)``.
        key: ``(B, S, H, D)``.
        value: ``(B, S, H, D)``.
        mask: Boolean ``(B, S)``, or ``(B, L, S)``, true where a key may be attended to.

    Returns:
        ``(B, L, H, D)``.
    """
    weights = attention_weights(query, key, mask)  # (B, H, L, S)
    return torch.einsum("bhls,bshd->blhd", weights.to(value.dtype), value)


def attention_weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attention probabilities ``(B, H, L, S)`` in float32, of the tensors that ``reference_attention`` takes."""
    logits = torch.einsum("blhd,bshd->bhls", query.float(), key.float()) * query.shape[-1] ** -0.5
    if mask is not None:
        mask = mask if mask.ndim == 3 else mask[:, None]
        logits = logits.masked_fill(~mask[:, None], float("-inf"))
    return logits.softmax(dim=-1)


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean ``(B, S)`` mask as ``(B, 1, 1, S)`` of 0 and -inf, or ``(B, L, S)`` as ``(B, 1, L, S)``.

    The only form that all of diffusers' backends read alike: its xformers backend takes a 4-D boolean mask for
    additive zeros and ones, and its math backend does not broadcast a 2-D one.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))
    return align_rows(bias if mask.ndim == 3 else bias[:, None])[:, None]


def causal_mask(counting: torch.Tensor, length: int) -> torch.Tensor:
    """Which tokens each of the last ones may attend to: those before it that count, and itself.

    A token that does not count attends to itself alone, so that no row of a softmax is empty.

    Args:
        counting: ``(B, S)`` bool, false for padding.
        length: L, how many of the last tokens ask.

    Returns:
        ``(B, L, S)`` bool.
    """
    total = counting.shape[1]
    key, query = (
        torch.arange(total, device=counting.device),
        torch.arange(total - length, total, device=counting.device),
    )
    before, own = key < query[:, None], key == query[:, None]  # (L, S)
    return counting[:, None] & before | own


def align_rows(bias: torch.Tensor) -> torch.Tensor:
    """The same values ``(..., S)`` with every row at a multiple of 8 values, as xformers' kernels demand of a mask."""
    length = bias.shape[-1]
    return F.pad(bias, (0, -length % 8))[..., :length]


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """`reference_attention` by two matmuls in the tensors' own precision.

    Args:
        query: ``(B, L, H, D)``.
        key: ``(B, S, H, D)``.
        value: ``(B, S, H, D)``.
        mask: Additive, ``(B, 1, 1, S)`` or ``(B, 1, L, S)``.
        causal: Without a mask, and with S = L: every token attends to itself and those before it.
    """
    logits = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)  # (B, H, L, S)
    if causal:
        mask = logits.new_full(logits.shape[2:], float("-inf")).triu(1)
    if mask is not None:
        logits = logits + mask
    return (logits.softmax(dim=-1) @ value.transpose(1, 2)).transpose(1, 2)


def is_plain_faster(value: torch.Tensor, requested: AttentionBackendName | str | None) -> bool:
    """Whether a call is computed by `plain_attention`: where nobody has set a backend and torch's own would lose.

    On CPU and in half precision, torch's fused kernel spends a multiple of the time of plain matmuls in the backward
    pass of the short sequences seen here (`attndiff bench --attention` prints both), and torch's unfused one converts
    to float32 and, under autocast, back. In float32 the fused kernel is the faster one.
    """
    on_cpu = value.device.type == "cpu" and value.dtype != torch.float32 and torch.is_grad_enabled()
    return (
        on_cpu
        and requested is None
        and _AttentionBackendRegistry.get_active_backend()[0] is AttentionBackendName.NATIVE
    )


def with_shared(
    attn: "Attention", key: torch.Tensor, value: torch.Tensor, tokens: torch.Tensor, rotation: Rotation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of sequences, each with those of the tokens that all N sequences of an image attend to.

    Args:
        attn: The layer, which projects the tokens once an image.
        key: ``(B * N, L, H, D)``, rotated.
        value: ``(B * N, L, H, D)``.
        tokens: ``(B, M, C)``.
        rotation: Of their keys, 2 x ``(1, M, 1, F)``.

    Returns:
        Keys and values ``(B * N, L + M, H, D)``.
    """
    shared_key, shared_value = attn.key_value(tokens)  # (B, M, H, D)
    times = len(key) // len(tokens)
    pairs = ((key, rotate(shared_key, rotation)), (value, shared_value))
    key, value = (torch.cat([own, of_all.repeat_interleave(times, 0)], dim=1) for own, of_all in pairs)
    return key, value


class AttnDiffAttnProcessor:
    """Computes one attention layer; ``set_attention_backend`` and the xformers switch act on it."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "Attention",
        hidden_states: torch.Tensor,  # (B, L, C)
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,  # 2 x (B, S, H, D)
        attention_mask: torch.Tensor | None = None,  # (B, 1, 1 | L, S) additive
        rotation: Rotation | None = None,  # 2 x (N, L, 1, F), where N divides B
        causal: bool = False,  # without a mask: of self-attention, to itself and what is before it
        remember: Remember | None = None,
        shared: tuple[torch.Tensor, Rotation] | None = None,  # (B / N, M, C) and 2 x (1, M, 1, F)
        temperature: torch.Tensor | None = None,  # (B, 1, H, 1), a factor of the logits
        routing: tuple[int, int] | None = None,  # N, and to how many of these sequences each attends
    ) -> torch.Tensor:
        if attn.is_cross_attention:
            query = attn.query(hidden_states)
            key, value = key_value
        else:
            query, key, value = attn.query_key_value(hidden_states)
            places = None if routing is None else best_sequences(query, key, attention_mask, *routing)
            if rotation is not None:
                query, key = rotate(query, rotation), rotate(key, rotation)
            if remember is not None:
                key, value = remember(key, value)
            if places is not None:
                key, value = (gather_sequences(x, places, routing[1], dim=1) for x in (key, value))
                if attention_mask is not None:
                    attention_mask = align_rows(gather_sequences(attention_mask, places, routing[1], dim=3))
            if shared is not None:
                key, value = with_shared(attn, key, value, *shared)
        if temperature is not None:  # on the queries, so that every backend computes it
            query = query * temperature.to(query.dtype)
        if attention_mask is not None and attention_mask.dtype != query.dtype:
            attention_mask = align_rows(attention_mask.to(query.dtype))
        if is_plain_faster(value, self._attention_backend):
            out = plain_attention(query, key, value, attention_mask, causal)
        else:
            out = dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=attention_mask,
                is_causal=causal,
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
        if attn.to_gate is not None:
            out = out * (2 * attn.to_gate(hidden_states).sigmoid()).unsqueeze(-1).to(out.dtype)
        out = attn.to_out[0](out.flatten(2))  # (B, L, C)
        return attn.to_out[1](out)


class Attention(nn.Module, AttentionModuleMixin):
    """Multi-head attention with normalised queries and keys (arXiv 2302.05442, section 2.2).

    The four projections are separate ``Linear`` modules because LoRA, Muon and diffusers' mixins look for
    them; joining them into one matmul saves no time on the CPU.

    Args:
        dim: Channels of the queries and of the result; a multiple of ``head_dim``.
        head_dim: Channels per head.
        cross_attention_dim: Channels of the condition tokens, or None for self-attention.
        dropout: Probability of zeroing a channel of the result in training.
        gated: Multiply what each head gives a token by a factor from 0 to 2 that the token sets; 1 in a fresh layer.
    """

    _default_processor_cls = AttnDiffAttnProcessor
    _available_processors = [AttnDiffAttnProcessor]

    def __init__(
        self,
        dim: int,
        head_dim: int,
        cross_attention_dim: int | None = None,
        dropout: float = 0.0,
        gated: bool = False,
    ):
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"width {dim} is not a multiple of head_dim {head_dim}; choose widths that are.")
        self.heads, self.head_dim = dim // head_dim, head_dim
        self.inner_dim = dim
        self.use_bias = False
        self.is_cross_attention = cross_attention_dim is not None
        source = cross_attention_dim or dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(source, dim, bias=False)
        self.to_v = nn.Linear(source, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False), nn.Dropout(dropout)])
        nn.init.zeros_(self.to_out[0].weight)
        self.to_gate = nn.Linear(dim, self.heads) if gated else None
        if gated:
            nn.init.zeros_(self.to_gate.weight)
            nn.init.zeros_(self.to_gate.bias)
        self.norm_q = nn.LayerNorm(head_dim, bias=False)
        self.norm_k = nn.LayerNorm(head_dim, bias=False)
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, **kwargs)

    def query(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalised queries ``(B, L, H, D)`` of tokens ``(B, L, C)``."""
        return self.norm_q(self._split(self.to_q(hidden_states)))

    def key_value(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised keys and values, each ``(B, S, H, D)``, of condition tokens ``(B, S, C_context)``.

        Of self-attention they are those of tokens ``(B, S, C)`` that have no queries.
        """
        if self.is_cross_attention and getattr(self, "fused_projections", False):
            key, value = self.to_kv(context).chunk(2, dim=-1)
        else:
            key, value = self.to_k(context), self.to_v(context)
        return self.norm_k(self._split(key)), self._split(value)

    def query_key_value(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of self-attention, each ``(B, L, H, D)``."""
        if getattr(self, "fused_projections", False):
            query, key, value = self.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states)
        return self.norm_q(self._split(query)), self.norm_k(self._split(key)), self._split(value)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim))
