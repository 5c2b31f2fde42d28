"""Every attention backend at the shapes of presets and of other kinds: its error, and its time.

Errors are the largest difference from `reference_attention`, softmax attention written out, in float32 on the same
numbers, over the largest value of the reference; of the gradients the worst of query, key and value.
"""

import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn

from attndiff.apps.bench.network import TOKENS
from attndiff.apps.bench.timing import seconds_of
from attndiff.nn.attention import additive_mask, causal_mask, reference_attention
from attndiff.nn.kinds.arrangement import Arrangement
from attndiff.nn.level import ATTENTION_KINDS, Level
from attndiff.nn.presets import PRESETS

BACKENDS = ("native", "_native_math", "_native_efficient", "_native_flash", "_native_cudnn", "xformers", "flash")
REFERENCE = "reference"
# Attention to what is before a token, and how many tokens ask; None for all: of a sequence, of one among padding, and
# of some tokens after those in a cache.
OF_DECODERS = {"causal": None, "causal, padded": None, "causal, cached": 8}
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """One attention call of a preset.

    Args:
        preset: Name in `PRESETS`, or ``"none"`` for a kind that none of those measured has.
        size: Image side in pixels.
        kind: Of an arrangement of the pixels, such as ``"global"`` or ``"window"``, or ``"cross"``; of a decoder, one
            of `OF_DECODERS`.
        groups: Sequences of an image: 1, or its windows.
        queries: Tokens of a sequence.
        keys: Tokens attended to.
        heads: Heads.
        head_dim: Channels a head.
    """

    preset: str
    size: int
    kind: str
    groups: int
    queries: int
    keys: int
    heads: int
    head_dim: int


def preset_shapes(preset: str, size: int) -> Iterator[Shape]:
    """The attention calls of a preset at an image size, each once."""
    unet = PRESETS[preset]["unet"]
    side = size // unet.get("patch_size", 2)
    for i, level in enumerate(Level(**settings) for settings in unet["levels"]):
        rows, heads = side >> i, level.width // unet["head_dim"]
        if level.self_attention:
            yield self_attention_shape(preset, size, level.arrangements(rows, rows)[0], heads, unet["head_dim"])
        if level.cross_attention:
            yield Shape(preset, size, "cross", 1, rows**2, TOKENS, heads, unet["head_dim"])


def self_attention_shape(preset: str, size: int, pixels: Arrangement, heads: int, head_dim: int) -> Shape:
    """The attention call of an arrangement."""
    return Shape(preset, size, pixels.kind, pixels.sequences, pixels.length, pixels.keys, heads, head_dim)


def kind_shapes(size: int, known: Collection[str]) -> Iterator[Shape]:
    """The attention calls of the kinds of self-attention beside those known, at the level of every other pixel."""
    rows = size // 2
    for level in (Level(width=128, attention=kind) for kind in ATTENTION_KINDS):
        if level.self_attention:
            pixels = level.arrangements(rows, rows)[0]
            if pixels.kind not in known:
                yield self_attention_shape("none", size, pixels, heads=4, head_dim=32)


