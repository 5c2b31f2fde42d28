"""Random numbers of training follow from (seed, visit, sample id) alone."""

import numpy as np

from attndiff.data.order.batches import BatchSampler, epoch_order
from attndiff.data.order.draw import draw

SHAPE = (3, 4, 4)


def flat(sampler):
    return [key for batch in sampler for key in batch]


def test_same_key_same_numbers_other_key_other_numbers():
    first, again = (draw(1, 2, 3, SHAPE, 0.1, 0.5) for _ in range(2))
    assert np.array_equal(first.noise, again.noise) and first.normal == again.normal
    for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(first.noise, draw(*key, SHAPE, 0.1, 0.5).noise)


def test_draws_have_the_stated_distribution():
    drawn = [draw(0, visit, sample, SHAPE, 0.25, 0.5) for visit in range(20) for sample in range(100)]
    noise = np.stack([d.noise for d in drawn])
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs(np.mean([d.drop for d in drawn]) - 0.25) < 0.03
    assert abs(np.std([d.normal for d in drawn]) - 1) < 0.05


def test_every_epoch_visits_every_sample_once_in_another_order():
    orders = [epoch_order(0, epoch, 50) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])


def test_processes_and_accumulation_share_one_global_batch():
    whole = list(BatchSampler(30, 8, 1, seed=0, end_step=9))
    ranks = [list(BatchSampler(30, 2, 2, seed=0, rank=r, world_size=2, end_step=9)) for r in range(2)]
    for step, batch in enumerate(whole):
        parts = [key for rank in ranks for micro in rank[2 * step : 2 * step + 2] for key in micro]
        assert parts == batch


def test_a_later_start_continues_the_same_sequence():
    whole = flat(BatchSampler(13, 4, 1, seed=5, end_step=11))
    resumed = flat(BatchSampler(13, 4, 1, seed=5, start_step=6, end_step=11))
    assert whole[6 * 4 :] == resumed
