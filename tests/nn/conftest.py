"""Attention backends: what one test sets no other sees, and xformers where it is not installed."""

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from attndiff.nn.attention import reference_attention


@pytest.fixture(autouse=True)
def default_backend():
    """Setting a backend on one model changes diffusers' active backend for all."""
    active = _AttentionBackendRegistry.get_active_backend()[0]
    yield
    _AttentionBackendRegistry.set_active_backend(active)


class XformersStandIn:
    """Checks what xformers' kernels demand of their arguments, and computes what they would."""

    class LowerTriangularMask:
        """What asks for causal attention."""

    def __init__(self):
        self.calls = []

    def memory_efficient_attention(self, query, key, value, attn_bias=None, p=0.0, scale=None):
        batch, queries, heads, channels = query.shape
        keys = key.shape[1]
        assert key.shape == value.shape == (batch, keys, heads, channels)
        assert query.dtype == key.dtype == value.dtype
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert p == 0.0 and scale is None
        mask = None
        if isinstance(attn_bias, self.LowerTriangularMask):
            mask = torch.ones(1, queries, keys, dtype=torch.bool, device=query.device).tril()
        elif attn_bias is not None:
            assert attn_bias.shape == (batch, heads, queries, keys) and attn_bias.dtype == query.dtype
            assert attn_bias.is_floating_point() and set(attn_bias.unique().tolist()) <= {0.0, float("-inf")}
            alignment = 128 // torch.finfo(attn_bias.dtype).bits
            assert all(stride % alignment == 0 for stride in attn_bias.stride()[:-1]) and attn_bias.stride(-1) == 1
            mask = attn_bias[:, 0] == 0
        self.calls.append((queries, keys, mask is not None))
        return reference_attention(query, key, value, mask)


@pytest.fixture
def xformers(monkeypatch):
    stand_in = XformersStandIn()
    monkeypatch.setattr(attention_dispatch, "xops", stand_in)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_XFORMERS_ATTN", True)
    return stand_in