def decoder_shapes(size: int) -> Iterator[Shape]:
    """The attention calls of a decoder over all patches of 2 x 2 pixels of an image."""
    tokens = (size // 2) ** 2
    for kind, queries in OF_DECODERS.items():
        yield Shape("none", size, kind, 1, queries or tokens, tokens, heads=6, head_dim=32)


def measure_attention(
    device: str,
    presets: tuple[str, ...] = ("xs", "s"),
    sizes: tuple[int, ...] = (32, 64),
    images: int | None = None,
    repeats: int = 10,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """A row for every shape of the presets and of the kinds that they do not have, precision and backend.

    It has ``forward_error`` and ``backward_error``, ``forward_seconds`` and ``both_seconds`` (median), or why it is
    ``unavailable``; the fastest of a shape's backends has ``fastest``.
    """
    images = images or (8 if device == "cpu" else 256)
    rows = []
    shapes = [shape for preset in presets for size in sizes for shape in preset_shapes(preset, size)]
    shapes += [shape for size in sizes for shape in kind_shapes(size, {shape.kind for shape in shapes})]
    shapes += [shape for size in sizes for shape in decoder_shapes(size)]
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            block = [measure_backend(name, shape, dtype, device, images, repeats) for name in (REFERENCE, *BACKENDS)]
            mark_fastest(block)
            rows += block
        say(f"{shape.preset} at {shape.size} px, {shape.kind}: {fastest_of(block)} is fastest in bfloat16")
    return rows


def measure_backend(backend: str, shape: Shape, dtype: torch.dtype, device: str, images: int, repeats: int) -> dict:
    """One row of the table."""
    row = asdict(shape) | {"backend": backend, "dtype": str(dtype).removeprefix("torch."), "images": images}
    qkv, mask = make_inputs(shape, dtype, device, images)
    row["masked"] = mask is not None
    expected = outputs(lambda q, k, v: reference_attention(q, k, v, mask), [t.detach().float() for t in qkv])
    attend = make_attend(backend, mask, dtype, is_causal=shape.kind == "causal")
    try:
        actual = outputs(attend, qkv)
    except Exception as error:  # whatever a backend says that does not run here, or not with this mask
        return row | {"unavailable": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    errors = [relative_error(ours, reference) for ours, reference in zip(actual, expected, strict=True)]
    row |= {"forward_error": errors[0], "backward_error": max(errors[1:])}
    row["forward_seconds"] = _median(lambda: _without_gradients(attend, qkv), device, repeats)
    row["both_seconds"] = _median(lambda: outputs(attend, qkv), device, repeats)
    return row


def make_inputs(
    shape: Shape, dtype: torch.dtype, device: str, images: int
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Normalised queries, keys and values ``(B, L, H, D)``, and a mask, ``(B, S)`` or ``(B, L, S)``, or None."""
    generator = torch.Generator().manual_seed(0)
    batch = images * shape.groups
    lengths = (shape.queries, shape.keys, shape.keys)
    qkv = [torch.randn(batch, n, shape.heads, shape.head_dim, generator=generator) for n in lengths]
    mask = make_mask(shape, batch)
    return [t.to(device, dtype).requires_grad_() for t in qkv], mask if mask is None else mask.to(device)


def make_mask(shape: Shape, batch: int) -> torch.Tensor | None:
    """Which keys count: those of texts of all lengths, and what is before a token."""
    if shape.kind not in ("cross", *OF_DECODERS):
        return None
    counts = 1 + torch.arange(batch) % shape.keys  # one token at least
    whole = shape.kind in ("causal", "causal, cached")
    counting = (torch.arange(shape.keys) < counts[:, None]) | whole
    return counting if shape.kind == "cross" else causal_mask(counting, shape.queries)


def make_attend(backend: str, mask: torch.Tensor | None, dtype: torch.dtype, is_causal: bool) -> Attend:
    """A backend as a function of query, key and value; of causal attention it is told by name, without a mask."""
    if backend == REFERENCE:
        return lambda q, k, v: reference_attention(q, k, v, mask)
    bias = None if mask is None or is_causal else additive_mask(mask, dtype)
    return lambda q, k, v: dispatch_attention_fn(q, k, v, attn_mask=bias, is_causal=is_causal, backend=backend)


def outputs(attend: Attend, qkv: list[torch.Tensor]) -> list[torch.Tensor]:
    """The result and the gradients of query, key and value for one fixed upstream gradient."""
    qkv = [t.detach().requires_grad_() for t in qkv]
    out = attend(*qkv)
    upstream = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype).expand_as(out)
    return [out.detach(), *torch.autograd.grad(out, qkv, upstream)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((actual.float() - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def _without_gradients(attend: Attend, qkv: list[torch.Tensor]) -> torch.Tensor:
    return attend(*qkv)


def _median(step: Callable[[], object], device: str, repeats: int) -> float:
    step()
    return statistics.median(seconds_of(step, device) for _ in range(repeats))


def mark_fastest(block: list[dict]) -> None:
    """Note in the rows of one shape and precision which backend takes least time for both passes."""
    timed = [row for row in block if "both_seconds" in row and row["backend"] != REFERENCE]
    if timed:
        min(timed, key=lambda row: row["both_seconds"])["fastest"] = True


def fastest_of(block: list[dict]) -> str:
    """The name of the marked backend."""
    return next((row["backend"] for row in block if row.get("fastest")), "none")


def attention_markdown(rows: list[dict]) -> str:
    """The rows as a table."""
    lines = [
        "| preset | px | attention | dtype | backend | forward error | backward error | forward ms | both ms |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        kind = f"{row['kind']} {row['queries']}x{row['keys']}, {row['heads']} heads of {row['head_dim']}"
        start = f"| {row['preset']} | {row['size']} | {kind} | {row['dtype']} | {row['backend']} "
        if "unavailable" in row:
            lines.append(f"{start}| unavailable: {row['unavailable'][:80]} | | | |")
            continue
        times = f"{1e3 * row['forward_seconds']:.3f} | {1e3 * row['both_seconds']:.3f}"
        lines.append(
            f"{start}| {row['forward_error']:.1e} | {row['backward_error']:.1e} | {times}"
            f"{' (fastest)' if row.get('fastest') else ''} |"
        )
    return "\n".join(lines)
