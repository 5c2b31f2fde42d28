"""Every attention backend against softmax attention written out, masks and gradients included."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn

from attndiff.nn import attention
from attndiff.nn.attention import Attention, additive_mask, is_plain_faster, plain_attention, reference_attention
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.rope import cos_sin, sequence_angles
from attndiff.nn.unet import AttentionUNet2DModel

BATCH, QUERIES, KEYS, HEADS, CHANNELS = 3, 10, 7, 2, 8


def tensors(device="cpu", dtype=torch.float32):
    """Queries ``(B, L, H, D)``, keys and values ``(B, S, H, D)`` that require gradients, and a mask ``(B, S)``."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, length, HEADS, CHANNELS) for length in (QUERIES, KEYS, KEYS)]
    qkv = [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in shapes]
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [0, 1, 0, 1, 0, 0, 0]], dtype=torch.bool, device=device)
    return qkv, mask


def forward_and_gradients(attend, qkv):
    out = attend(*qkv)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), qkv)]


def assert_like_reference(backend, masked, device="cpu", dtype=torch.float32, tolerance=1e-5):
    qkv, mask = tensors(device, dtype)
    bias = additive_mask(mask, dtype) if masked else None
    actual = forward_and_gradients(lambda q, k, v: dispatch_attention_fn(q, k, v, bias, backend=backend), qkv)
    expected = forward_and_gradients(lambda q, k, v: reference_attention(q, k, v, mask if masked else None), qkv)
    for ours, reference in zip(actual, expected, strict=True):
        assert (ours.float() - reference.float()).abs().max() < tolerance


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_cpu_backends(backend, masked):
    assert_like_reference(backend, masked)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_efficient", "_native_cudnn", "xformers"])
def test_cuda_backends(backend, masked):
    if backend == "xformers":
        pytest.importorskip("xformers")
    assert_like_reference(backend, masked, "cuda", torch.float16, tolerance=2e-2)


@pytest.mark.parametrize("length", [1, 7, 8, 77])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_additive_mask_is_exact_and_aligned(length, dtype):
    mask = torch.arange(length)[None] < torch.tensor([[length], [1]])
    bias = additive_mask(mask, dtype)
    assert bias.shape == (2, 1, 1, length) and bias.dtype == dtype
    assert torch.equal(bias[:, 0, 0] == 0, mask) and (bias[:, 0, 0][~mask] == float("-inf")).all()
    assert bias.stride(0) % 8 == 0 and bias.stride(-1) == 1


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("masked", [False, True])
def test_xformers_gets_what_it_demands(xformers, masked):
    assert_like_reference("xformers", masked)
    assert xformers.calls == [(QUERIES, KEYS, masked)]


def randomised(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Fresh networks output zeros, which would hide any fault."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module = make()
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_run_on_xformers(xformers, dtype):
    """Self-, window and cross-attention reach the backend that the user set, and give the same images."""
    levels = [
        {"width": 16, "depth": 1, "attention": "window", "window": 4},
        {"width": 16, "depth": 1, "attention": "global", "cross_attention": True},
    ]
    unet = randomised(lambda: AttentionUNet2DModel(levels=levels, head_dim=8, embedding_dim=16, cross_attention_dim=16))
    encoder = randomised(
        lambda: ConditionEncoder(hidden_size=16, num_layers=1, head_dim=8, vocab_size=20, max_length=7)
    )
    networks = [unet.to(dtype), encoder.to(dtype)]
    ids = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))
    padding = torch.arange(7)[None] < torch.tensor([[7], [3]])
    sample = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)

    @torch.no_grad()
    def run():
        condition = encoder(ids, padding)
        return unet(sample, torch.zeros(2), condition.tokens, condition.mask).sample

    expected = run()
    assert expected.abs().max() > 0.05
    for network in networks:
        network.set_attention_backend("xformers")
    actual = run()
    assert set(xformers.calls) == {(7, 7, True), (16, 16, False), (16, 7, True)}
    assert (actual - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)


@torch.no_grad()
def test_padded_windows_run_on_xformers(xformers):
    """The mask of windows that do not divide the image is one that its kernels take."""
    levels = [{"width": 16, "depth": 2, "attention": "window", "window": 4}]
    unet = randomised(lambda: AttentionUNet2DModel(levels=levels, head_dim=8, embedding_dim=16))
    sample = seeded(2, 3, 10, 14)  # 5 x 7 pixels in windows of 3 x 4
    expected = unet(sample, torch.zeros(2)).sample
    unet.set_attention_backend("xformers")
    assert (unet(sample, torch.zeros(2)).sample - expected).abs().max() < 1e-5
    assert xformers.calls == [(12, 12, True)] * 2


