"""The attention lens: what is recorded is what the network computed, and recording changes nothing."""

import json

import numpy as np
import pytest
import torch
from campaigns import lens_overlap as overlap
from PIL import Image
from places import ROOT
from safetensors.torch import load_file

from attndiff.data.tokenizer import train_tokenizer
from attndiff.diffusion.compatibility import default_scheduler
from attndiff.diffusion.objectives import make_objective
from attndiff.errors import UserError
from attndiff.lens.pictures import COLUMNS, TILE, attention_picture, merge_words, save_attention_pictures
from attndiff.lens.record import AttentionRecorder
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline

LEVEL = torch.tensor(0.1)
LAYERS = {"down_blocks.1.0": 1, "mid_block.0": 2, "mid_block.1": 2, "up_blocks.1.0": 1}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def unet() -> AttentionUNet2DModel:
    torch.manual_seed(0)
    levels = [
        {"width": 16, "depth": 1},
        {"width": 32, "depth": 1, "attention": "window", "cross_attention": True},
        {"width": 32, "depth": 2, "attention": "global", "cross_attention": True},
    ]
    model = AttentionUNet2DModel(16, levels=levels, head_dim=16, embedding_dim=32, cross_attention_dim=24)
    for parameter in model.parameters():  # the zeros of a fresh network would hide any change
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def condition(batch: int, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[-1, tokens - 2 :] = False
    return torch.randn(batch, tokens, 24), mask


def test_recording_changes_no_bit_and_leaves_no_hook(unet):
    x, (tokens, mask) = torch.randn(2, 3, 16, 24), condition(2)
    plain = unet(x, LEVEL, tokens, mask).sample
    with AttentionRecorder(unet):
        recorded = unet(x, LEVEL, tokens, mask).sample
    assert plain.abs().mean() > 0.01
    assert torch.equal(plain, recorded)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_shapes_sums_and_masked_tokens_of_a_batch_that_is_not_square(unet):
    tokens, mask = condition(3)
    with AttentionRecorder(unet) as recorder:
        unet(torch.randn(3, 3, 16, 32), LEVEL, tokens, mask)
    maps = recorder.maps()
    assert maps.levels == LAYERS
    assert {name: tuple(m.shape) for name, m in maps.per_layer.items()} == {
        name: (3, 5, 4, 8) if level == 1 else (3, 5, 2, 4) for name, level in LAYERS.items()
    }
    assert maps.averaged().shape == (3, 5, 16, 32) and maps.averaged((8, 8)).shape == (3, 5, 8, 8)
    for m in [*maps.per_layer.values(), *maps.per_scale.values(), maps.averaged()]:
        torch.testing.assert_close(m.sum(1), torch.ones_like(m[:, 0]))
        assert (m[2, 3:] == 0).all() and (m[:2] > 0).all()
    assert torch.equal(maps.mask, mask)
    assert torch.equal(maps.of_token(1), maps.averaged()[:, 1])
    both = maps.per_layer["down_blocks.1.0"] + maps.per_layer["up_blocks.1.0"]
    torch.testing.assert_close(maps.per_scale[1], both / 2)


def test_one_layer_equals_the_formula(unet):
    attn, seen = unet.mid_block[1].cross_attn, {}
    handle = attn.register_forward_pre_hook(lambda module, args, kwargs: seen.update(hidden=args[0]), with_kwargs=True)
    tokens, mask = condition(2)
    with AttentionRecorder(unet, layers=["mid_block.1"]) as recorder:
        unet(torch.randn(2, 3, 16, 24), LEVEL, tokens, mask)
    handle.remove()
    (found,) = recorder.maps().per_layer.values()

    def heads(x, linear, norm):  # (B, n, C) to (B, heads, n, 16)
        x = (x @ linear.weight.T).reshape(2, -1, 2, 16).transpose(1, 2)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * norm.weight

    query, key = heads(seen["hidden"], attn.to_q, attn.norm_q), heads(tokens, attn.to_k, attn.norm_k)
    exponents = (query @ key.transpose(2, 3) / 4).exp() * mask[:, None, None]
    weights = (exponents / exponents.sum(-1, keepdim=True)).mean(1)  # (B, 6, S)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(found[:, :, row, column], weights[:, row * 3 + column], rtol=1e-4, atol=1e-5)


def test_a_token_that_each_quadrant_looks_for_is_found_there():
    level = {"width": 8, "depth": 1, "attention": "none", "cross_attention": True}
    unet = AttentionUNet2DModel(8, 4, 4, 1, [level], head_dim=8, embedding_dim=8, cross_attention_dim=8).eval()
    attn = unet.mid_block[0].cross_attn
    with torch.no_grad():
        unet.stem.weight.zero_()
        unet.stem.bias.zero_()
        unet.stem.weight[:4, :, 1, 1] = torch.eye(4)
        attn.to_q.weight.copy_(torch.eye(8))
        attn.to_k.weight.copy_(torch.eye(8))
    quadrants = torch.zeros(4, 8, 16)
    for i, (rows, columns) in enumerate([(0, 0), (0, 8), (4, 0), (4, 8)]):
        quadrants[i, rows : rows + 4, columns : columns + 8] = 1
    tokens = torch.eye(8)[None, [2, 0, 3, 1]]
    with torch.no_grad(), AttentionRecorder(unet) as recorder:
        unet(quadrants[None], LEVEL, tokens)
    heat = recorder.maps().averaged()[0]
    for token, quadrant in enumerate([2, 0, 3, 1]):
        assert heat[token][quadrants[quadrant] == 1].min() > 0.85
        assert heat[token][quadrants[quadrant] == 0].max() < 0.05


@pytest.mark.parametrize("joined", [True, False], ids=["one batch", "two calls"])
def test_guidance_keeps_the_conditional_maps_only(unet, joined):
    x, (tokens, mask), (null, null_mask) = torch.randn(2, 3, 16, 16), condition(2), condition(2)
    with AttentionRecorder(unet) as alone:
        unet(x, LEVEL, tokens, mask)
    with AttentionRecorder(unet, rows=slice(0, 2) if joined else None) as recorder:
        if joined:
            unet(x.repeat(2, 1, 1, 1), LEVEL, torch.cat([tokens, null]), torch.cat([mask, null_mask]))
        else:
            unet(x, LEVEL, tokens, mask)
            recorder.enabled = False
            unet(x, LEVEL, null, null_mask)
    torch.testing.assert_close(recorder.maps().averaged(), alone.maps().averaged())
    assert torch.equal(recorder.maps().mask, mask)


def test_average_is_the_mean_of_the_steps_and_steps_can_be_chosen(unet):
    images, (tokens, mask) = torch.randn(4, 2, 3, 16, 16), condition(2)
    with AttentionRecorder(unet, keep_steps=True) as every, AttentionRecorder(unet, steps=[1, 3], levels=[2]) as some:
        cache = unet(None, encoder_hidden_states=tokens, return_condition_cache=True)
        for x in images:
            unet(x, LEVEL, condition_cache=cache, encoder_attention_mask=mask)
    every, some = every.maps(), some.maps()
    assert len(every.steps) == 4 and not some.steps
    assert not torch.allclose(every.steps[0].averaged(), every.steps[1].averaged())
    torch.testing.assert_close(every.averaged(), torch.stack([s.averaged() for s in every.steps]).mean(0))
    assert list(some.per_layer) == ["mid_block.0", "mid_block.1"]
    chosen = (every.steps[1].per_scale[2] + every.steps[3].per_scale[2]) / 2
    torch.testing.assert_close(some.per_scale[2], chosen)


def test_every_kind_of_condition(unet):
    encoder = ConditionEncoder(24, 1, 8, vocab_size=9, num_classes=3, image_channels=3, image_patch_size=4)
    ids, labels = torch.tensor([[1, 2, 3], [1, 4, 0]]), torch.tensor([0, 2])
    streams = {"class_labels": labels, "pixel_values": torch.randn(2, 3, 8, 8)}
    out = encoder(input_ids=ids, attention_mask=ids > 0, **streams)
    with AttentionRecorder(unet) as recorder:
        unet(torch.randn(2, 3, 16, 16), LEVEL, out.tokens, out.mask)
    heat = recorder.maps().averaged()
    assert heat.shape == (2, 3 + 1 + 4, 16, 16)
    assert (heat[1, 2] == 0).all() and (heat[:, 3:] > 0).all()


def test_half_precision_and_gradient_checkpointing(unet):
    x, (tokens, mask) = torch.randn(2, 3, 16, 16), condition(2)
    model = AttentionUNet2DModel.from_config(unet.config)
    model.load_state_dict(unet.state_dict())
    model.enable_gradient_checkpointing()
    with AttentionRecorder(model.train(), keep_steps=True) as recorder:
        model(x, LEVEL, tokens, mask).sample.sum().backward()
    assert len(recorder.maps().steps) == 1
    with torch.no_grad(), AttentionRecorder(model.bfloat16()) as half:
        model(x.bfloat16(), LEVEL, tokens.bfloat16(), mask)
    assert half.maps().averaged().dtype == torch.float32
    torch.testing.assert_close(half.maps().averaged(), recorder.maps().averaged(), atol=0.05, rtol=0)


def test_compiled_code_is_refused_and_has_a_way_out():
    level = {"width": 8, "depth": 1, "cross_attention": True}
    unet = AttentionUNet2DModel(levels=[level], head_dim=8, cross_attention_dim=24).eval()
    x, (tokens, mask) = torch.randn(1, 3, 16, 16), condition(1)
    compiled = torch.compile(unet, backend="eager")
    compiled(x, LEVEL, tokens, mask)
    with AttentionRecorder(unet) as recorder:
        compiled(x, LEVEL, tokens, mask)
        with pytest.raises(ValueError, match="set_stance"):
            recorder.maps()
        with torch.compiler.set_stance("force_eager"):
            compiled(x, LEVEL, tokens, mask)
    assert recorder.maps().averaged().shape == (1, 5, 16, 16)


def test_mistakes_are_named(unet):
    with pytest.raises(ValueError, match=r"mid_block\.7.*mid_block\.0 \(level 2\)"):
        AttentionRecorder(unet, layers=["mid_block.7"])
    with pytest.raises(ValueError, match="no cross-attention at 0"):
        AttentionRecorder(unet, levels=[0])
    plain = AttentionUNet2DModel(16, levels=[{"width": 16}], head_dim=16, embedding_dim=8)
    with pytest.raises(ValueError, match="need a network with cross-attention"):
        AttentionRecorder(plain)
    with AttentionRecorder(unet) as recorder:
        unet(torch.randn(1, 3, 16, 16), LEVEL)
        with pytest.raises(ValueError, match="no attention was recorded"):
            recorder.maps()
        tokens, mask = condition(2)
        unet(torch.randn(2, 3, 16, 16), LEVEL, tokens, mask)
        with pytest.raises(ValueError, match="set `rows`"):
            unet(torch.randn(1, 3, 16, 16), LEVEL, tokens[:1], mask[:1])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["<s>", "Ġred", "Ġap", "ple", ",", "<pad>"], [("red", [1]), ("apple", [2, 3]), (",", [4])]),
        (["<s>", "Ġo", "'", "cl", "ock", ",", "Ġ", "x"], [("o'clock", [1, 2, 3, 4]), (",", [5]), ("x", [6, 7])]),
        (["ĠpiÃ", "±at", "a"], [("piñata", [0, 1, 2])]),
        (["[CLS]", "app", "##le", "pie", "[SEP]"], [("apple", [1, 2]), ("pie", [3])]),
        (["<|startoftext|>", "grin", "ning</w>", "cat</w>"], [("grinning", [1, 2]), ("cat", [3])]),
        (["▁red", "▁ap", "ple", "</s>"], [("red", [0]), ("apple", [1, 2])]),
        (["piñata", "cat"], [("piñata", [0]), ("cat", [1])]),
        (["<s>", "<pad>"], []),
    ],
)
def test_pieces_become_words(tokens, words):
    assert merge_words(tokens) == words


