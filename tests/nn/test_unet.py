"""The network: every kind of level, any size and channel count, and what diffusers' users expect of a model."""

import copy

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

from attndiff.nn.attention import Attention
from attndiff.nn.blocks import ConvBlock, TransformerBlock
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.unet import AttentionUNet2DModel

BATCH, TOKENS, CONTEXT = 2, 5, 16
CONVOLUTIONS = {"width": 16, "depth": 1}
GLOBAL = {"width": 16, "depth": 2, "attention": "global", "cross_attention": True}
WINDOW = {"width": 16, "depth": 2, "attention": "window", "window": 4, "cross_attention": True}


def make_unet(levels=(CONVOLUTIONS, GLOBAL), **config) -> AttentionUNet2DModel:
    """A small network with random parameters everywhere: a fresh one outputs zeros, which would hide any fault."""
    config = {"cross_attention_dim": CONTEXT, "pooled_dim": CONTEXT, **config}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        unet = AttentionUNet2DModel(levels=list(levels), head_dim=8, embedding_dim=16, **config)
        for parameter in unet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return unet.eval()


def inputs(channels=3, height=16, width=16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(BATCH, channels, height, width, generator=generator),
        "noise_level": torch.tensor([-0.5, 0.7]),
        "encoder_hidden_states": torch.randn(BATCH, TOKENS, CONTEXT, generator=generator),
        "encoder_attention_mask": torch.arange(TOKENS)[None] < torch.tensor([[5], [2]]),
        "pooled_projections": torch.randn(BATCH, CONTEXT, generator=generator),
    }


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "gflop"), [("tiny", 1e5, 0.02), ("xs", 9.2e6, 1.0), ("s", 30e6, 2.5), ("b", 125e6, 10)]
)
def test_presets_are_as_large_as_they_say(name, parameters, gflop):
    with torch.device("meta"), torch.no_grad():
        unet, encoder = (
            AttentionUNet2DModel(**PRESETS[name]["unet"]),
            ConditionEncoder(vocab_size=2048, **PRESETS[name]["encoder"]),
        )
        dim = encoder.config.hidden_size
        cache = unet(None, encoder_hidden_states=torch.empty(1, 24, dim), return_condition_cache=True)
        with FlopCounterMode(display=False) as counter:
            unet(
                torch.empty(1, 3, 32, 32), torch.empty(1), condition_cache=cache, pooled_projections=torch.empty(1, dim)
            )
    assert unet.config.cross_attention_dim == unet.config.pooled_dim == dim
    assert parameters / 4 < count(unet) <= parameters and count(encoder) < count(unet) * 2
    assert gflop / 4 < counter.get_total_flops() / 1e9 <= gflop


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (32, 12)])
def test_channels_and_sizes(channels, height, width):
    unet = make_unet(in_channels=channels + 1, out_channels=channels)
    out = unet(**inputs(channels + 1, height, width)).sample
    assert out.shape == (BATCH, channels, height, width) and out.isfinite().all() and out.std() > 0.05


@pytest.mark.parametrize(
    "levels",
    [
        (CONVOLUTIONS, {"width": 16, "depth": 1}),
        (CONVOLUTIONS, WINDOW),
        (CONVOLUTIONS, GLOBAL),
        (CONVOLUTIONS, {"width": 16, "depth": 1, "cross_attention": True}),
        ({"width": 8, "depth": 0}, WINDOW, {"width": 24, "depth": 1, "attention": "global"}),
    ],
    ids=["none", "window", "global", "cross only", "three levels"],
)
def test_kinds_of_level(levels):
    unet, batch = make_unet(levels), inputs()
    out = unet(**batch).sample
    assert out.shape == batch["sample"].shape and out.std() > 0.05
    other = unet(**{**batch, "encoder_hidden_states": batch["encoder_hidden_states"].flip(-1)}).sample
    attends = any(level.get("cross_attention") for level in levels)
    assert torch.equal(out, other) != attends
    assert not torch.equal(out, unet(**{**batch, "noise_level": torch.zeros(BATCH)}).sample)
    assert not torch.equal(out, unet(**{**batch, "pooled_projections": None}).sample)
    kinds = [ConvBlock if not (x.get("attention") or x.get("cross_attention")) else TransformerBlock for x in levels]
    assert all(
        isinstance(block, kind) for kind, blocks in zip(kinds, unet.down_blocks, strict=False) for block in blocks
    )