def test_xformers_mask_stays_aligned_under_autocast(xformers):
    attn = randomised(lambda: Attention(16, 8, cross_attention_dim=16))
    attn.processor._attention_backend = AttentionBackendName.XFORMERS
    mask = additive_mask(torch.arange(77)[None] < 5, torch.float32).expand(2, -1, -1, -1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        key, value = attn.key_value(torch.randn(2, 77, 16))
        attn(torch.randn(2, 4, 16), key_value=(key.bfloat16(), value), attention_mask=mask)
    assert xformers.calls == [(4, 77, True)]


def test_where_plain_matmuls_are_taken():
    """Half-precision gradients on CPU take them; whatever the user set wins, on the layer or for all."""
    half = torch.zeros(1, dtype=torch.bfloat16)
    assert is_plain_faster(half, None)
    assert not is_plain_faster(torch.zeros(1), None) and not is_plain_faster(half, "native")
    with torch.no_grad():
        assert not is_plain_faster(half, None)
    assert not is_plain_faster(SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16), None)
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.FLEX)
    assert not is_plain_faster(half, None)


def test_autocast_gradients_take_plain_matmuls(monkeypatch):
    """The precision that decides is the one that attention computes in, not that of the weights."""
    chosen = []
    monkeypatch.setattr(
        attention,
        "is_plain_faster",
        lambda value, requested: chosen.append(is_plain_faster(value, requested)) or chosen[-1],
    )
    attn = randomised(lambda: Attention(16, 8))
    attn(seeded(2, 5, 16))
    with torch.autocast("cpu", torch.bfloat16):
        attn(seeded(2, 5, 16))
    assert chosen == [False, True]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_matmuls_are_the_reference_in_values_and_gradients(masked, dtype):
    query, key, value = (seeded(2, length, 3, 8) for length in (7, 5, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool) if masked else None
    results = []
    for attend, bias, kind in (
        (reference_attention, mask, torch.float32),
        (plain_attention, additive_mask(mask, dtype) if masked else None, dtype),
    ):
        inputs = [x.detach().to(kind).requires_grad_() for x in (query, key, value)]
        out = attend(*inputs, bias)
        out.float().square().sum().backward()
        results.append([out, *(x.grad for x in inputs)])
    tolerance = {"atol": 1e-5} if dtype == torch.float32 else {"atol": 0.15, "rtol": 0.05}
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype and torch.allclose(found.float(), expected, **tolerance)


def test_layer_is_the_reference_of_its_projections():
    """The fused matmul, the head split and the norms are those of separate projections."""
    attn = randomised(lambda: Attention(16, 8))
    x, mask = seeded(2, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    query, key, value = (layer(x).reshape(2, 5, 2, 8) for layer in (attn.to_q, attn.to_k, attn.to_v))
    out = reference_attention(attn.norm_q(query), attn.norm_k(key), value, mask)
    expected = attn.to_out[0](out.reshape(2, 5, 16))
    assert torch.allclose(attn(x, attention_mask=additive_mask(mask, x.dtype)), expected, atol=1e-6)


def test_gates_and_temperatures_are_those_of_the_reference(xformers):
    """In values and gradients: a factor of the logits for every sequence and head, one of each head's result."""
    attn, x, temperature = randomised(lambda: Attention(16, 8, gated=True)), seeded(2, 5, 16), seeded(2, 2).exp()
    x.requires_grad_(), temperature.requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    query, key, value = attn.query_key_value(x)
    logits = torch.einsum("blhd,bshd->bhls", query, key) * 8**-0.5 * temperature[:, :, None, None]
    weights = logits.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    gate = 2 / (1 + (-attn.to_gate(x)).exp())
    reference = torch.einsum("bhls,bshd->blhd", weights, value) * gate[..., None]
    expected = forward_and_gradients(lambda *_: attn.to_out[0](reference.flatten(2)), (x, temperature))
    options = {"attention_mask": additive_mask(mask, x.dtype), "temperature": temperature[:, None, :, None]}
    for backend in ("native", "_native_math", "xformers"):
        attn.processor._attention_backend = AttentionBackendName(backend)
        actual = forward_and_gradients(lambda *_: attn(x, **options), (x, temperature))
        assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in zip(actual, expected, strict=True))


def test_rotation_depends_on_distance_only():
    attn = randomised(lambda: Attention(16, 8))
    x = seeded(1, 6, 16)
    angles = sequence_angles(16, 8, x.device)[None]
    near, far = attn(x, rotation=cos_sin(angles[:, :6])), attn(x, rotation=cos_sin(angles[:, 10:]))
    assert torch.allclose(near, far, atol=1e-5)
    assert not torch.allclose(near, attn(x), atol=1e-3)


def test_adapters_on_one_projection_are_seen():
    """Projections that are no longer plain are called one by one."""
    attn = randomised(lambda: Attention(16, 8))
    x = seeded(1, 4, 16)
    plain = attn(x)
    attn.to_v = torch.nn.Sequential(attn.to_v, torch.nn.Identity())
    assert torch.allclose(attn(x), plain, atol=1e-6)
    attn.to_v = torch.nn.Sequential(attn.to_v, torch.nn.Hardtanh(-0.01, 0.01))
    assert not torch.allclose(attn(x), plain, atol=1e-3)


def test_widths_must_divide_into_heads():
    with pytest.raises(ValueError, match="width 20 is not a multiple of head_dim 8"):
        Attention(20, 8)
