"""Pictures people look at: grids of samples with their captions, and curves."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attndiff.drawn import SOFTWARE

CELL = 96
GAP = 6
LINE = 80  # letters of a text beside an image
CHECK = 8  # pixels a side of the squares of a checkered ground
LIGHT, DARK = 255, 204  # their greys


Window = tuple[float, float] | None


def window_of(data: dict | None) -> Window:
    """What is shown as black and as white of floating point samples: the range that the data was learned over.

    Integers, whose range is their type's and seldom that of the data, have none.

    Args:
        data: What a pipeline keeps about its data.
    """
    return tuple(data["value_range"]) if data and data.get("bit_depth", 8) == 32 else None


def as_picture(image: Image.Image | np.ndarray, window: Window = None) -> Image.Image:
    """Any sample as a picture, RGB or RGBA; of N bands the first three.

    Args:
        image: A picture, or an array ``(H, W, C)``.
        window: What of an array is black and what is white; None: its least and greatest value.
    """
    if isinstance(image, Image.Image):
        if image.mode in ("I;16", "I", "F"):
            return as_picture(np.asarray(image)[..., None], window)
        return image.convert("RGBA" if image.mode in ("RGBA", "LA", "PA") else "RGB")
    bands = np.asarray(image, dtype=np.float64)[..., :3]
    if bands.shape[-1] < 3:
        bands = np.repeat(bands[..., :1], 3, axis=-1)
    low, high = window or (bands.min(), bands.max())
    shares = (bands - low) / ((high - low) or 1)
    return Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8))


def laid_on(picture: Image.Image, ground: str | None = None) -> Image.Image:
    """A picture as RGB, its alpha over a ground.

    Args:
        picture: Of `as_picture`.
        ground: A colour; None: squares of light and grey.
    """
    if picture.mode == "RGB":
        return picture
    under = _checkered(picture.size) if ground is None else Image.new("RGBA", picture.size, ground)
    return Image.alpha_composite(under, picture).convert("RGB")


def _checkered(size: tuple[int, int]) -> Image.Image:
    """Squares, RGBA of a width and height."""
    rows, columns = (np.arange(length) // CHECK for length in reversed(size))
    return Image.fromarray(np.where((rows[:, None] + columns) % 2, DARK, LIGHT).astype(np.uint8)).convert("RGBA")


def enlarge(
    image: Image.Image | np.ndarray, cell: int = CELL, window: Window = None, ground: str | None = None
) -> Image.Image:
    """A sample as RGB scaled to fit a cell, small ones by whole factors so that pixels stay crisp, see `laid_on`."""
    picture = as_picture(image, window)
    factor = cell / max(picture.size)
    factor = int(factor) if factor >= 2 else factor
    size = [max(1, round(side * factor)) for side in picture.size]
    scaled = picture.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)
    return laid_on(scaled, ground)


def contact_sheet(
    rows: dict[str, list],
    captions: list[str],
    cell: int = CELL,
    window: Window = None,
    ground: str | None = None,
) -> Image.Image:
    """Rows of samples with a label at the left of each and a caption over each column.

    Args:
        rows: Samples by row label; all rows as long as ``captions``.
        captions: One a column.
        cell: Side of a sample's cell in pixels.
        window: As of `as_picture`.
        ground: As of `laid_on`.
    """
    font = ImageFont.load_default(12)
    left = max([0, *(int(font.getlength(label)) + 2 * GAP for label in rows if label)])
    wrapped = ["\n".join(textwrap.wrap(caption, max(8, cell // 7))[:3]) for caption in captions]
    top = GAP + (15 * max((text.count("\n") + 1 for text in wrapped if text), default=0))
    width = left + len(captions) * (cell + GAP) + GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (cell + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(wrapped):
        center = left + column * (cell + GAP) + GAP + cell // 2
        draw.multiline_text((center, GAP // 2), text, "black", font, anchor="ma", align="center")
    for row, (label, images) in enumerate(rows.items()):
        y = top + row * (cell + GAP)
        draw.text((GAP, y + cell // 2), label, "black", font, anchor="lm")
        for column, image in enumerate(images):
            picture = enlarge(image, cell, window, ground)
            offset = [(cell - side) // 2 for side in picture.size]
            sheet.paste(picture, (left + column * (cell + GAP) + GAP + offset[0], y + offset[1]))
    return sheet


def captioned_sheet(
    images: list, texts: dict[str, list[str]], cell: int = CELL, window: Window = None, ground: str | None = None
) -> Image.Image:
    """Images below each other, each with texts beside it.

    Args:
        images: Samples.
        texts: By the label of each kind, one an image.
        cell: Side of an image's cell in pixels.
        window: As of `as_picture`.
        ground: As of `laid_on`.
    """
    font = ImageFont.load_default(12)
    left = cell + 2 * GAP
    right = left + max(int(font.getlength(label)) for label in texts) + 2 * GAP
    blocks = [[(label, textwrap.wrap(of[i], LINE) or [""]) for label, of in texts.items()] for i in range(len(images))]
    heights = [max(cell, 15 * sum(len(lines) for _, lines in block)) + GAP for block in blocks]
    sheet = Image.new("RGB", (right + 7 * LINE, sum(heights) + GAP), "white")
    draw, y = ImageDraw.Draw(sheet), GAP
    for image, block, height in zip(images, blocks, heights, strict=True):
        sheet.paste(enlarge(image, cell, window, ground), (GAP, y))
        line = y
        for label, lines in block:
            draw.text((left, line), label, "dimgray", font)
            draw.multiline_text((right, line), "\n".join(lines), "black", font, spacing=3)
            line += 15 * len(lines)
        y += height
    return sheet


def loss_curve(steps: list[dict], validations: list[dict], path: Path) -> None:
    """Draw the training loss over images seen, the held-out losses, and the last held-out error per noise level.

    Args:
        steps: Log entries with ``images`` and ``loss``.
        validations: Log entries with ``images`` and, by weights' name, a validation's JSON.
        path: PNG to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in (validations[-1] if validations else {}) if name not in ("images", "step")]
    by_level = {name: last for name in names if (last := validations[-1][name])["per_level"]}
    columns = 2 if by_level or not names else 1  # what does not denoise has no second one
    figure, axes = pyplot.subplots(1, columns, figsize=(5 * columns, 4), layout="constrained", squeeze=False)
    left, right = axes[0][0], axes[0][-1]
    left.plot([e["images"] for e in steps], [e["loss"] for e in steps], color="0.7", linewidth=0.8, label="training")
    for name in names:
        left.plot(
            [v["images"] for v in validations],
            [v[name]["loss"] for v in validations],
            marker=".",
            label=f"held out, {name}",
        )
    left.set(xlabel="images seen", ylabel="loss", yscale="log")
    left.legend()
    for name, last in by_level.items():
        right.plot(last["noise_over_signal"], last["per_level"], marker="o", label=name)
    if right is not left:
        right.set(xlabel="noise over signal", ylabel="held-out error of the clean image", xscale="log", yscale="log")
    if by_level:
        right.legend()
    figure.savefig(path, dpi=110, metadata={"Software": SOFTWARE})
    pyplot.close(figure)


def level_curves(noise_over_signal: list[float], errors: dict[str, list[float]], path: Path) -> None:
    """Draw errors of the denoised image over the noise level, one curve a name, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    for name, values in errors.items():
        axes.plot(noise_over_signal, values, marker="o", label=name)
    axes.set(xlabel="noise over signal", ylabel="error of the clean image", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": SOFTWARE})
    pyplot.close(figure)
