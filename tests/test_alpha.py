"""Alpha: what it does to colour inside, and that files, pictures and folders of earlier models keep what they had."""

import numpy as np
import pytest
import torch
from factories import unconditional_pipeline
from golden import encode
from PIL import Image
from valued import write_dicom

from attndiff.alpha import (
    ALPHA_PEAK,
    GROUNDS,
    clipped,
    is_premultiplied,
    laid_over,
    opacity,
    premultiplied,
    straight,
)
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.pixels.normalize import Normalizer
from attndiff.data.pixels.writers import save_image, to_data_units
from attndiff.drawn import LOSSLESS, is_drawn, save_picture
from attndiff.pipelines.call.postprocess import to_output
from attndiff.viewing import CHECK, DARK, LIGHT, as_picture, contact_sheet, enlarge, laid_on

SIDE = 256


def every_pair() -> np.ndarray:
    """Every grey under every alpha ``(2, 256, 256)`` of 8 bits: grey along rows, alpha along columns."""
    return np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="xy")).astype(np.uint8)


def over(levels: np.ndarray, ground: int) -> np.ndarray:
    """Straight levels ``(C, H, W)`` over a grey ground, in levels that are not rounded."""
    alpha = levels[-1:].astype(float) / 255
    return levels[:-1] * alpha + ground * (1 - alpha)


def test_all_of_8_bits_comes_back_and_what_is_seen_is_the_same():
    levels, normalizer = every_pair(), Normalizer(SIDE, "LA")
    tensor = torch.from_numpy(normalizer.tensor(levels))
    (picture,) = to_output(tensor[None], normalizer.describe(), "pil")
    back = np.asarray(picture).transpose(2, 0, 1)
    assert picture.mode == "LA"
    np.testing.assert_array_equal(back[:, 1:], levels[:, 1:])
    assert (back[0, 0] == 255).all() and (back[1, 0] == 0).all()  # what nobody sees is white
    for ground in (0, 255):
        np.testing.assert_allclose(over(back, ground), over(levels, ground), atol=1e-9)


def test_what_a_network_makes_is_seen_within_a_level():
    made = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    (picture,) = to_output(made, Normalizer(64, "RGBA").describe(), "pil")
    levels = np.asarray(picture).transpose(2, 0, 1)
    alpha = opacity(made[0]).clamp(0, 1)
    colour = made[0, :3].maximum(-alpha).minimum(alpha)  # no more of a colour than there is alpha
    for name, ground in (("black", 0), ("white", 255)):
        expected = (laid_over(torch.cat([colour, (alpha * 2 - 1) * ALPHA_PEAK]), GROUNDS[name]) + 1) * 127.5
        assert np.abs(over(levels, ground) - expected.numpy()).max() <= 1