def test_unconditional_network_ignores_cross_attention():
    unet = make_unet(cross_attention_dim=None, pooled_dim=None)
    batch = inputs()
    assert unet(batch["sample"], batch["noise_level"]).sample.std() > 0.05
    assert not any(isinstance(m, Attention) and m.is_cross_attention for m in unet.modules())


def test_masked_tokens_do_not_count():
    unet, batch = make_unet(), inputs()
    changed = batch["encoder_hidden_states"].clone()
    changed[1, 2:] = 100.0
    assert torch.equal(unet(**batch).sample, unet(**{**batch, "encoder_hidden_states": changed}).sample)


def test_rows_of_a_batch_are_independent():
    unet, batch = make_unet(), inputs()
    together = unet(**batch).sample
    for row in range(BATCH):
        alone = unet(**{name: tensor[row : row + 1] for name, tensor in batch.items()}).sample
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_one_noise_level_serves_the_batch():
    unet, batch = make_unet(), inputs()
    each = unet(**{**batch, "noise_level": torch.full((BATCH,), 0.3)}).sample
    assert torch.equal(each, unet(**{**batch, "noise_level": torch.tensor(0.3)}).sample)


def test_other_sizes_must_divide():
    unet = make_unet()
    assert unet.size_multiple == 4
    with pytest.raises(ValueError, match="height 18 and width 16 must be multiples of 4"):
        unet(**inputs(height=18))


def test_fresh_network_ignores_its_input():
    """The head's weights begin at zero, so that training begins with the mean."""
    unet = AttentionUNet2DModel(**PRESETS["tiny"]["unet"])
    first, second = torch.randn(2, 1, 3, 16, 16)
    assert torch.equal(unet(first, torch.zeros(1)).sample, unet(second, torch.ones(1)).sample)


def test_forward_changes_no_parameter():
    unet, batch = make_unet().train(), inputs()
    before = copy.deepcopy(unet.state_dict())
    first = unet(**batch).sample
    first.square().mean().backward()
    second = unet(**batch).sample
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], tensor) for name, tensor in unet.state_dict().items())


@pytest.mark.parametrize(
    ("level", "size"), [(GLOBAL, 16), (WINDOW, 16), (WINDOW, 20)], ids=["global", "window", "padded window"]
)
def test_gradient_checkpointing_gives_the_same_gradients(level, size):
    batch = inputs(height=size, width=size)

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        unet = make_unet((CONVOLUTIONS, level)).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        assert unet.is_gradient_checkpointing == checkpointing
        unet(**batch).sample.square().mean().backward()
        return [parameter.grad for parameter in unet.parameters()]

    plain, checkpointed = gradients(False), gradients(True)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


SHALLOW = ({**WINDOW, "depth": 1}, {**GLOBAL, "depth": 1})  # tracing takes seconds a block


@pytest.mark.parametrize(("height", "width"), [(16, 16), (40, 56)], ids=["whole windows", "padded windows"])
def test_compiles_without_graph_breaks_in_training(height, width):
    torch._dynamo.reset()
    unet, batch = make_unet((CONVOLUTIONS, *SHALLOW)), inputs(height=height, width=width)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    out = compiled(**batch).sample
    assert torch.allclose(out, unet(**batch).sample, atol=1e-6)
    out.square().mean().backward()
    assert unet.head.weight.grad.abs().max() > 0


@torch.no_grad()
def test_compiles_without_graph_breaks_in_sampling():
    torch._dynamo.reset()
    unet, batch = make_unet((CONVOLUTIONS, SHALLOW[1])), inputs()
    tokens = batch.pop("encoder_hidden_states")
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    cache = compiled(None, encoder_hidden_states=tokens, return_condition_cache=True)
    expected = unet(**batch, encoder_hidden_states=tokens).sample
    assert torch.allclose(compiled(**batch, condition_cache=cache).sample, expected, atol=1e-6)


