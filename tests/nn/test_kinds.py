"""Kinds of self-attention: which pixels attend to which, beside attention written out over the whole image."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from attndiff.apps.bench.attention import preset_shapes
from attndiff.lens.record import AttentionRecorder
from attndiff.nn.attention import Attention
from attndiff.nn.kinds import window_attention
from attndiff.nn.kinds.arrangement import Arrangement, attend, make_sequences
from attndiff.nn.kinds.coarse_window_attention import CoarseWindows, cell_side
from attndiff.nn.kinds.global_attention import WholeImage
from attndiff.nn.kinds.routed_attention import RoutedWindows
from attndiff.nn.kinds.window_attention import Windows, join_windows, split_windows, window_side
from attndiff.nn.level import ATTENTION_KINDS, Level
from attndiff.nn.presets import PRESETS
from attndiff.nn.rope import axial_angles, cos_sin, rotate
from attndiff.nn.unet import AttentionUNet2DModel

BATCH, CHANNELS, HEAD_DIM = 2, 16, 8
BACKENDS = ("native", "_native_math", "xformers")


def make_attention() -> Attention:
    """A layer that does not output the zeros of a fresh one."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        attn = Attention(CHANNELS, HEAD_DIM)
        for parameter in attn.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return attn


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(BATCH, height, width, CHANNELS, generator=torch.Generator().manual_seed(1), requires_grad=True)


def arranged(attn: Attention, arrangement: Arrangement, x: torch.Tensor) -> torch.Tensor:
    """Self-attention of ``x (B, H, W, C)``, as blocks call it."""
    return attend(attn, x, make_sequences(arrangement, len(x), HEAD_DIM, x))


def written_out(attn: Attention, x: torch.Tensor, together: torch.Tensor) -> torch.Tensor:
    """Attention of every pixel to those that ``together (H * W, H * W)`` says, and no others."""
    height, width = x.shape[1:3]
    query, key, value = attn.query_key_value(x.flatten(1, 2))
    by = cos_sin(axial_angles(height, width, HEAD_DIM, x.device)[None])
    logits = torch.einsum("blhd,bshd->bhls", rotate(query, by), rotate(key, by)) * HEAD_DIM**-0.5
    weights = logits.masked_fill(~together, float("-inf")).softmax(-1)
    out = torch.einsum("bhls,bshd->blhd", weights, value).flatten(2)
    return attn.to_out[0](out).unflatten(1, (height, width))


def written_out_with_cells(attn: Attention, x: torch.Tensor, together: torch.Tensor) -> torch.Tensor:
    """The same, and in the same softmax of every pixel to the means of the cells of the image."""
    height, width = x.shape[1:3]
    rows, columns = (torch.arange(side) // cell_side(side) for side in (height, width))
    cell = (rows[:, None] * (columns[-1] + 1) + columns).flatten()
    share = F.one_hot(cell).T.float()
    share = share / share.sum(1, keepdim=True)  # (M, H * W)
    angles = axial_angles(height, width, HEAD_DIM, x.device)
    query, key, value = attn.query_key_value(x.flatten(1, 2))
    _, cell_key, cell_value = attn.query_key_value(share @ x.flatten(1, 2))
    place, cell_place = cos_sin(angles[None]), cos_sin((share @ angles)[None])
    key = torch.cat([rotate(key, place), rotate(cell_key, cell_place)], 1)
    allowed = torch.cat([together, torch.ones(len(together), len(share), dtype=torch.bool)], 1)
    logits = torch.einsum("blhd,bshd->bhls", rotate(query, place), key) * HEAD_DIM**-0.5
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1)
    out = torch.einsum("bhls,bshd->blhd", weights, torch.cat([value, cell_value], 1)).flatten(2)
    return attn.to_out[0](out).unflatten(1, (height, width))


def routed_groups(attn: Attention, x: torch.Tensor, windows: Windows, routes: int) -> torch.Tensor:
    """``(B, 1, H * W, H * W)`` bool: whether a pixel's window is among the best for that of another."""
    height, width = x.shape[1:3]
    rows, columns = (groups(side, w, False) for side, w in zip((height, width), windows.window, strict=True))
    member = F.one_hot((rows[:, None] * (columns[-1] + 1) + columns).flatten()).float()  # (H * W, N)
    query, key, _ = attn.query_key_value(x.flatten(1, 2))
    means = [torch.einsum("pn,bphd->bnhd", member / member.sum(0), part).flatten(2) for part in (query, key)]
    best = torch.einsum("bnc,bmc->bnm", *means).argsort(-1, descending=True)[..., :routes]
    chosen = F.one_hot(best, member.shape[1]).sum(2).float()  # (B, N, N)
    return (member @ chosen @ member.T > 0)[:, None]


