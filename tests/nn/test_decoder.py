"""The decoder: causal attention against torch's own, the cache against none, and that it learns what is known."""

import doctest

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from transformers import DynamicCache

from attndiff.nn import decoder as decoder_module
from attndiff.nn import encoder as encoder_module
from attndiff.nn import generation
from attndiff.nn.attention import (
    Attention,
    additive_mask,
    causal_mask,
    plain_attention,
    reference_attention,
)
from attndiff.nn.decoder import TextDecoderModel, TransformerDecoder
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.generation import TextGenerator
from attndiff.training.config import OptimConfig
from attndiff.training.optim import make_optimizers, set_lr

BATCH, LENGTH, HEADS, CHANNELS = 3, 9, 2, 8
PADDING = {
    "none": None,
    "right": torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] + [0] * 8], dtype=torch.bool),
    "left": torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [0] * 8 + [1]], dtype=torch.bool),
}
VOCABULARY, CONDITION = 30, 16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Fresh layers give zeros, which would hide any fault."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module.eval()


@pytest.mark.parametrize("module", [encoder_module, decoder_module, generation])
def test_examples_of_the_docs_run(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


# Attention


def forward_and_gradients(attend, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    out = attend(*tensors)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)]


def assert_alike(actual: list[torch.Tensor], expected: list[torch.Tensor], bound: float = 1e-5) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() < bound


def assert_causal(backend: str, padding: str, device: str = "cpu", dtype=torch.float32, bound: float = 1e-5) -> None:
    """A backend and the reference with the same causal mask; without padding it is asked for by name."""
    qkv = [torch.randn(BATCH, LENGTH, HEADS, CHANNELS).to(device, dtype).requires_grad_() for _ in range(3)]
    counting = PADDING[padding]
    mask = causal_mask(torch.ones(BATCH, LENGTH, dtype=torch.bool) if counting is None else counting, LENGTH).to(device)
    bias = None if counting is None else additive_mask(mask, dtype)

    def ours(query, key, value):
        if backend == "plain":
            return plain_attention(query, key, value, bias, causal=bias is None)
        return dispatch_attention_fn(query, key, value, attn_mask=bias, is_causal=bias is None, backend=backend)

    def measured(attend):
        return [one.float().cpu() for one in forward_and_gradients(lambda *x: attend(*x).cpu(), qkv)]

    assert_alike(measured(ours), measured(lambda q, k, v: reference_attention(q, k, v, mask)), bound)


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("backend", ["plain", "native", "_native_math"])
def test_causal_attention_of_every_backend_is_the_reference(backend, padding):
    assert_causal(backend, padding)


@pytest.mark.parametrize("padding", PADDING)
def test_xformers_gets_what_it_demands_of_causal_attention(xformers, padding):
    assert_causal("xformers", padding)
    assert xformers.calls == [(LENGTH, LENGTH, True)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_efficient", "_native_cudnn", "xformers"])
def test_causal_attention_on_cuda(backend, padding):
    if backend == "xformers":
        pytest.importorskip("xformers")
    assert_causal(backend, padding, "cuda", torch.float16, bound=2e-2)


@pytest.mark.parametrize("padding", PADDING)
def test_a_layer_is_torchs_own_attention_in_values_and_gradients(padding):
    """Of the same queries, keys and values, self-attention to what is before and cross-attention to a condition."""
    attn = randomised(Attention(HEADS * CHANNELS, CHANNELS))
    x = torch.randn(BATCH, LENGTH, HEADS * CHANNELS, requires_grad=True)
    counting = PADDING[padding]
    mask = None if counting is None else causal_mask(counting, LENGTH)

    def ours(x):
        bias = None if mask is None else additive_mask(mask, x.dtype)
        return attn(x, attention_mask=bias, causal=mask is None)

    def theirs(x):
        query, key, value = (part.transpose(1, 2) for part in attn.query_key_value(x))
        allowed = None if mask is None else mask[:, None]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=mask is None)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    assert_alike(forward_and_gradients(ours, [x]), forward_and_gradients(theirs, [x]))


def test_no_token_sees_what_comes_after_it_or_padding():
    counting = PADDING["left"]
    mask = causal_mask(counting, LENGTH)
    assert not mask.triu(1).any() and mask.diagonal(dim1=1, dim2=2).all()
    assert not (mask & ~counting[:, None] & ~torch.eye(LENGTH, dtype=torch.bool)).any()
    last = causal_mask(counting, 2)
    assert torch.equal(last, mask[:, -2:])
    decoder = randomised(TransformerDecoder(16, 2, CHANNELS))
    x = torch.randn(2, LENGTH, 16)
    changed = torch.cat([x[:, :5], torch.randn(2, 4, 16)], dim=1)
    assert torch.equal(decoder(x)[:, :5], decoder(changed)[:, :5])
    assert (decoder(x)[:, 5:] - decoder(changed)[:, 5:]).abs().max() > 0.1


# The cache