def test_colour_under_no_ink_does_not_matter():
    red, blue = (np.full((8, 8, 4), 0, np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 255, 255
    red[2:5, 2:5], blue[2:5, 2:5] = (10, 200, 30, 128), (10, 200, 30, 128)
    for size in (8, 6):
        one, other = (Normalizer(size, "RGBA")(encode(pixels)) for pixels in (red, blue))
        np.testing.assert_array_equal(one, other)
        assert size != 8 or one[:, 0, 0].tolist() == [0, 0, 0, -ALPHA_PEAK]


def test_errors_count_alike_on_white_and_on_black():
    one, other = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = [(laid_over(one, g) - laid_over(other, g)).square().sum() for g in GROUNDS.values()]
    error = (one - other).square()
    torch.testing.assert_close(error[:, :3].sum() + 3 / 16 * error[:, 3].sum(), sum(seen) / 2)


def test_arrays_are_multiplied_as_tensors_are():
    levels = np.random.default_rng(0).integers(0, 256, (4, 8, 8)).astype(np.uint8)
    tensor = torch.from_numpy(levels.astype(np.float32) / 127.5 - 1)
    torch.testing.assert_close(torch.from_numpy(Normalizer(8, "RGBA").tensor(levels)), premultiplied(tensor))
    assert is_premultiplied(Normalizer(8, "RGBA").describe()) and not is_premultiplied(Normalizer(8, 4).describe())


def test_straight_clips_colour_to_alpha():
    beyond = torch.tensor([0.9, -0.9, 0.1, 0.0]).view(4, 1, 1)  # half opaque, and more than half of a colour
    assert straight(beyond).flatten().tolist() == pytest.approx([1, -1, 0.2, 0])
    assert clipped(torch.full((4, 1, 1), 3.0), alpha=True).flatten().tolist() == [1, 1, 1, ALPHA_PEAK]


@pytest.mark.parametrize("bits", [16, 32])
def test_deeper_images_keep_their_alpha(bits, tmp_path):
    normalizer = Normalizer(6, "RGBA")
    data = normalizer.describe(bits)
    values = np.random.default_rng(0).uniform(0.001, 1, (4, 6, 6))
    levels = (values * 65535).astype(np.uint16) if bits == 16 else values.astype(np.float32)
    tensor = normalizer.tensor(levels)
    array = to_data_units(tensor, data)
    path = save_image(array, tmp_path / "deep", data)
    np.testing.assert_allclose(normalizer(path), tensor, atol=1e-6)
    (unpacked,) = to_output(torch.from_numpy(tensor)[None], data, "pil")
    np.testing.assert_allclose(unpacked, array, rtol=1e-6)


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", ["LA", "RGBA"])
def test_files_keep_alpha(suffix, channels, tmp_path):
    normalizer = Normalizer(8, channels)
    levels = np.random.default_rng(0).integers(0, 256, (len(channels), 8, 8)).astype(np.uint8)
    (picture,) = to_output(torch.from_numpy(normalizer.tensor(levels))[None], normalizer.describe(), "pil")
    assert picture.mode == channels
    save_picture(picture, tmp_path / f"one{suffix}")
    array = to_data_units(normalizer.tensor(levels), normalizer.describe())
    assert save_image(array, tmp_path / f"other{suffix}", normalizer.describe()).suffix == suffix
    for name in ("one", "other"):
        assert is_drawn(tmp_path / f"{name}{suffix}")
        seen = levels[-1] > 0
        back = normalizer.normalize(tmp_path / f"{name}{suffix}").levels
        np.testing.assert_array_equal(back[:, seen], levels[:, seen])
        np.testing.assert_array_equal(back[-1], levels[-1])


@pytest.mark.parametrize(("channels", "ink", "colour"), [("LA", "black", [0]), ("RGBA", "#204060", [32, 64, 96])])
@pytest.mark.parametrize("size", [16, 8])
def test_darkness_becomes_ink(channels, ink, colour, size):
    drawing = np.full((16, 16), 255, np.uint8)
    drawing[4:12, 4:12] = np.arange(0, 256, 4).reshape(8, 8)
    image = Normalizer(size, channels, ink=ink).normalize(encode(drawing))
    plain = Normalizer(size, "L").normalize(encode(drawing)).levels
    assert np.abs(image.levels[-1].astype(int) - (255 - plain[0])).max() <= (size != 16)
    seen = image.levels[-1] > 0
    np.testing.assert_array_equal(image.levels[:-1, seen], np.tile(colour, (seen.sum(), 1)).T)
    assert "darkness made alpha" in image.notes
    assert Normalizer(size, channels, ink=ink).describe()["ink"] == ink


def test_drawings_in_colour_and_with_alpha_become_ink_too():
    drawing = np.zeros((4, 4, 4), np.uint8)
    drawing[1:3, 1:3] = (0, 0, 255, 255)
    levels = Normalizer(4, "LA", ink="black")
    alpha = levels.normalize(encode(drawing)).levels[1]
    assert alpha[0, 0] == 0 and alpha[1, 1] == round(255 * (1 - 0.114))


def test_folders_of_straight_alpha_give_what_they_gave():
    data = {"channels": [*"RGBA"], "bit_depth": 8, "value_range": [0, 255], "class_names": None, "size": [16, 16]}

    def call(pipeline, output_type):
        generator = torch.Generator().manual_seed(0)
        return pipeline(num_inference_steps=2, generator=generator, output_type=output_type).images

    earlier = unconditional_pipeline(4, data)
    latents = call(earlier, "latent")
    expected = ((latents.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()[0]
    assert np.abs(np.asarray(call(earlier, "pil")[0], int) - expected).max() <= 1
    now = unconditional_pipeline(4, {**data, "alpha": "premultiplied"})
    torch.testing.assert_close(call(now, "latent"), latents)
    torch.testing.assert_close(call(now, "pt") * 2 - 1, straight(latents))
    assert isinstance(call(unconditional_pipeline(2, {**data, "channels": [*"LA"]}), "pil")[0], np.ndarray)


def test_grids_lay_alpha_over_squares_or_a_colour():
    clear, half = (Image.new("RGBA", (32, 32), (255, 0, 0, alpha)) for alpha in (0, 128))
    squares = np.asarray(enlarge(clear, 96))[..., 0]
    assert squares.shape == (96, 96) and squares[::CHECK, ::CHECK][:2, :3].tolist() == [
        [LIGHT, DARK, LIGHT],
        [DARK, LIGHT, DARK],
    ]
    assert (squares[:CHECK, :CHECK] == LIGHT).all()
    assert np.asarray(laid_on(as_picture(half), "black"))[0, 0].tolist() == [128, 0, 0]
    assert np.asarray(enlarge(clear.convert("LA"), 8, ground="white")).min() == 255
    one, other = (np.asarray(contact_sheet({"": [clear]}, [""], ground=g)) for g in (None, "white"))
    assert other.min() == 255 and one.min() == DARK


def test_alpha_has_no_units(tmp_path):
    for i in range(2):
        write_dicom(tmp_path / f"{i}.dcm", np.full((8, 8), 100 + i, np.uint16))
    known = ImageSet(DataConfig(path=str(tmp_path), size=8, channels="L")).describe()
    assert known["units"] == "HU" and known["bit_depth"] == 32
    with_alpha = ImageSet(DataConfig(path=str(tmp_path), size=8, channels="LA")).describe()
    assert "units" not in with_alpha and with_alpha["value_range"] == [0, 65535] and with_alpha["bit_depth"] == 16