def test_picture_shows_each_word_where_it_attends():
    tokens = ["<s>", "Ġred", "Ġap", "ple", "<pad>"]
    maps = torch.zeros(5, 4, 4)
    maps[0] = 1.0
    maps[1, :2, :2], maps[2, 2:, 2:], maps[3, 2:, 2:] = 0.5, 0.9, 0.1
    picture = attention_picture(Image.new("RGB", (32, 32), "green"), tokens, maps)
    side = 32 * -(-TILE // 32)
    brightness = np.asarray(picture.convert("L")).astype(float)
    tiles = [brightness[8 : 8 + side, 8 + i * (side + 8) :][:, :side] for i in range(3)]
    assert picture.width == 3 * (side + 8) + 8
    assert tiles[0].std() == 0
    quarter = side // 4
    assert tiles[1][:quarter, :quarter].mean() > 2 * tiles[1][-quarter:, -quarter:].mean()
    assert tiles[2][-quarter:, -quarter:].mean() > 2 * tiles[2][:quarter, :quarter].mean()
    assert brightness[8 + side :].min() < 100, "no text under the tiles"


def test_long_prompts_wrap_and_wide_images_keep_their_shape():
    tokens = [f"Ġ{'w' * 40}{i}" for i in range(23)]
    picture = attention_picture(Image.new("RGBA", (48, 32)), tokens, torch.rand(23, 4, 6))
    width, height = 48 * 5, 32 * 5
    assert picture.width == COLUMNS * (width + 8) + 8
    assert 4 * height < picture.height < 4 * (height + 60) + 8
    with pytest.raises(UserError, match="one map a token"):
        attention_picture(Image.new("RGB", (32, 32)), tokens, torch.rand(22, 4, 4))


def test_saved_pictures_and_tensors(unet, tmp_path):
    tokens, mask = condition(2)
    with AttentionRecorder(unet, keep_steps=True) as recorder:
        unet(torch.randn(2, 3, 16, 16), LEVEL, tokens, mask)
    maps, names = recorder.maps(), [["<s>", "Ġa", "Ġb", "Ġc", "<pad>"]] * 2
    images = [Image.new("RGB", (16, 16))] * 2
    paths = save_attention_pictures(tmp_path, images, names, maps)
    assert [path.name for path in paths] == ["attention-00.png", "attention-01.png"]
    paths = save_attention_pictures(tmp_path, images, names, maps, details=True)
    views = {path.name.removeprefix("attention-01") for path in paths if "attention-01" in path.name}
    assert views == {".png", "-scale-4x4.png", "-scale-2x2.png", "-step-000.png"}
    assert all(Image.open(path).size[1] > TILE for path in paths)
    stored = load_file(tmp_path / "attention.safetensors")
    assert torch.equal(stored["averaged"], maps.averaged())
    assert torch.equal(stored["step.0.mid_block.0"], maps.steps[0].per_layer["mid_block.0"])
    with pytest.raises(UserError, match="1 images"):
        save_attention_pictures(tmp_path, images[:1], names, maps)


def test_overlap_measures():
    shape = torch.zeros(4, 4, dtype=torch.bool)
    shape[:2] = True
    assert overlap.auc(shape.float(), shape) == 1
    assert overlap.auc(1 - shape.float(), shape) == 0
    assert overlap.auc(torch.ones(4, 4), shape) == 0.5
    assert overlap.mass_ratio(shape.float(), shape) == 2
    maps = torch.stack([torch.ones(4, 4), shape + 0.1, 1.1 - shape.float()])
    case = overlap.Case("apple, noto", {"noun": [[1]], "style": [[2]], "start": [[0]]}, torch.zeros(3, 4, 4), shape)
    found = overlap.scores(case, maps, shape, shape.T, wrong=maps[2])["auc"]
    assert (found["noun"], found["style"], found["start"], found["visible_others"]) == (1, 0, 0.5, 0)
    assert found["all_others"] == 0.25 and found["noun_minus_all_others"] == 0.75
    assert found["noun_on_another_object"] == 0.5 and found["noun_minus_start"] == 0.5
    assert found["wrong_noun"] == 0 and found["noun_minus_wrong_noun"] == 1


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("red apple", "apple"),
        ("face with tears of joy", "face"),
        ("flag, Peru", "flag"),
        ("person getting haircut", "person"),
        ("woman swimming", "woman"),
        ("classical building", "building"),
        ("grinning face", "face"),
    ],
)
def test_head_noun(caption, noun):
    words = caption.replace(",", " ,").split()
    assert words[overlap.head_noun(words)] == noun


