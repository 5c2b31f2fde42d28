"""Images as sequences, and the generator: what it may see, that a cache changes nothing, and that chance is counted."""

import doctest
import math

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from attndiff.nn.raster import model as model_module
from attndiff.nn.raster.model import PixelTransformerModel
from attndiff.nn.raster.order import NEIGHBOURS, patch_neighbours, to_images, to_sequence, value_neighbours
from attndiff.nn.raster.sampling import draw_patches, drawn_value, warpers
from attndiff.training.config import OptimConfig
from attndiff.training.optim import make_optimizers, set_lr

SMALL = {"hidden_size": 32, "num_layers": 2, "head_dim": 16, "value_size": 32}
CONDITION = 16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(**settings) -> PixelTransformerModel:
    """A model whose layers do something, as fresh ones do not."""
    model = PixelTransformerModel(**({"sample_size": 8, "cross_attention_dim": CONDITION} | SMALL | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def test_the_example_of_the_docs_runs():
    found = doctest.testmod(model_module)
    assert found.attempted and not found.failed


# The order


@pytest.mark.parametrize(
    ("channels", "size", "patch"), [(3, (8, 8), 2), (1, (4, 6), 2), (4, (8, 4), 4), (2, (3, 5), 1)]
)
def test_a_sequence_is_an_image_again(channels, size, patch):
    images = torch.randint(256, (2, channels, *size))
    sequence = to_sequence(images, patch)
    assert sequence.shape == (2, size[0] * size[1] // patch**2, patch**2 * channels)
    assert torch.equal(to_images(sequence, size, patch), images)
    assert torch.equal(sequence[:, 0, :channels], images[:, :, 0, 0])  # the first pixel's channels come first


def test_neighbours_are_those_of_the_image():
    """Against a search in the image itself."""
    channels, size, patch = 2, (6, 4), 2
    total = channels * size[0] * size[1]
    places = to_images(torch.arange(total).view(1, -1, patch**2 * channels), size, patch)[0].numpy()
    found = value_neighbours(channels, *size, patch).flatten(0, 1)
    for place in range(total):
        c, y, x = (int(axis[0]) for axis in np.nonzero(places == place))
        for (down, right), neighbour in zip(NEIGHBOURS, found[place].tolist(), strict=True):
            row, column = y + down, x + right
            inside = 0 <= row < size[0] and 0 <= column < size[1]
            expected = places[c, row, column] if inside and places[c, row, column] < place else total
            assert neighbour == expected
    assert patch_neighbours(2, 3).tolist()[4] == [3, 1, 0, 2] and patch_neighbours(2, 3).tolist()[0] == [6] * 4


# What a value may see


@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 3, 5), (2, 7, 7), (0, 4, 2)])
def test_no_logits_depend_on_the_value_or_on_later_ones(place):
    model, images, condition = small(), torch.randint(256, (2, 3, 8, 8)), torch.randn(2, 5, CONDITION)
    channel, row, column = place
    changed = images.clone()
    changed[:, channel, row, column] = (changed[:, channel, row, column] + 100) % 256
    differs = (model(images, condition) != model(changed, condition)).any(-1).flatten(1)
    where = to_sequence((images != changed).long(), 2).flatten(1)[0].argmax()
    assert not differs[:, : where + 1].any()
    assert differs[:, where + 1 :].any() or place == (2, 7, 7)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"channels": 1}, {"patch_size": 4}, {"channels": 4, "num_values": 16}])
def test_logits_of_one_value_after_the_other_are_those_of_all(settings):
    model, condition = small(**settings), torch.randn(2, 5, CONDITION)
    told = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    images = torch.randint(model.config.num_values, (2, model.config.channels, 8, 8))
    whole = model(images, condition, told)
    sequence, cache, key_values = (
        to_sequence(images, model.config.patch_size),
        DynamicCache(),
        model.key_values(condition),
    )
    for n in range(model.grid**2):
        so_far = sequence.clone()
        so_far[:, n:] = model.absent
        seen = model.neighbours_of_patches(so_far, slice(n, n + 1))
        said, of_patch = model.read_patches(seen, key_values, told.bool(), cache, first=n)[:, 0], DynamicCache()
        for k in range(model.values_of_patch):
            before = so_far[:, n, k - 1 : k] if k else torch.full_like(so_far[:, n, :1], model.absent)
            beside = model.neighbours_of_values(so_far, slice(n, n + 1))[:, 0, k : k + 1]
            logits = model.read_values(said, before, beside, of_patch, first=k)[:, 0]
            assert (logits - whole[:, n, k]).abs().max() < 2e-5
            so_far[:, n, k] = sequence[:, n, k]
    assert whole.std() > 0.1


# Likelihood


@torch.no_grad()
def test_likelihoods_of_all_images_sum_to_one():
    """All 2 ** 8 images of 2 x 2 pixels, two channels and two levels."""
    model = small(channels=2, num_values=2, sample_size=2, patch_size=1, cross_attention_dim=None)
    every = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).view(256, 2, 2, 2)
    bits = model.bits_per_value(model(every), every) * 8
    assert (2.0 ** -bits.double()).sum().item() == pytest.approx(1, abs=1e-5)
    assert bits.std() > 0.1


@torch.no_grad()
def test_samples_come_as_often_as_they_are_likely():
    model = small(channels=1, num_values=2, sample_size=2, patch_size=1, cross_attention_dim=None)
    every = ((torch.arange(16)[:, None] >> torch.arange(4)) & 1).view(16, 1, 2, 2)
    likely = 2.0 ** (-4 * model.bits_per_value(model(every), every))
    drawn = drawn_images(model, 4000, seed=3)
    counts = (drawn.flatten(1) * 2 ** torch.arange(4)).sum(1).bincount(minlength=16)
    assert (counts / 4000 - likely).abs().max() < 4 * math.sqrt(0.25 / 4000)