def text_decoder(**settings) -> TextDecoderModel:
    small = {"hidden_size": 32, "num_layers": 2, "head_dim": 8, "cross_attention_dim": CONDITION}
    return randomised(TextDecoderModel(VOCABULARY, **(small | settings)))


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 1, 1, 1, 1], [3, 3, 3], [9]])
@pytest.mark.parametrize("padding", PADDING)
def test_logits_with_a_cache_are_those_without(padding, pieces):
    """At every place that counts, in batches of unequal lengths, for a condition of unequal lengths too."""
    model, counting = text_decoder(), PADDING[padding]
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH))
    condition, told = torch.randn(BATCH, 7, CONDITION), torch.arange(7) < torch.tensor([[7], [4], [1]])
    whole = model(ids, counting, condition, told).logits
    cache, key_values, made, start = DynamicCache(), model.key_values(condition), [], 0
    for length in pieces:
        so_far = None if counting is None else counting[:, : start + length]
        piece = ids[:, start : start + length]
        given = {"encoder_attention_mask": told, "key_values": key_values, "past_key_values": cache}
        made.append(model(piece, so_far, **given).logits)
        start += length
    counts = torch.ones(BATCH, LENGTH, dtype=torch.bool) if counting is None else counting
    assert (torch.cat(made, dim=1) - whole)[counts].abs().max() < 1e-5
    assert whole.isfinite().all() and whole.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_row_among_longer_ones_is_as_it_is_alone(padding):
    model, counting = text_decoder(), PADDING[padding]
    ids, condition = torch.randint(VOCABULARY, (BATCH, LENGTH)), torch.randn(BATCH, 7, CONDITION)
    among = model(ids, counting, condition).logits
    for row, counts in enumerate(counting):
        alone = model(ids[row : row + 1, counts], encoder_hidden_states=condition[row : row + 1]).logits
        assert (among[row, counts] - alone[0]).abs().max() < 1e-5


def test_what_does_not_fit_is_said():
    model = text_decoder()
    ids, condition = torch.randint(VOCABULARY, (2, 4)), torch.randn(2, 7, CONDITION)
    cache = DynamicCache()
    model(ids, encoder_hidden_states=condition, past_key_values=cache)
    with pytest.raises(ValueError, match="the cache is of 2 rows, and 1 are given: start anew"):
        model(ids[:1, :1], encoder_hidden_states=condition[:1], past_key_values=cache)
    with pytest.raises(ValueError, match=r"the mask is \(2, 4\), and .* there are 2 rows of 5 tokens"):
        model(ids[:, :1], torch.ones(2, 4), condition, past_key_values=cache)
    with pytest.raises(ValueError, match="takes a condition: give encoder_hidden_states"):
        model(ids)
    with pytest.raises(ValueError, match="takes no condition: leave it out"):
        text_decoder(cross_attention_dim=None)(ids, encoder_hidden_states=condition)


def test_gradient_checkpointing_changes_no_gradient():
    model = text_decoder()
    ids, condition = torch.randint(VOCABULARY, (2, 5)), torch.randn(2, 7, CONDITION)

    def gradients():
        model.zero_grad()
        model(ids, encoder_hidden_states=condition).logits.square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.enable_gradient_checkpointing()
    assert model.decoder.gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


@pytest.mark.parametrize("padding", PADDING)
def test_it_compiles_without_a_break(padding):
    model, counting = text_decoder(), PADDING[padding]
    given = torch.randint(VOCABULARY, (BATCH, LENGTH)), counting, torch.randn(BATCH, 7, CONDITION)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*given).logits, model(*given).logits)


def test_it_comes_back_from_its_folder(tmp_path):
    model = text_decoder()
    model.save_pretrained(tmp_path)
    again = TextDecoderModel.from_pretrained(tmp_path)
    ids, condition = torch.randint(VOCABULARY, (2, 4)), torch.randn(2, 7, CONDITION)
    assert torch.equal(*(one(ids, encoder_hidden_states=condition).logits for one in (model, again)))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


# Search


@pytest.fixture
def generator() -> TextGenerator:
    return TextGenerator(text_decoder(), bos_token_id=1, eos_token_id=2, pad_token_id=0).eval()


def start(rows: int) -> torch.Tensor:
    return torch.ones(rows, 1, dtype=torch.int64)