def test_overlap_report_of_an_untrained_model():
    data = ROOT / "attndiff/assets/emoji32/validation.parquet"
    tokenizer = train_tokenizer(["red apple, fluent flat", "sun with face, noto"], vocab_size=300, max_length=64)
    levels = [{"width": 8, "depth": 1}, {"width": 16, "depth": 1, "attention": "global", "cross_attention": True}]
    objective = make_objective({"name": "flow"})
    pipe = AttnDiffPipeline(
        AttentionUNet2DModel(16, levels=levels, head_dim=8, cross_attention_dim=16, pooled_dim=16).eval(),
        default_scheduler(objective),
        ConditionEncoder(16, 1, 8, vocab_size=len(tokenizer), max_length=64).eval(),
        tokenizer,
        objective=objective.to_config(),
    )
    pipe.set_progress_bar_config(disable=True)
    cases = overlap.read_cases(data, tokenizer, 16, 12, seed=0)
    assert len({case.prompt for case in cases}) == 12
    assert all(case.pixels.shape == (3, 16, 16) and case.pixels.abs().max() <= 1 for case in cases)
    report = overlap.measure(pipe, cases, [0.4, 0.8], steps=2, seed=0, seeds=2)
    assert set(report) >= {"real, noise 0.4", "real, noise 0.8", "untrained, noise 0.4", "untrained, noise 0.8"}
    assert set(report["real, noise 0.4"]) == {"all levels", "level 1"}
    found = report["real, noise 0.4"]["level 1"]["auc"]
    assert found["noun"]["n"] == 12 and 0 < found["noun"]["low"] < found["noun"]["mean"] < found["noun"]["high"] < 1
    for control in ("all_others", "visible_others", "wrong_noun", "noun_on_another_object"):
        difference = found["noun"]["mean"] - found[control]["mean"]
        assert abs(found[f"noun_minus_{control}"]["mean"] - difference) < 1e-9
    assert report["untrained, noise 0.4"]["level 1"]["auc"]["noun"]["n"] == 2
    json.dumps(report)