@torch.no_grad()
def test_condition_cache_gives_the_same_pixels_from_one_computation(monkeypatch):
    unet, batch = make_unet((WINDOW, GLOBAL)), inputs()
    tokens = batch.pop("encoder_hidden_states")
    layers = sum(isinstance(m, Attention) and m.is_cross_attention for m in unet.modules())
    noise_levels = torch.linspace(1, -1, 6)
    calls = []
    key_value = Attention.key_value
    monkeypatch.setattr(Attention, "key_value", lambda self, context: calls.append(self) or key_value(self, context))

    cache = unet(None, encoder_hidden_states=tokens, return_condition_cache=True)
    cached = [unet(**{**batch, "noise_level": level}, condition_cache=cache).sample for level in noise_levels]
    assert len(calls) == len(set(calls)) == len(cache) == layers == 6
    for level, pixels in zip(noise_levels, cached, strict=True):
        fresh = unet(**{**batch, "noise_level": level}, encoder_hidden_states=tokens).sample
        assert torch.equal(pixels, fresh)
    assert len(calls) == layers * (1 + len(noise_levels))


def test_a_cache_of_another_network_is_refused():
    unet, batch = make_unet((WINDOW, GLOBAL)), inputs()
    cache = unet(None, encoder_hidden_states=batch.pop("encoder_hidden_states"), return_condition_cache=True)
    with pytest.raises(ValueError, match="condition_cache has 5 entries for 6 blocks with cross-attention"):
        unet(**batch, condition_cache=cache[:-1])


def test_stages_are_what_is_run():
    """Blocks by their names, in the order of execution, each at the size that its level says."""
    unet, batch, calls = make_unet((CONVOLUTIONS, WINDOW, GLOBAL)), inputs(height=16, width=24), {}
    for name, module in unet.named_modules():
        if isinstance(module, ConvBlock | TransformerBlock):
            module.register_forward_hook(lambda _, args, out, name=name: calls.update({name: out.shape[1:3]}))
    unet(**batch)
    blocks = [(name, stage.level) for stage in unet.stages() for name, _ in stage.named_blocks()]
    assert list(calls) == list(unet.scale_sizes) == [name for name, _ in blocks]
    assert calls == {name: unet.grid_size(level, 16, 24) for name, level in blocks}
    assert unet.cross_attending() == {name: level for name, level in blocks if level}


def test_more_tokens_than_made_for_attend_in_windows_with_a_warning(monkeypatch):
    warnings = []
    logger = diffusers_logging.get_logger("attndiff.nn.kinds.global_attention")
    monkeypatch.setattr(logger, "warning_once", warnings.append, raising=False)
    few = {**GLOBAL, "max_tokens": 16, "window": 4}
    unet = make_unet((CONVOLUTIONS, few))
    unet(**inputs(height=16, width=16))
    assert not warnings  # 4 x 4 tokens
    large = inputs(height=32, width=32)
    out = unet(**large).sample
    (message,) = warnings
    assert "made for 16 tokens of global attention got 64 and attends in windows of 4 x 4;" in message
    windowed = make_unet((CONVOLUTIONS, {**few, "attention": "window"}))
    assert torch.equal(out, windowed(**large).sample)
    assert not torch.allclose(out, make_unet((CONVOLUTIONS, GLOBAL))(**large).sample, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("size", "windows"), [(128, {64, 256}), (136, {36, 49}), (152, {49, 64}), (184, {64})])
def test_awkward_sizes_attend_in_windows_nearly_as_large_as_any(size, windows):
    """What layers really get, on levels of a fourth and an eighth of the image made for 256 tokens, as those of xs."""
    levels = [CONVOLUTIONS, *[{**GLOBAL, "max_tokens": 256}] * 2]
    unet, pixels = make_unet(levels, cross_attention_dim=None, pooled_dim=None), []
    for module in unet.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda _, args: pixels.append(args[0].shape[1]))
    out = unet(torch.randn(1, 3, size, size), torch.zeros(1)).sample
    assert out.shape == (1, 3, size, size) and len(pixels) == 6
    assert set(pixels) == windows


