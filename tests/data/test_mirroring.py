"""What is said of an image that training mirrors."""

import numpy as np
import pytest
from PIL import Image

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.sides import of_mirrored
from attndiff.data.subset import Subset


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("arrow right, lucide", "arrow left, lucide"),
        ("Left-facing fist", "Right-facing fist"),
        ("walks to the left, a bag in its right hand", "walks to the right, a bag in its left hand"),
        ("leftwards arrow, rightmost", "rightwards arrow, leftmost"),
        ("upright copyright, bright leftovers", "upright copyright, bright leftovers"),
        ("rIGHT", "rIGHT"),
        ("pizza", "pizza"),
    ],
)
def test_left_and_right_change_places(caption, mirrored):
    assert of_mirrored(caption) == mirrored and of_mirrored(mirrored) == caption


def test_a_mirrored_row_says_what_it_shows(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("white on the left")
    images = ImageSet(DataConfig(path=str(tmp_path), size=8, caption_column="text"))
    for rows in (images, Subset(images, [1])):
        mirrored = rows[0].mirrored()
        assert mirrored["caption"] == ["white on the right"] and rows[0]["caption"] == ["white on the left"]
        assert (mirrored["image"][:, :, 4:] == 1).all() and (mirrored["image"][:, :, :4] == -1).all()
