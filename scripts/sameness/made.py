"""What the runs are made of, the same files for both checkouts."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from sameness.runs import BASE


def make_data(folder: Path) -> None:
    """Everything that ``$data`` is to hold."""
    squares(folder / "squares", 24)
    squares(folder / "many", 264)
    shapes(folder / "shapes")
    shards(folder)
    encoder(folder / "encoder")
    autoencoder(folder / "vae")
    (folder / "config.json").write_text(json.dumps(BASE), encoding="utf-8")


def square(i: int, height: int = 16, width: int = 16) -> Image.Image:
    """A square of some colour in a place of its own."""
    random = np.random.default_rng(i)
    pixels = np.full((height, width, 3), 255, np.uint8)
    top, left = random.integers(0, 8, 2)
    pixels[top : top + 8, left : left + 8] = random.integers(0, 200, 3)
    return Image.fromarray(pixels)


def caption(i: int) -> str:
    """Two words."""
    return f"{('red', 'blue', 'green')[i % 3]} {('apple', 'heart', 'house', 'star')[i % 4]}"


def squares(folder: Path, count: int) -> None:
    """Images in class folders, with a caption beside each."""
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        square(i).save(path)
        path.with_suffix(".txt").write_text(caption(i), encoding="utf-8")


def shapes(folder: Path) -> None:
    """Wide, square and tall images."""
    folder.mkdir()
    for i, (height, width) in enumerate([(20, 36)] * 9 + [(24, 24)] * 6 + [(30, 18)] * 7):
        square(i, height, width).save(folder / f"{i:02d}.png")


def shards(folder: Path) -> None:
    """The same images and captions as parquet and as tar files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for kind in ("parquet", "tars"):
        (folder / kind).mkdir()
    rows = iter(range(34))
    for number, count in enumerate([7, 9, 4, 8, 6]):
        shard = [(encoded(i), caption(i)) for _, i in zip(range(count), rows)]
        table = pa.Table.from_pylist([{"image": {"bytes": image, "path": None}, "text": text} for image, text in shard])
        pq.write_table(table, folder / f"parquet/part-{number}.parquet")
        with tarfile.open(folder / f"tars/part-{number}.tar", "w") as tar:
            for i, (image, text) in enumerate(shard):
                add(tar, f"{i:04d}.png", image)
                add(tar, f"{i:04d}.text", text.encode())


def encoded(i: int) -> bytes:
    """A square as a PNG file."""
    stream = io.BytesIO()
    square(i).save(stream, "png")
    return stream.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file in an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def encoder(folder: Path) -> None:
    """A small random CLIP text model with a tokenizer of words, as `transformers` stores them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words = [*special, *sorted({word for i in range(12) for word in caption(i).split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<bos>", 1), ("<eos>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    names = {f"{word.strip('<>')}_token": word for word in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **names).save_pretrained(folder)
    config = {"vocab_size": len(words), "hidden_size": 24, "intermediate_size": 32, "max_position_embeddings": 12}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    CLIPTextModel(CLIPTextConfig(**config, pad_token_id=0, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)


def autoencoder(folder: Path) -> None:
    """A small random one, of two pixels a latent."""
    import torch
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, scaling_factor=0.7, **blocks).save_pretrained(folder)
