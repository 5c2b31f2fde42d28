"""What a level may be set to beside its width: every setting trains, saves, compiles, and shows where words act."""

import pytest
import torch
from diffusers import DiffusionPipeline
from factories import RGB, quiet, randomised, tiny_scheduler
from without_attndiff import sample

import attndiff
from attndiff.lens.record import AttentionRecorder
from attndiff.nn.attention import Attention
from attndiff.nn.blocks import ConvBlock, TransformerBlock
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline

BATCH, TOKENS, CONTEXT = 2, 5, 16
LEVEL = {"width": 16, "depth": 2, "attention": "window", "window": 5, "cross_attention": True}
SETTINGS = {
    "window_coarse": {"attention": "window_coarse"},
    "routed": {"attention": "routed"},
    "gated": {"gated": True},
    "noise_temperature": {"noise_temperature": True},
    "encoder": {"attention_side": "encoder"},
    "decoder": {"attention_side": "decoder"},
    "all": {"attention": "window_coarse", "gated": True, "noise_temperature": True, "attention_side": "decoder"},
}


def make_unet(settings: dict, context: int | None = CONTEXT, depth: int = 2) -> AttentionUNet2DModel:
    """Two levels, the first with the settings; random parameters everywhere."""
    levels = [{**LEVEL, "depth": depth, **settings}, {"width": 16, "depth": 1}]
    return randomised(
        lambda: AttentionUNet2DModel(
            sample_size=28, levels=levels, head_dim=8, embedding_dim=16, cross_attention_dim=context
        ),
        scale=0.1,
    )


def inputs(height: int = 28, width: int = 44) -> dict[str, torch.Tensor]:
    """For 14 x 22 pixels, which windows of 5 do not divide."""
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(BATCH, 3, height, width, generator=generator),
        "noise_level": torch.tensor([-0.5, 0.7]),
        "encoder_hidden_states": torch.randn(BATCH, TOKENS, CONTEXT, generator=generator),
        "encoder_attention_mask": torch.arange(TOKENS)[None] < torch.tensor([[5], [2]]),
    }


@pytest.fixture(params=SETTINGS)
def settings(request) -> dict:
    return SETTINGS[request.param]


@torch.no_grad()
def test_every_setting_changes_the_pixels(settings):
    batch = inputs()
    assert not torch.allclose(make_unet(settings)(**batch).sample, make_unet({})(**batch).sample, atol=1e-3)


def test_fresh_networks_train(settings):
    """After a few steps every parameter has a gradient, those behind weights that begin at zero included."""
    torch.manual_seed(0)
    levels = [{**LEVEL, **settings}, {"width": 16, "depth": 1}]
    unet = AttentionUNet2DModel(levels=levels, head_dim=8, embedding_dim=16, cross_attention_dim=CONTEXT).train()
    batch, target = inputs(), torch.randn(BATCH, 3, 28, 44)
    optimizer, losses = torch.optim.AdamW(unet.parameters(), lr=3e-3), []
    for _ in range(5):
        loss = (unet(**batch).sample - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        grads = {name: p.grad for name, p in unet.named_parameters()}
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert not [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()]


@pytest.mark.parametrize("cross_attention", [True, False])
@pytest.mark.parametrize(("side", "attending"), [("encoder", "down"), ("decoder", "up"), ("both", "down up")])
def test_self_attention_stands_on_its_side(side, attending, cross_attention):
    """Blocks of the other side are those of a level without it."""
    unet = make_unet({"attention_side": side, "cross_attention": cross_attention, "gated": True})
    other = make_unet({"attention": "none", "cross_attention": cross_attention})
    for name in ("down", "up"):
        blocks = [b for stage in unet.get_submodule(f"{name}_blocks") for b in stage]
        without = [b for stage in other.get_submodule(f"{name}_blocks") for b in stage]
        if name in attending:
            assert all(block.attn.to_gate is not None for block in blocks)
            assert all((block.cross_attn is not None) == cross_attention for block in blocks)
        else:
            assert list(map(repr, blocks)) == list(map(repr, without))
            assert {type(block) for block in blocks} == {TransformerBlock if cross_attention else ConvBlock}
    assert len(unet.cross_attending()) == (4 if cross_attention else 0)
    assert unet(**inputs()).sample.std() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("setting", ["gated", "noise_temperature"])
def test_gates_and_temperatures_are_neutral_in_a_fresh_network(setting):
    """Not a bit of what the other weights give changes."""
    plain, own = make_unet({}), make_unet({setting: True})
    fresh = AttentionUNet2DModel(**own.config)
    weights = {name: value for name, value in plain.state_dict().items() if "modulation" not in name}
    own.load_state_dict({**fresh.state_dict(), **weights})
    plain.modulation.load_state_dict({name: torch.zeros_like(p) for name, p in plain.modulation.state_dict().items()})
    assert torch.equal(own(**inputs()).sample, plain(**inputs()).sample)


@torch.no_grad()
def test_temperatures_follow_the_noise_level_and_not_the_pixels():
    unet, batch = make_unet({"noise_temperature": True}), inputs()
    seen = []
    unet.down_blocks[0][0].attn.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["temperature"]), with_kwargs=True
    )
    unet(**batch)
    unet(**{**batch, "sample": batch["sample"].flip(0)})
    assert torch.equal(*seen) and seen[0].shape == (BATCH * 15, 1, 2, 1) and (seen[0] > 0).all()
    assert len(seen[0].unique()) == 4  # two heads at two noise levels


