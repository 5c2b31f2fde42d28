"""The condition encoder: every stream, padding, dropping and the null condition."""

import pytest
import torch

from attndiff.nn.encoder import ConditionEncoder

BATCH, LENGTH, HIDDEN = 3, 6, 16
ALL = {"vocab_size": 20, "num_classes": 4, "image_channels": 2, "context_dim": 10}


def make_encoder(**streams) -> ConditionEncoder:
    """A small encoder with random parameters everywhere: fresh blocks add zeros, which would hide any fault."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        encoder = ConditionEncoder(hidden_size=HIDDEN, num_layers=2, head_dim=8, max_length=LENGTH, **streams)
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder.eval()


def streams() -> dict[str, dict[str, torch.Tensor]]:
    """Arguments of each stream of a batch; texts of 6, 3 and 1 tokens, contexts of 5, 2 and 4."""
    generator = torch.Generator().manual_seed(1)
    return {
        "text": {
            "input_ids": torch.randint(20, (BATCH, LENGTH), generator=generator),
            "attention_mask": (torch.arange(LENGTH)[None] < torch.tensor([[6], [3], [1]])).long(),
        },
        "class": {"class_labels": torch.tensor([0, 3, 1])},
        "image": {"pixel_values": torch.randn(BATCH, 2, 8, 12, generator=generator)},
        "context": {
            "context": torch.randn(BATCH, 5, 10, generator=generator),
            "context_mask": (torch.arange(5)[None] < torch.tensor([[5], [2], [4]])).long(),
        },
    }


SETTINGS = {
    "text": {"vocab_size": 20},
    "class": {"num_classes": 4},
    "image": {"image_channels": 2},
    "context": {"context_dim": 10},
}
TOKENS = {"text": LENGTH, "class": 1, "image": 6, "context": 5}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_stream_alone(name):
    encoder, given = make_encoder(**SETTINGS[name]), streams()[name]
    out = encoder(**given)
    assert encoder.streams == [name]
    assert out.tokens.shape == (BATCH, TOKENS[name], HIDDEN) and out.pooled.shape == (BATCH, HIDDEN)
    assert out.mask.dtype == torch.bool and out.mask.shape == (BATCH, TOKENS[name])
    counts = {"text": [6, 3, 1], "context": [5, 2, 4]}.get(name, [TOKENS[name]] * BATCH)
    assert out.mask.sum(1).tolist() == counts
    assert (out.tokens[0] - out.tokens[1]).abs().max() > 0.1


def test_streams_together_keep_their_order_and_mix():
    encoder, parts = make_encoder(**ALL), streams()
    given = {name: value for part in parts.values() for name, value in part.items()}
    out = encoder(**given)
    assert encoder.streams == ["text", "class", "image", "context"]
    assert out.tokens.shape == (BATCH, sum(TOKENS.values()), HIDDEN)
    other = encoder(**{**given, "class_labels": torch.tensor([1, 3, 1])})
    assert (out.tokens[0, 0] - other.tokens[0, 0]).abs().max() > 1e-3  # the text has seen the class
    assert torch.allclose(out.tokens[1:], other.tokens[1:], atol=1e-6)


def test_pooled_is_the_mean_of_the_tokens_that_count():
    out = make_encoder(vocab_size=20)(**streams()["text"])
    assert torch.allclose(out.pooled[1], out.tokens[1, :3].mean(0), atol=1e-6)


@pytest.mark.parametrize("name", ["text", "context"])
def test_padding_never_changes_the_result(name):
    encoder, given = make_encoder(**SETTINGS[name]), streams()[name]
    content, mask = given
    changed = given[content].clone()
    changed[given[mask] == 0] = 7 if name == "text" else 1e4
    out, other = encoder(**given), encoder(**{**given, content: changed})
    assert torch.equal(out.pooled, other.pooled)
    assert torch.equal(out.tokens[out.mask], other.tokens[other.mask])
    shorter = encoder(**{key: value[1:2, :3] for key, value in given.items()})
    kept = out.mask[1].nonzero().flatten()
    assert torch.allclose(shorter.tokens[0, kept], out.tokens[1, kept], atol=1e-6)
    assert torch.allclose(shorter.pooled[0], out.pooled[1], atol=1e-6)


def test_a_missing_mask_means_that_all_count():
    encoder, given = make_encoder(vocab_size=20), streams()["text"]
    ones = encoder(given["input_ids"], torch.ones(BATCH, LENGTH))
    assert torch.equal(encoder(given["input_ids"]).tokens, ones.tokens)


@pytest.mark.parametrize("name", SETTINGS)
def test_dropped_rows_are_the_null_condition(name):
    """Whatever was given, a dropped row is the same one token that nothing at all gives."""
    encoder, given = make_encoder(**SETTINGS[name]), streams()[name]
    out = encoder(**given, drop=torch.tensor([False, True, True]))
    null = encoder(batch_size=1)
    assert null.mask.tolist() == [[True]]
    assert out.mask.sum(1).tolist()[1:] == [1, 1] and out.mask[1, 0]
    for row in (1, 2):
        assert torch.allclose(out.tokens[row, 0], null.tokens[0, 0], atol=1e-6)
        assert torch.allclose(out.pooled[row], null.pooled[0], atol=1e-6)
    assert torch.allclose(out.tokens[0], encoder(**given).tokens[0], atol=1e-6)
    assert (out.pooled[0] - null.pooled[0]).abs().max() > 0.05


def test_null_of_several_streams_needs_none_of_them():
    encoder, parts = make_encoder(**ALL), streams()
    given = {name: value for part in parts.values() for name, value in part.items()}
    dropped = encoder(**given, drop=torch.ones(BATCH, dtype=torch.bool))
    null = encoder(batch_size=BATCH)
    assert null.tokens.shape == (BATCH, 4, HIDDEN)
    assert torch.allclose(dropped.tokens[dropped.mask], null.tokens[null.mask], atol=1e-6)
    assert torch.allclose(dropped.pooled, null.pooled, atol=1e-6)


def test_a_stream_that_is_not_given_counts_as_dropped():
    encoder, parts = make_encoder(vocab_size=20, num_classes=4), streams()
    out = encoder(**parts["text"])
    assert out.tokens.shape == (BATCH, LENGTH + 1, HIDDEN) and out.mask[:, -1].all()


def test_learned_null_gets_a_gradient_where_it_is_used():
    encoder, given = make_encoder(num_classes=4, vocab_size=20).train(), streams()["class"]
    encoder(**given, drop=torch.tensor([False, True, False])).pooled.sum().backward()
    assert (encoder.null_embedding.grad.abs().amax(1) > 0).all()  # the text was not given, the class dropped once
    used = encoder.class_embedding.weight.grad.abs().amax(1) > 0
    assert used.tolist() == [True, True, False, False]  # class 3 was dropped, class 2 not there


def test_unknown_streams_are_refused():
    with pytest.raises(ValueError, match="this model has no text condition; it was made with: class"):
        make_encoder(num_classes=4)(**streams()["text"])


def test_condition_images_must_divide_into_patches():
    encoder = make_encoder(image_channels=2)
    with pytest.raises(ValueError, match=r"multiples of 4, not \(8, 10\)"):
        encoder(pixel_values=torch.zeros(1, 2, 8, 10))


def test_image_patches_know_where_they_are():
    encoder = make_encoder(image_channels=2)
    image = torch.zeros(1, 2, 8, 12)
    image[..., :4, :4] = 1.0
    moved = image.roll((4, 4), (2, 3))
    out, other = encoder(pixel_values=image).tokens[0], encoder(pixel_values=moved).tokens[0]
    assert (out[0] - other[4]).abs().max() > 1e-3


def test_word_order_matters():
    encoder = make_encoder(vocab_size=20)
    out, other = encoder(torch.tensor([[1, 2, 3]])), encoder(torch.tensor([[3, 2, 1]]))
    assert (out.pooled - other.pooled).abs().max() > 1e-3


def test_tuple_and_round_trip_are_exact(tmp_path):
    encoder, given = make_encoder(**ALL), streams()["text"]
    out = encoder(**given)
    assert all(torch.equal(a, b) for a, b in zip(encoder(**given, return_dict=False), out.values(), strict=True))
    encoder.save_pretrained(tmp_path)
    loaded = ConditionEncoder.from_pretrained(tmp_path)
    assert loaded.streams == encoder.streams
    assert torch.equal(loaded(**given).tokens, out.tokens)


def test_bfloat16_encoder_takes_float32_inputs():
    encoder, parts = make_encoder(**ALL).bfloat16(), streams()
    out = encoder(**{name: value for part in parts.values() for name, value in part.items()})
    assert out.tokens.dtype == out.pooled.dtype == torch.bfloat16 and out.tokens.isfinite().all()
