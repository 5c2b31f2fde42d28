"""The figure for fringes tells images with alpha from those that were cut out of white."""

import pyarrow.parquet as pq
import torch
from campaigns.alpha import cut_out, fringes

from attndiff.alpha import laid_over, opacity, premultiplied
from attndiff.data.pixels.normalize import Normalizer
from attndiff.folder.shipped import bundled_data


def disc(colour: float, side: int = 32) -> torch.Tensor:
    """A disc of one grey with soft edges, premultiplied."""
    places = torch.arange(side) - (side - 1) / 2
    alpha = (10 - (places[:, None].square() + places.square()).sqrt()).clamp(0, 1)
    return premultiplied(torch.stack([*[torch.full_like(alpha, colour)] * 3, alpha * 2 - 1])[None])


def test_a_soft_edge_of_one_colour_has_no_fringe_and_a_cut_one_has():
    for colour in (-0.8, 0.0, 0.6):
        real, cut = fringes(disc(colour)), fringes(cut_out(laid_over(disc(colour), 1.0)))
        assert real["pixels"] > 50 and real["brighter"] < 0.01
        assert cut["brighter"] > 2


def test_only_white_that_reaches_the_border_is_cut_out():
    images = torch.full((1, 3, 16, 16), 1.0)
    images[..., 4:12, 4:12] = -1
    images[..., 7:9, 7:9] = 1
    alpha = opacity(cut_out(images))[0, 0]
    assert (alpha[4:12, 4:12] == 1).all() and alpha.mean() == 64 / 256


def test_real_emoji_have_less_of_it_than_cut_ones():
    rows = pq.read_table(bundled_data("emoji32") / "validation.parquet").slice(0, 40).to_pylist()
    read = Normalizer(32, "RGBA")
    images = torch.stack([torch.from_numpy(read(row["image"]["bytes"])) for row in rows])
    assert fringes(images)["brighter"] < 0.5 * fringes(cut_out(laid_over(images, 1.0)))["brighter"]