def window_groups(windows: Windows) -> torch.Tensor:
    """``(H * W, H * W)`` bool: which pixels share a window."""
    sides = zip((windows.height, windows.width), windows.window, strict=True)
    rows, columns = (groups(side, w, windows.dilated) for side, w in sides)
    group = (rows[:, None] * 100 + columns).flatten()
    return group[:, None] == group


def groups(side: int, window: int, dilated: bool) -> torch.Tensor:
    """Number ``(side,)`` of the window, or of the dilated grid, that every row or column is in."""
    count = -(-side // window)
    place = torch.arange(side) + (count * window - side) // 2
    return place % count if dilated else place // window


def outcome(make, attn: Attention, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of the input and of all weights."""
    out = make()
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *attn.parameters()])]


@pytest.mark.parametrize("dilated", [False, True], ids=["windows", "dilated"])
@pytest.mark.parametrize(
    ("height", "width"), [(16, 8), (17, 17), (19, 23), (34, 8), (9, 11)], ids=lambda side: str(side)
)
def test_windows_are_attention_among_their_pixels(height, width, dilated):
    """Values and gradients, with padding and without."""
    attn, x, windows = make_attention(), image(height, width), Windows(height, width, 8, dilated)
    expected = outcome(lambda: written_out(attn, x, window_groups(windows)), attn, x)
    actual = outcome(lambda: arranged(attn, windows, x), attn, x)
    for ours, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dilated", [False, True], ids=["windows", "dilated"])
@pytest.mark.parametrize(("height", "width"), [(16, 8), (17, 19), (1, 9)], ids=str)
def test_coarse_windows_are_attention_among_their_pixels_and_all_cells(height, width, dilated, backend, xformers):
    """Values and gradients on every backend, with padding and without."""
    attn, x, windows = make_attention(), image(height, width), CoarseWindows(height, width, 8, dilated)
    expected = outcome(lambda: written_out_with_cells(attn, x, window_groups(windows)), attn, x)
    attn.processor._attention_backend = backend
    actual = outcome(lambda: arranged(attn, windows, x), attn, x)
    for ours, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 19), (5, 7)], ids=str)
def test_routed_windows_are_attention_to_the_windows_that_fit_best(height, width, backend, xformers):
    """Values and gradients on every backend, with padding and without; a lone window attends to itself."""
    attn, x, windows = make_attention(), image(height, width), RoutedWindows(height, width, 8)
    together = routed_groups(attn, x, windows, 2)
    assert (together[0] != together[1]).any() == (height > 8)
    expected = outcome(lambda: written_out(attn, x, together), attn, x)
    attn.processor._attention_backend = backend
    actual = outcome(lambda: arranged(attn, windows, x), attn, x)
    for ours, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("side", "cell", "cells"), [(1, 1, 1), (4, 2, 2), (9, 2, 5), (16, 2, 8), (17, 3, 6), (64, 8, 8)]
)
def test_cells_are_coarse_and_few(side, cell, cells):
    windows = CoarseWindows(side, side, 8, dilated=False)
    assert (windows.cell, windows.shared_length) == ((cell, cell), cells**2)
    angles = windows.shared_angles(HEAD_DIM, torch.device("cpu"))
    last = axial_angles(side, side, HEAD_DIM, angles.device)[-1]
    assert angles.shape == (1, cells**2, HEAD_DIM // 4)
    torch.testing.assert_close(angles[0, 0], last * (cell - 1) / 2 / max(side - 1, 1))
    torch.testing.assert_close(angles[0, -1], last * ((cells - 1) * cell + side - 1) / 2 / max(side - 1, 1))


def test_global_attention_is_attention_among_all_pixels():
    attn, x = make_attention(), image(5, 7)
    expected = outcome(lambda: written_out(attn, x, torch.ones(35, 35, dtype=torch.bool)), attn, x)
    for ours, reference in zip(outcome(lambda: arranged(attn, WholeImage(5, 7), x), attn, x), expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["window", "window_coarse", "routed"])
@pytest.mark.parametrize("block", [0, 1])
def test_what_is_in_the_padding_reaches_no_pixel(kind, block, monkeypatch):
    """Not by a bit, forwards or backwards."""

    def pad(x, widths):
        return F.pad(x, widths, value=100.0 if x.is_floating_point() else 0)

    arrangements = Level(width=16, attention=kind).arrangements(17, 19)
    attn, x, windows = make_attention(), image(17, 19), arrangements[block % len(arrangements)]
    expected = outcome(lambda: arranged(attn, windows, x), attn, x)
    monkeypatch.setattr(window_attention, "F", SimpleNamespace(pad=pad))
    assert (windows.split(x) == 100).any()
    actual = outcome(lambda: arranged(attn, windows, x), attn, x)
    assert all(torch.equal(ours, before) for ours, before in zip(actual, expected, strict=True))


@pytest.mark.parametrize("at_most", [2, 4, 7, 8])
def test_windows_are_even_at_every_size(at_most):
    """All are at least half full, and dilated grids miss one row and one column at most."""
    device = torch.device("cpu")
    for side in range(1, 130):
        window = window_side(side, at_most)
        assert min(side, (at_most + 1) // 2) <= window <= at_most and (window > 1 or side == 1)
        for dilated in (False, True):
            windows = Windows(side, 1, at_most, dilated)
            full = windows.pixels(device)
            assert (full is None) == (side % window == 0)
            if full is not None:
                assert full.sum() == side
                assert full.sum(1).min() >= (window - 1 if dilated else window / 2)


@pytest.mark.parametrize("size", [32, 64, 96, 128, 160, 192, 256, 320, 384, 512])
def test_sides_that_divide_well_keep_their_windows(size):
    for side in (size // 4, size // 8):
        windows = Windows(side, side, 8, dilated=False)
        assert windows.pixels(torch.device("cpu")) is None
        assert windows.window[0] == next(d for d in (8, 7, 6, 5, 4) if side % d == 0)


def test_tables_of_angles_are_made_for_one_image():
    """Those of a batch are the same, and are not repeated."""
    sequences = make_sequences(Windows(16, 24, 8, dilated=True), 5, HEAD_DIM, torch.zeros(1))
    assert [tuple(part.shape) for part in sequences.rotation] == [(6, 64, 1, HEAD_DIM // 4)] * 2
    assert sequences.mask is None


@pytest.mark.parametrize("dilated", [False, True])
def test_windows_join_what_they_split(dilated):
    x = torch.randn(2, 6, 8, 3)
    windows = split_windows(x, (3, 2), dilated)
    assert windows.shape == (2 * 8, 6, 3)
    assert torch.equal(join_windows(windows, (6, 8), (3, 2), dilated), x)
    first = x[0, ::2, ::4] if dilated else x[0, :3, :2]
    assert torch.equal(windows[0], first.flatten(0, 1))


class Rows(WholeImage):
    """Each row of an image attends to itself."""

    kind = "rows"

    def __init__(self, height: int, width: int):
        super().__init__(height, width)
        self.sequences, self.length = height, width

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(0, 1)

    def join(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (-1, self.height))

    def angles(self, head_dim: int, device: torch.device) -> torch.Tensor:
        return axial_angles(self.height, self.width, head_dim, device).unflatten(0, (self.height, self.width))


def test_a_new_kind_is_one_entry(monkeypatch):
    """The network trains with it, the lens and the table of speeds know it."""
    monkeypatch.setitem(ATTENTION_KINDS, "rows", lambda height, width, window, max_tokens: [Rows(height, width)])
    levels = [{"width": 16, "depth": 2, "attention": "rows", "cross_attention": True}]
    unet = AttentionUNet2DModel(levels=levels, head_dim=8, embedding_dim=16, cross_attention_dim=16, patch_size=1)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for conv in (unet.stem, unet.head):  # centre tap only
            conv.weight.copy_(F.pad(conv.weight[..., 1:2, 1:2], (1, 1, 1, 1)))
    sample = torch.randn(1, 3, 4, 6, requires_grad=True)
    with AttentionRecorder(unet) as recorder:
        unet(sample, torch.zeros(1), torch.randn(1, 5, 16)).sample[0, :, 1].sum().backward()
    assert (sample.grad[0].abs().sum(0) > 0).sum(1).tolist() == [0, 6, 0, 0]
    assert recorder.maps().averaged().shape == (1, 5, 4, 6)
    monkeypatch.setitem(PRESETS, "rows", {"unet": {"levels": levels, "head_dim": 8, "patch_size": 1}})
    own, cross = preset_shapes("rows", 6)
    assert (own.kind, own.groups, own.queries, own.keys) == ("rows", 6, 6, 6) and cross.kind == "cross"


@pytest.mark.parametrize("kind", ATTENTION_KINDS)
def test_every_kind_gives_back_the_image(kind):
    level = Level(width=16, attention=kind, max_tokens=64)
    assert level.attends == level.self_attention == (kind != "none")
    for height, width in [(8, 8), (17, 12)] if level.self_attention else []:
        x = image(height, width)
        for arrangement in level.arrangements(height, width):
            sequences = arrangement.split(x)
            assert sequences.shape == (BATCH * arrangement.sequences, arrangement.length, CHANNELS)
            assert torch.equal(arrangement.join(sequences), x)
            angles = arrangement.angles(HEAD_DIM, x.device)
            assert angles.shape == (arrangement.sequences, arrangement.length, HEAD_DIM // 4)