def test_gradient_checkpointing_gives_the_same_gradients(settings):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        unet = make_unet(settings).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet(**inputs()).sample.square().mean().backward()
        return [parameter.grad for parameter in unet.parameters()]

    plain, checkpointed = gradients(False), gradients(True)
    assert all(gradient.abs().max() > 0 for gradient in plain)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


@pytest.mark.parametrize("name", ["all", "routed"])
def test_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    unet, batch = make_unet(SETTINGS[name], depth=1), inputs()
    out = torch.compile(unet, fullgraph=True, backend="eager")(**batch).sample
    assert torch.allclose(out, unet(**batch).sample, atol=1e-6)
    out.square().mean().backward()
    assert unet.stem.weight.grad.abs().max() > 0


@torch.no_grad()
@pytest.mark.parametrize("backend", ["_native_math", "xformers"])
def test_every_backend_gives_the_same_pixels(settings, backend, xformers):
    unet, batch = make_unet(settings), inputs()
    expected = unet(**batch).sample
    unet.set_attention_backend(backend)
    assert torch.allclose(unet(**batch).sample, expected, atol=1e-5)


def test_half_precision_gradients_are_near(settings):
    """By the plain matmuls that they are computed with on CPU."""
    gradients = []
    for enabled in (False, True):
        unet = make_unet(settings).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            unet(**inputs()).sample.float().square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in unet.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_efficient", "_native_cudnn", "xformers"])
def test_cuda_gives_the_same_pixels(settings, backend):
    if backend == "xformers":
        pytest.importorskip("xformers")
    unet, batch = make_unet(settings), inputs()
    expected = unet(**batch).sample
    unet.to("cuda", torch.float16).set_attention_backend(backend)
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    batch |= {name: batch[name].half() for name in ("sample", "encoder_hidden_states")}
    error = unet(**batch).sample.float().cpu() - expected
    assert error.square().mean() < 1e-3 * expected.square().mean()


@torch.no_grad()
def test_fused_projections_give_the_same_pixels(settings):
    unet, batch = make_unet(settings), inputs()
    before = unet(**batch).sample
    unet.fuse_qkv_projections()
    assert torch.allclose(unet(**batch).sample, before, atol=1e-6)


def test_a_folder_opens_with_its_own_code(settings, tmp_path):
    unet = make_unet(settings, context=None)
    parts = {"scheduler": tiny_scheduler(), "objective": {"name": "flow"}, "data": {**RGB, "size": [28, 28]}}
    pipe = quiet(AttnDiffPipeline(unet, **parts))
    pipe.save_pretrained(tmp_path)
    opened = quiet(DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True))
    assert type(opened.unet).__module__ != AttentionUNet2DModel.__module__
    images = sample(opened, {})
    assert (images == sample(quiet(attndiff.load(tmp_path)), {})).all()
    assert abs(images - sample(pipe, {})).max() < 1e-5  # weights in a file are aligned in another way


@torch.no_grad()
def test_the_lens_reads_where_words_act(settings):
    unet, batch = make_unet(settings), inputs()
    before = unet(**batch).sample
    with AttentionRecorder(unet) as recorder:
        assert torch.equal(unet(**batch).sample, before)
    maps = recorder.maps()
    cross = [name for name, m in unet.named_modules() if isinstance(m, Attention) and m.is_cross_attention]
    assert sorted(f"{name}.cross_attn" for name in maps.per_layer) == sorted(cross) and len(cross) == 4
    weights = maps.averaged((14, 22))
    assert weights.shape == (BATCH, TOKENS, 14, 22) and torch.allclose(weights.sum(1), torch.ones(BATCH, 14, 22))