@torch.no_grad()
def greedy(model: TextDecoderModel, condition: torch.Tensor, steps: int) -> torch.Tensor:
    ids = start(len(condition))
    for _ in range(steps):
        ids = torch.cat([ids, model(ids, encoder_hidden_states=condition).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def likelihood(model: TextDecoderModel, ids: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Log-probability of every row."""
    logits = model(ids, encoder_hidden_states=condition).logits[:, :-1].log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None])[..., 0].sum(1)


@torch.no_grad()
def test_greedy_search_is_the_likeliest_token_after_the_other(generator):
    condition = torch.randn(4, 7, CONDITION)
    found = generator.generate(start(4), encoder_hidden_states=condition, max_new_tokens=6, min_new_tokens=6)
    expected = greedy(generator.decoder, condition, 6)
    assert torch.equal(found, expected)
    alone = [generator.generate(start(1), encoder_hidden_states=one[None], max_new_tokens=6) for one in condition]
    assert all(torch.equal(one[0], row[: one.shape[1]]) for one, row in zip(alone, expected, strict=True))


@torch.no_grad()
def test_beams_find_likelier_texts_and_sampling_follows_its_seed(generator):
    condition = torch.randn(4, 7, CONDITION)
    long = {"encoder_hidden_states": condition, "max_new_tokens": 6, "min_new_tokens": 6}
    plain, beams = generator.generate(start(4), **long), generator.generate(start(4), num_beams=8, **long)
    gains = likelihood(generator.decoder, beams, condition) - likelihood(generator.decoder, plain, condition)
    assert gains.sum() > 0.1
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(generator.generate(start(4), do_sample=True, top_p=0.9, temperature=0.7, **long))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@torch.no_grad()
def test_a_text_ends_and_long_ones_can_be_preferred(generator):
    condition = torch.randn(16, 7, CONDITION)
    generator.decoder.embedding.weight[2] *= 4  # ends now and then
    given = {"encoder_hidden_states": condition, "max_new_tokens": 12, "num_beams": 4}
    short, long = (generator.generate(start(16), length_penalty=penalty, **given) for penalty in (-2.0, 2.0))
    ends = [[row.index(2) if 2 in row else len(row) for row in ids.tolist()] for ids in (short, long)]
    assert sum(ends[0]) < sum(ends[1])
    for row, end in zip(short.tolist(), ends[0], strict=True):
        assert set(row[end:]) <= {0, 2}


@torch.no_grad()
def test_texts_that_begin_differently_go_on_together(generator):
    begun = torch.tensor([[0, 0, 1, 5], [1, 7, 8, 9]])
    condition = torch.randn(2, 7, CONDITION)
    steps = {"max_new_tokens": 4, "min_new_tokens": 4}
    both = generator.generate(begun, attention_mask=(begun != 0), encoder_hidden_states=condition, **steps)
    first = generator.generate(begun[:1, 2:], encoder_hidden_states=condition[:1], **steps)
    assert torch.equal(both[0, 2:], first[0])


@torch.no_grad()
def test_another_condition_is_read_anew(generator):
    first, second = torch.randn(2, 2, 7, CONDITION)
    found = [
        generator.generate(start(2), encoder_hidden_states=one, max_new_tokens=5) for one in (first, second, first)
    ]
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_cannot_be_is_refused(generator, temperature):
    with pytest.raises(ValueError, match="temperature"):
        generator.generate(
            start(1), encoder_hidden_states=torch.randn(1, 7, CONDITION), do_sample=True, temperature=temperature
        )


# Tasks whose right answer is known

SYMBOLS = 10  # the tokens from 3 on; 1 begins and 2 ends


def rows_of_symbols(count: int, draws: torch.Generator, length: int = 5) -> torch.Tensor:
    return torch.randint(3, 3 + SYMBOLS, (count, length), generator=draws)


def rearranged(how):
    """Some symbols, and a text that has them as they are to be."""

    def ask(count: int, draws: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        symbols = rows_of_symbols(count, draws)
        return symbols, torch.cat([start(count), how(symbols), torch.full((count, 1), 2)], dim=1)

    return ask


def looked_up(count: int, draws: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Some symbols, and a text of the number of one of them and that symbol; four times as many, to be as much."""
    symbols = rows_of_symbols(4 * count, draws, length=4)
    asked = torch.randint(4, (4 * count, 1), generator=draws)
    return symbols, torch.cat([asked + 3, symbols.gather(1, asked)], dim=1)


# What is asked, and how many tokens answer the first one of a text.
TASKS = {
    "copy": (rearranged(lambda x: x), 6),
    "reverse": (rearranged(lambda x: x.flip(1)), 6),
    "sort": (rearranged(lambda x: x.sort(dim=1).values), 6),
    "look up": (looked_up, 1),
}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_known_is_learned(task):
    """By encoder and decoder together, and answered by search, for questions that were not trained on."""
    ask, length = TASKS[task]
    sizes = {"vocab_size": 3 + SYMBOLS, "hidden_size": 48, "head_dim": 16}
    encoder = ConditionEncoder(**sizes, num_layers=2)
    decoder = TextDecoderModel(**sizes, num_layers=1, cross_attention_dim=48)
    both = torch.nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    optimizers = make_optimizers(both, OptimConfig(steps=1, lr=0.02, adamw_lr=0.01))
    draws, steps = torch.Generator().manual_seed(1), 220
    for step in range(steps):
        given, text = ask(64, draws)
        told = encoder(given)
        logits = decoder(text[:, :-1], None, told.tokens, told.mask).logits
        F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()).backward()
        set_lr(optimizers, min(1, (step + 1) / 20) * (1 - step / steps))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    given, text = ask(300, torch.Generator().manual_seed(2))
    search = TextGenerator(decoder.eval(), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    condition = encoder.eval()(given).tokens
    said = search.generate(text[:, :1], encoder_hidden_states=condition, max_new_tokens=length)
    right = (F.pad(said, (0, length))[:, : length + 1] == text[:, : length + 1]).all(1).float().mean()
    assert right > 0.95
