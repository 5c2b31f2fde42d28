"""Attention maps as pictures: the image, then every word of its prompt with its heat map over the dimmed image."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps, get_data_path
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from tokenizers.decoders import ByteLevel

from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.lens.record import AttentionMaps
from attndiff.viewing import as_picture, laid_on

TILE = 144  # pixels at least that an image takes, so that a 32 px one and the word under it can be read
COLUMNS = 6
MARGIN = 8
FONT = Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"  # Pillow's own font has no letters beyond ASCII
FONT_SIZE = 14
LABEL_HEIGHT = 2 * FONT_SIZE + 10
SPECIAL = re.compile(r"<.+>|\[.+\]")  # "<s>", "<|endoftext|>", "[CLS]"
SPACES = ("Ġ", "▁")  # byte-level BPE's and SentencePiece's marks before a word
WORD_END = "</w>"  # CLIP's mark behind one
SEPARATORS = ',.;:!?()"'  # hyphens and apostrophes stay inside a word
INSIDE = "##"  # WordPiece's mark of a piece that is not a word's first


def merge_words(tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The words of a tokenized text, each with the positions of its pieces; start, end and padding tokens left out.

    Args:
        tokens: Pieces as the tokenizer's ``convert_ids_to_tokens`` gives them, special tokens included. Pieces without
            any tokenizer's marks count as one word each.
    """
    starts = _word_starts(tokens)
    words: list[list[int]] = []
    for index, token in enumerate(tokens):
        if SPECIAL.fullmatch(token):
            continue
        if words and words[-1][-1] == index - 1 and not starts[index]:
            words[-1].append(index)
        else:
            words.append([index])
    return [(_spell([tokens[i] for i in positions]), positions) for positions in words]


def _word_starts(tokens: Sequence[str]) -> list[bool]:
    """Whether each token starts a word, by the marks that the kind of tokenizer sets."""
    if any(token.startswith(SPACES) for token in tokens):
        before = ["", *(token.lstrip("".join(SPACES)) for token in tokens)]
        return [
            token.startswith(SPACES) or bool(last and _separates(last) != _separates(token))
            for last, token in zip(before, tokens, strict=False)
        ]
    if any(token.endswith(WORD_END) for token in tokens):
        return [True, *(token.endswith(WORD_END) for token in tokens[:-1])]
    return [not token.startswith(INSIDE) for token in tokens]


def _separates(piece: str) -> bool:
    return all(c in SEPARATORS for c in piece)


def _spell(pieces: list[str]) -> str:
    """Pieces as the text they stand for."""
    text = "".join(piece.removesuffix(WORD_END).removeprefix(INSIDE) for piece in pieces).replace("▁", " ")
    if any(piece.startswith("Ġ") for piece in pieces):
        text = ByteLevel().decode([text])
    return text.strip()


def attention_picture(
    image: Image.Image, tokens: Sequence[str], maps: torch.Tensor, shares: bool = True
) -> Image.Image:
    """One image with the heat map of every word of its prompt, in rows.

    A heat map runs from its own lowest weight (dark) to its own highest (bright); the figure under the word is the
    share of all attention that the word gets.

    Args:
        image: The picture that the prompt made; alpha is laid over a checkered ground.
        tokens: The S tokens of the prompt as ``convert_ids_to_tokens`` gives them.
        maps: ``(S, h, w)`` attention weights in [0, 1], of any resolution.
        shares: Whether the weights are shared among the words, so that it says something how much each gets.

    Raises:
        UserError: If there are not as many maps as tokens.
    """
    if maps.ndim != 3 or len(maps) != len(tokens):
        raise UserError(f"maps of shape {tuple(maps.shape)} do not fit {len(tokens)} tokens: pass one map a token.")
    factor = max(1, -(-TILE // min(image.size)))
    size = (image.width * factor, image.height * factor)
    large = laid_on(as_picture(image).resize(size, Image.Resampling.NEAREST))
    tiles = [(large, "image", "")]
    maps = maps.detach().float().cpu()
    for word, positions in merge_words(tokens):
        pieces = maps[positions]
        share = f"{100 * float(pieces.sum(0).mean()):.1f} %" if shares else ""
        tiles.append((_overlay(large, pieces.mean(0)), word, share))
    return _in_rows(tiles, size)


def _overlay(image: Image.Image, heat: torch.Tensor) -> Image.Image:
    """``heat (h, w)`` in colour over the dimmed grey image."""
    heat = F.interpolate(heat[None, None], size=image.size[::-1], mode="bilinear", align_corners=False)[0, 0]
    heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-8)
    colour = Image.fromarray((colormaps["inferno"](heat.numpy())[..., :3] * 255).astype(np.uint8))
    return Image.blend(image.convert("L").convert("RGB"), colour, 0.7)


def _in_rows(tiles: list[tuple[Image.Image, str, str]], size: tuple[int, int]) -> Image.Image:
    """Tiles of ``size`` (width, height) with two lines of text under each, ``COLUMNS`` a row."""
    columns, rows = min(COLUMNS, len(tiles)), -(-len(tiles) // COLUMNS)
    width, height = size[0] + MARGIN, size[1] + LABEL_HEIGHT + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(FONT, FONT_SIZE)
    for i, (tile, word, note) in enumerate(tiles):
        x, y = MARGIN + i % COLUMNS * width, MARGIN + i // COLUMNS * height
        sheet.paste(tile, (x, y))
        middle, below = x + size[0] // 2, y + size[1] + 2
        draw.text((middle, below), _fit(word, font, size[0]), "black", font, anchor="ma")
        draw.text((middle, below + FONT_SIZE + 3), note, "dimgray", font, anchor="ma")
    return sheet


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def save_attention_pictures(
    folder: str | Path,
    images: Sequence[Image.Image],
    tokens: Sequence[Sequence[str]],
    maps: AttentionMaps,
    details: bool = False,
) -> list[Path]:
    """Write one ``attention-NN.png`` for each image.

    Args:
        folder: Where to; made if absent.
        images: B images.
        tokens: The S tokens of each image's prompt.
        maps: What was recorded while they were sampled.
        details: Write a picture of every scale and of every kept step too, and all maps as ``attention.safetensors``:
            ``averaged`` ``(B, S, H, W)``, and ``LAYER`` or ``step.N.LAYER`` ``(B, S, h, w)``.

    Returns:
        The pictures' paths.

    Raises:
        UserError: If images, prompts and maps are not equally many.
    """
    averaged = maps.averaged()
    if not len(images) == len(tokens) == len(averaged):
        raise UserError(f"{len(images)} images, {len(tokens)} prompts and {len(averaged)} maps do not belong together.")
    views = {"": averaged}
    if details:
        views |= {f"-scale-{scale.shape[-2]}x{scale.shape[-1]}": scale for scale in maps.per_scale.values()}
        views |= {f"-step-{i:03d}": step.averaged() for i, step in enumerate(maps.steps)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, view in views.items():
        for i, (image, pieces) in enumerate(zip(images, tokens, strict=True)):
            paths.append(folder / f"attention-{i:02d}{suffix}.png")
            save_picture(attention_picture(image, pieces, view[i]), paths[-1])
    if details:
        steps = {f"step.{i}.{name}": m for i, step in enumerate(maps.steps) for name, m in step.per_layer.items()}
        tensors = {"averaged": averaged, **maps.per_layer, **steps}
        save_file({name: m.cpu().contiguous().clone() for name, m in tensors.items()}, folder / "attention.safetensors")
    return paths
