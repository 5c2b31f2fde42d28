"""What a network is told: rows, repeats, two conditions in one batch, the learned null, aligned channels."""

import pytest
import torch
from factories import tiny_encoder

from attndiff.condition import Condition


def condition(rows: int, tokens: int, seed: int = 0, aligned: bool = False) -> Condition:
    """Random tokens of which the last of the first row does not count."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[0, -1] = False
    image = torch.randn(rows, 2, 4, 4, generator=generator) if aligned else None
    pooled = torch.randn(rows, 8, generator=generator)
    return Condition(torch.randn(rows, tokens, 8, generator=generator), mask, pooled, image)


def test_rows_and_repeats_reach_every_part():
    whole = condition(3, 4, aligned=True)
    assert whole.rows == 3 and whole[:2].rows == 2
    twice = whole.repeat(2)
    for name, part in whole.parts.items():
        assert torch.equal(whole[1:].parts[name], part[1:])
        assert torch.equal(twice.parts[name][2:4], part[1].expand(2, *part.shape[1:]))


def test_nothing_stays_nothing():
    nothing = Condition()
    assert nothing.rows is None and nothing.arguments() == {}
    assert nothing[:2].rows is None and nothing.repeat(3).rows is None
    x = torch.zeros(1, 3, 4, 4)
    assert nothing.beside(x) is x


def test_joined_conditions_mask_what_fills_up_the_shorter():
    long, short = condition(2, 5, seed=1), condition(2, 3, seed=2)
    joined = long.join(short)
    assert torch.equal(joined.tokens[:2], long.tokens) and torch.equal(joined.tokens[2:, :3], short.tokens)
    assert torch.equal(joined.mask[:2], long.mask) and torch.equal(joined.mask[2:, :3], short.mask)
    assert not joined.mask[2:, 3:].any() and not joined.tokens[2:, 3:].any()
    assert torch.equal(joined.pooled, torch.cat([long.pooled, short.pooled]))


def test_tokens_without_a_mask_all_count():
    bare = Condition(torch.ones(1, 2, 8))
    assert bare.join(Condition(torch.ones(1, 3, 8))).mask.tolist() == [[True, True, False], [True, True, True]]
    assert Condition(torch.ones(1, 2, 8), torch.tensor([[1, 0]])).token_mask.tolist() == [[True, False]]


def test_conditions_of_other_parts_are_not_joined():
    with pytest.raises(ValueError, match=r"tokens, mask, pooled, aligned cannot be joined to tokens, mask, pooled"):
        condition(1, 2, aligned=True).join(condition(1, 2))


def test_an_encoder_gives_a_condition_and_its_null():
    encoder = tiny_encoder(num_classes=3)
    told = Condition.encoded(encoder, class_labels=torch.tensor([0, 2]))
    assert told.rows == 2 and told.tokens.shape[:2] == told.mask.shape
    dropped = encoder(class_labels=torch.tensor([0, 2]), drop=torch.ones(2, dtype=torch.bool))
    null = Condition.encoded(encoder, batch_size=2)
    torch.testing.assert_close(null.tokens, dropped.tokens)
    assert not torch.allclose(told.tokens, null.tokens)


def test_aligned_channels_lie_behind_the_images_own_in_its_precision():
    told = condition(2, 3, aligned=True)
    x = torch.randn(2, 3, 4, 4).bfloat16()
    beside = told.beside(x)
    assert beside.dtype is torch.bfloat16
    assert torch.equal(beside[:, :3], x) and torch.equal(beside[:, 3:], told.aligned.bfloat16())
