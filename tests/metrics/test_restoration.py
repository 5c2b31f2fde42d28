"""PSNR, SSIM and fills, against what is known of them."""

import pytest
import torch

from attndiff.metrics.restoration.fills import harmonic_fill, mean_fill
from attndiff.metrics.restoration.psnr import IDENTICAL, hole_psnr, luma, luma_psnr, psnr
from attndiff.metrics.restoration.ssim import luma_ssim


def grey(level: int, side: int = 16) -> torch.Tensor:
    return torch.full((1, 3, side, side), level / 127.5 - 1)


def test_luma_runs_from_16_to_235():
    assert [float(luma(grey(level)).mean()) for level in (0, 255)] == pytest.approx([16, 235], abs=1e-3)


def test_psnr_of_a_known_error():
    assert psnr(grey(100), grey(110)).item() == pytest.approx(20 * torch.log10(torch.tensor(25.5)).item(), abs=1e-4)
    assert psnr(grey(100), grey(100)).item() == IDENTICAL
    wrong = grey(100)
    wrong[..., 0, :] = 1  # a border that is left out
    assert luma_psnr(wrong, grey(100), border=1).item() == IDENTICAL > luma_psnr(wrong, grey(100), border=0).item()


def test_psnr_of_a_hole_looks_at_the_hole_alone():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :4] = 1
    made = torch.where(mask > 0, grey(110), grey(200))
    assert hole_psnr(made, grey(100), mask).item() == pytest.approx(psnr(grey(110), grey(100)).item())


def test_similarity_is_1_of_itself_and_falls_with_noise():
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    values = [luma_ssim((image + strength * noise).clamp(-1, 1), image, 2).item() for strength in (0, 0.1, 0.5)]
    assert values[0] == pytest.approx(1) and values[0] > values[1] > values[2] > 0


def test_similarity_of_two_even_images_is_that_of_their_means():
    """Wang et al. 2004: without contrast only the term of the luma is left, here (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b, c1 = (float(luma(grey(level)).mean()) for level in (80, 160)), None, (0.01 * 255) ** 2
    a, b = a
    assert luma_ssim(grey(80), grey(160), 0).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)


def test_a_harmonic_fill_is_exact_on_a_slope_and_keeps_what_is_given():
    slope = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16).clone()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:11, 5:12] = 1
    spoilt = torch.where(mask > 0, torch.zeros(()), slope)
    torch.testing.assert_close(harmonic_fill(spoilt, mask), slope, atol=5e-3, rtol=0)
    for fill in (harmonic_fill, mean_fill):
        assert torch.equal(fill(spoilt, mask) * (1 - mask), spoilt * (1 - mask))
    assert (mean_fill(spoilt, mask) - slope).abs().max() > 0.2