def drawn_images(model: PixelTransformerModel, batch: int, seed: int = 0, **settings) -> torch.Tensor:
    shape = batch, model.grid**2, model.values_of_patch
    *_, last = draw_patches(model, torch.rand(shape, generator=torch.Generator().manual_seed(seed)), **settings)
    return to_images(last, (model.config.sample_size,) * 2, model.config.patch_size)


@torch.no_grad()
def test_sampling_follows_seed_temperature_condition_and_guidance():
    model, condition, null = small(), torch.randn(3, 5, CONDITION), torch.randn(3, 5, CONDITION)
    key_values = model.key_values(condition)

    def draw(seed: int = 0, **settings) -> torch.Tensor:
        return drawn_images(model, 3, seed, **({"key_values": key_values} | settings))

    plain = draw()
    assert torch.equal(plain, draw()) and not torch.equal(plain, draw(seed=1))
    assert plain.min() >= 0 and plain.max() < 256 and plain.shape == (3, 3, 8, 8)
    sure = [draw(seed, warp=warpers(1e-4, 1.0)) for seed in (0, 1)]
    assert torch.equal(*sure)  # nothing is left to chance
    assert torch.equal(draw(0, warp=warpers(1.0, 1e-6)), sure[0])
    assert len(warpers(1.0, 1.0)) == 0
    assert not torch.equal(plain, draw(key_values=model.key_values(null)))
    both = model.key_values(torch.cat([condition, null]))
    led = draw(key_values=both, guidance_scale=3.0)
    assert not torch.equal(led, plain)
    assert torch.equal(draw(key_values=model.key_values(torch.cat([condition, condition])), guidance_scale=3.0), plain)


@torch.no_grad()
def test_an_image_does_not_depend_on_those_beside_it():
    model, condition = small(), torch.randn(3, 5, CONDITION)
    chance = torch.rand(3, model.grid**2, model.values_of_patch)
    *_, together = draw_patches(model, chance, model.key_values(condition))
    *_, alone = draw_patches(model, chance[1:2], model.key_values(condition[1:2]))
    assert torch.equal(together[1], alone[0])


def test_values_are_drawn_where_a_distribution_passes_its_number():
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log().expand(5, -1)
    numbers = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.9999999])
    assert drawn_value(logits, numbers).tolist() == [0, 0, 1, 1, 2]
    short = torch.zeros(1, 3)
    assert drawn_value(short, torch.ones(1)).tolist() == [2]  # as where rounding leaves the sum below the number
    first_two = torch.tensor([[0.0, 0.0, float("-inf")]])
    assert drawn_value(first_two, torch.ones(1)).tolist() == [1]
    ruled_out = torch.tensor([[0.0, float("-inf")]] * 2)
    assert drawn_value(ruled_out, torch.tensor([0.5, 0.9999999])).tolist() == [0, 0]


def test_it_can_be_made_where_weights_take_no_memory():
    """As opening a folder does, to count what should be in it."""
    with torch.device("meta"):
        model = PixelTransformerModel(sample_size=12, **SMALL)  # a size that no other test makes
    assert model.head.weight.is_meta and model.places_of_values.device.type == "cpu"
    assert model.places_of_values.shape == (36, 12, 4) and model.places_of_values.max() == 12 * 12 * 3


def test_images_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="patches of 3 do not divide images of 8"):
        small(patch_size=3)
    with pytest.raises(ValueError, match="values are too large: 262144 at most"):
        small(sample_size=2**20)  # before anything of that size is made


def test_it_compiles_without_a_break():
    model, images, condition = small(), torch.randint(256, (2, 3, 8, 8)), torch.randn(2, 5, CONDITION)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images, condition), model(images, condition))


def test_it_comes_back_from_its_folder(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    again = PixelTransformerModel.from_pretrained(tmp_path)
    images, condition = torch.randint(256, (2, 3, 8, 8)), torch.randn(2, 5, CONDITION)
    assert torch.equal(model(images, condition), again(images, condition))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_it_learns_what_a_condition_says_and_that_neighbours_are_alike():
    """Squares of one colour on a ground of another, the ground's colour by its condition."""
    grounds, conditions = torch.tensor([[250, 10, 30], [20, 200, 90]]), torch.randn(2, 1, CONDITION)
    model = PixelTransformerModel(sample_size=8, cross_attention_dim=CONDITION, **SMALL)
    optimizers = make_optimizers(model, OptimConfig(steps=1, lr=0.02, adamw_lr=0.01))
    draws, steps = torch.Generator().manual_seed(0), 60

    def squares(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        which = torch.randint(2, (count,), generator=draws)
        images = grounds[which][..., None, None].repeat(1, 1, 8, 8)
        for image in images:
            top, left, side = torch.randint(1, 4, (3,), generator=draws).tolist()
            image[:, top : top + side, left : left + side] = torch.randint(256, (3, 1, 1), generator=draws)
        return images, which

    for step in range(steps):
        images, which = squares(32)
        model.bits_per_value(model(images, conditions[which]), images).mean().backward()
        set_lr(optimizers, min(1, (step + 1) / 10) * (1 - step / steps))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        images, which = squares(64)
        bits = [
            model.bits_per_value(model(images, one), images).mean()
            for one in (conditions[which], conditions[1 - which])
        ]
        drawn = drawn_images(model, 2, key_values=model.key_values(conditions), warp=warpers(0.5, 0.9))
    assert bits[0] < 0.6 and bits[1] > bits[0] + 0.05
    assert torch.equal(drawn[:, :, 0, 0], grounds)