def test_the_warning_says_how_large_windows_are(monkeypatch):
    warnings = []
    logger = diffusers_logging.get_logger("attndiff.nn.kinds.global_attention")
    monkeypatch.setattr(logger, "warning_once", warnings.append, raising=False)
    make_unet((CONVOLUTIONS, {**GLOBAL, "max_tokens": 256}))(**inputs(height=136, width=152))
    assert "got 1292 and attends in windows of 7 x 8;" in warnings[0] and len(warnings) == 1


def test_dilated_windows_join_all_pixels():
    """Two blocks of window attention carry every pixel to every other; one does not."""
    reach = {}
    for depth in (1, 2):
        unet = make_unet(
            ({**WINDOW, "depth": depth, "cross_attention": False},), patch_size=1, cross_attention_dim=None
        )
        unet.stem.weight.data[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # centre tap only
        unet.head.weight.data[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        sample = inputs()["sample"].requires_grad_()
        unet(sample, torch.zeros(BATCH)).sample[0, :, 0, 0].sum().backward()
        reach[depth] = (sample.grad[0].abs().sum(0) > 0).float().mean().item()
    assert reach == {1: 16 / 256, 2: 1.0}


def test_seamless_network_wraps_around():
    batch = {name: inputs()[name] for name in ("sample", "noise_level")}
    levels = (CONVOLUTIONS, CONVOLUTIONS)
    for seamless in (True, False):
        unet = make_unet(levels, seamless=seamless, cross_attention_dim=None)
        rolled = unet(batch["sample"].roll((4, 8), (2, 3)), batch["noise_level"]).sample
        same = torch.allclose(rolled, unet(**batch).sample.roll((4, 8), (2, 3)), atol=1e-5)
        assert same == seamless


def test_saving_and_loading_is_exact(tmp_path):
    unet, batch = make_unet((CONVOLUTIONS, WINDOW)), inputs()
    unet.save_pretrained(tmp_path)
    loaded = AttentionUNet2DModel.from_pretrained(tmp_path)
    assert all(loaded.config[name] == value for name, value in unet.config.items() if not name.startswith("_"))
    assert torch.equal(loaded(**batch).sample, unet(**batch).sample)
    assert [path.suffix for path in tmp_path.iterdir() if path.name != "config.json"] == [".safetensors"]
    half = AttentionUNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    out = half(**{**batch, "sample": batch["sample"].bfloat16()}).sample
    assert out.dtype == torch.bfloat16 and (out - unet(**batch).sample).abs().max() < 0.1


def test_adapters(tmp_path):
    unet, batch = make_unet(), inputs()
    before = unet(**batch).sample
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    adapted = unet(**batch).sample
    assert not torch.allclose(adapted, before, atol=1e-3)
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert trained and all("lora" in name for name in trained)
    unet.save_lora_adapter(tmp_path)
    unet.disable_adapters()
    assert torch.allclose(unet(**batch).sample, before, atol=1e-6)
    other = make_unet()
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.allclose(other(**batch).sample, adapted, atol=1e-6)


@torch.no_grad()
def test_fused_projections_give_the_same_pixels():
    unet, batch = make_unet(), inputs()
    before = unet(**batch).sample
    unet.fuse_qkv_projections()
    assert any(hasattr(module, "to_kv") for module in unet.modules())
    assert torch.allclose(unet(**batch).sample, before, atol=1e-6)
    unet.unfuse_qkv_projections()
    assert torch.equal(unet(**batch).sample, before)


def test_outputs_as_tuple():
    unet, batch = make_unet(), inputs()
    assert torch.equal(unet(**batch, return_dict=False)[0], unet(**batch).sample)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([{"width": 16, "attention": "globl"}], "attention must be 'none', 'window', .* or 'global', not 'globl'"),
        (
            [{"width": 16, "cross_attention": True, "gated": True}],
            "gated, noise_temperature and .* are of self-attention",
        ),
        ([{**GLOBAL, "attention_side": "up"}, GLOBAL], "attention_side must be .*, not 'up'"),
        ([GLOBAL, {**GLOBAL, "attention_side": "encoder"}], "the last one is neither encoder nor decoder"),
        ([{"width": 0}], "width 0 and depth 2 must be positive"),
        ([{"width": 20, "attention": "global"}], "width 20 is not a multiple of head_dim 8"),
    ],
)
def test_impossible_levels_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        make_unet(levels)
