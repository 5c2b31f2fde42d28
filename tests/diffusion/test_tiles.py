"""Tiles: they cover every image, agree with the whole where that is the same, and leave no edge."""

import pytest
import torch

from attndiff.diffusion.tiles import TiledNetwork, Tiles

SIDE, OVERLAP, MULTIPLE = 32, 8, 8


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 40), (56, 200), (128, 24)])
def test_tiles_cover_an_image_begin_at_multiples_and_share_pixels(height, width):
    tiles = Tiles(height, width, SIDE, OVERLAP, MULTIPLE)
    seen = torch.zeros(height, width)
    for tile in tiles:
        seen[tile] += 1
        assert tiles.weights(tile).shape == seen[tile].shape and tiles.weights(tile).min() > 0
        assert all(part.start % MULTIPLE == 0 and part.stop - part.start <= SIDE for part in tile[1:])
    assert seen.min() >= 1 and len(tiles) == len(list(tiles))
    for axis, length in ((1, height), (2, width)):
        parts = sorted({(tile[axis].start, tile[axis].stop) for tile in tiles})
        assert parts[0][0] == 0 and parts[-1][1] == length
        assert all(end - start >= OVERLAP for (_, end), (start, _) in zip(parts, parts[1:]))


def test_where_no_pixel_depends_on_others_tiles_are_as_the_whole():
    x = torch.randn(2, 3, 72, 104, generator=torch.Generator().manual_seed(0))
    network = TiledNetwork(Tiles(72, 104, SIDE, OVERLAP, MULTIPLE), lambda tile: lambda part, level: part.sin() * level)
    torch.testing.assert_close(network(x, torch.tensor(2.0)), 2 * x.sin())


def test_one_tile_is_the_whole_to_the_last_bit():
    x = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    network = TiledNetwork(Tiles(24, 32, SIDE, OVERLAP, MULTIPLE), lambda tile: lambda part, level: part / 3)
    assert torch.equal(network(x, torch.tensor(1.0)), x / 3)


def test_tiles_that_disagree_leave_no_edge():
    """Black and white tiles in turn: from one to the other in as many pixels as they share."""
    tiles = Tiles(32, 128, SIDE, OVERLAP, MULTIPLE)
    number = {tile[2].start: i for i, tile in enumerate(tiles)}
    network = TiledNetwork(tiles, lambda tile: lambda part, level: torch.full_like(part, number[tile[2].start] % 2))
    found = network(torch.zeros(1, 1, 32, 128), torch.tensor(1.0))[0, 0, 16]
    assert found.min() == 0 and found.max() == 1
    assert found.diff().abs().max() <= 1 / OVERLAP + 1e-6
