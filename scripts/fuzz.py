"""Feed what comes from outside with damaged and hostile input, and count what happens.

    python scripts/fuzz.py --fast --json fuzz.json      # under 3 minutes on two cores
    python scripts/fuzz.py --json fuzz.json             # 280,000 cases

Every case either is accepted or raises an error that names what is wrong, a `UserError` (or the `ValueError` of a
pipeline's argument). Anything else is an unnamed error; its seed is reported, and `--target NAME --seed N` repeats it.
What is accepted has to be right as well: checkpoints give the very weights that were saved, captions the stated shape,
images the stated range. The targets of `fuzzing.meanings` change what is meant instead of bytes.
"""

import argparse
import io
import json
import logging
import multiprocessing
import random
import resource
import shutil
import string
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fuzzing import meanings
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from attndiff.data.pixels.normalize import Normalizer
from attndiff.data.tables.folder import folder_rows
from attndiff.data.tables.listing import list_folder
from attndiff.data.tokenizer import train_tokenizer
from attndiff.diffusion.compatibility import default_scheduler
from attndiff.diffusion.objectives import make_objective
from attndiff.errors import UserError
from attndiff.folder.check import NETWORKS, check_index, check_network, check_weights, read_json
from attndiff.nn.decoder import TextDecoderModel
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.raster.model import PixelTransformerModel
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.call.inputs import as_texts
from attndiff.pipelines.call.tokenizing import tokenize
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline
from attndiff.training.card import hardware
from attndiff.training.config import OptimConfig
from attndiff.training.optim import make_optimizers
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.checkpoint import RunState, newest_checkpoint, read_checkpoint, save_checkpoint

MEMORY = 8 * 2**30  # bytes of address space that a process may have
SHOWN = 5  # unnamed errors of a target in the report

Case = Callable[[random.Random], None]  # raises what the input makes it raise


# What is done to input


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, inserted or exchanged."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 64))
        kind = rng.randrange(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            data[place:place] = rng.randbytes(length)
        else:
            data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data
            data[place : place + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7))
    return bytes(data)


def junk(rng: random.Random, depth: int = 0):
    """A value of any kind that JSON knows, small or absurd."""
    leaves = [0, 1, -1, 2**31, 10**12, -(10**12), 1e308, float("nan"), float("inf"), True, False, None, "", "x" * 300]
    leaves += ["none", "global", "__class__", "../..", "os.system", 3, 16, 0.5, "1", "\ud800"]
    kind = rng.randrange(8)
    if kind < 6 or depth > 3:
        return rng.choice(leaves)
    if kind == 6:
        return [junk(rng, depth + 1) for _ in range(rng.choice((0, 1, 3, 100)))]
    return {rng.choice(("width", "depth", "__init__", "x")): junk(rng, depth + 1) for _ in range(rng.randrange(4))}


def disturbed(value, rng: random.Random):
    """A copy with one entry, at any depth, replaced, taken out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.randrange(4)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, rng.choice(("extra", "_private", "__class__", "levels")): junk(rng)}
        return {**value, key: disturbed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [disturbed(v, rng) if i == place else v for i, v in enumerate(value)] * rng.choice((1, 1, 1, 0, 50))
    return junk(rng)


# What it is fed to; each makes its one sound input and returns the case


def safetensors_files(folder: Path) -> Case:
    state = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "b": torch.randn(2, 2, 2)}
    save_file(state, folder / "sound.safetensors", metadata={"format": "pt"})
    sound, shapes = (folder / "sound.safetensors").read_bytes(), {k: list(v.shape) for k, v in state.items()}
    file = folder / "case.safetensors"

    def case(rng: random.Random) -> None:
        file.write_bytes(mutated(sound, rng))
        check_weights([file], shapes)
        opened = load_file(file)
        assert {k: list(v.shape) for k, v in opened.items()} == shapes
        assert all(v.isfinite().all() for v in opened.values())

    return case


def configs(folder: Path) -> Case:
    tiny = PRESETS["tiny"]
    sound = {
        "AttentionUNet2DModel": dict(AttentionUNet2DModel(**tiny["unet"]).config),
        "PixelTransformerModel": dict(PixelTransformerModel(**tiny["transformer"]).config),
        "TextDecoderModel": dict(TextDecoderModel(300, **tiny["text_decoder"]).config),
        "ConditionEncoder": dict(ConditionEncoder(**tiny["encoder"], vocab_size=300).config),
    }
    index = {"_class_name": ["code", "AttnDiffPipeline"], "unet": ["code", "AttentionUNet2DModel"]}
    index |= {"scheduler": ["diffusers", "UniPCMultistepScheduler"], "vae": [None, None], "data": {"size": [16, 16]}}
    path = folder / "config.json"

    def case(rng: random.Random) -> None:
        name = rng.choice([*NETWORKS, "index"])
        value = json.loads(json.dumps(index if name == "index" else sound[name]))
        for _ in range(rng.randint(1, 3)):
            value = disturbed(value, rng)
        text = json.dumps(value).encode()
        path.write_bytes(mutated(text, rng) if rng.random() < 0.3 else text)
        read = read_json(path)
        if name == "index":
            check_index(path, read)
        else:
            check_network(folder, name)

    return case


def images(folder: Path) -> Case:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), np.uint8)
    seeds = []
    for form, mode in [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P")]:
        seeds.append(encoded(Image.fromarray(pixels).convert(mode) if mode != "I;16" else deep(), form))
    seeds += [encoded(Image.fromarray(pixels), form) for form in ("WEBP", "TIFF", "BMP")]
    normalizers = [Normalizer(8, channels) for channels in ("RGB", "RGBA", "L", 3)]

    def case(rng: random.Random) -> None:
        made = rng.choice(normalizers)(mutated(rng.choice(seeds), rng), "case.png")
        assert made.shape[1:] == (8, 8) and np.isfinite(made.astype(np.float64)).all()

    return case


def encoded(image: Image.Image, form: str) -> bytes:
    """A file's content."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def deep() -> Image.Image:
    """A picture of 16 bits."""
    return Image.fromarray(np.arange(120, dtype=np.uint16).reshape(12, 10) * 500)


def metadata(folder: Path) -> Case:
    root = folder / "images"
    root.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(root / name)
    rows = [{"file_name": "a.png", "text": "a cat"}, {"file_name": "b.png", "text": "ein Haus, größer"}]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    csv = b'file_name,text\na.png,"a cat, small"\nb.png,house\n'

    def case(rng: random.Random) -> None:
        form, sound = rng.choice((("jsonl", jsonl), ("csv", csv)))
        if form == "jsonl" and rng.random() < 0.5:
            sound = b"".join(json.dumps(disturbed(row, rng)).encode() + b"\n" for row in rows)
        for other in ("jsonl", "csv"):
            (root / f"metadata.{other}").unlink(missing_ok=True)
        (root / f"metadata.{form}").write_bytes(mutated(sound, rng))
        found, _ = folder_rows(list_folder(root))
        assert len(found) <= 50 and json.dumps(found, ensure_ascii=False).encode()

    return case


def captions(folder: Path) -> Case:
    tokenizer = train_tokenizer(["red apple", "blue heart, 3d", "ein Haus"], vocab_size=300, max_length=8)
    ranges = [
        (32, 127),
        (0, 32),
        (0x300, 0x370),
        (0x5D0, 0x700),
        (0x4E00, 0x4F00),
        (0xD7F0, 0xD802),
        (0x1F300, 0x1F700),
        (0xFFF0, 0xFFFF),
    ]

    def case(rng: random.Random) -> None:
        length = rng.choice((0, 1, 5, 40, 400)) if rng.random() < 0.999 else 100_000
        low, high = rng.choice(ranges)
        text = "".join(chr(rng.randrange(low, high)) for _ in range(length)) + rng.choice(("", " ", string.printable))
        ids, mask = tokenize(tokenizer, as_texts(text))
        assert ids.shape == mask.shape == (1, 8) and ids.max() < len(tokenizer)

    return case


def checkpoints(folder: Path) -> Case:
    def state(steps: int) -> RunState:
        torch.manual_seed(0)
        module = nn.Linear(4, 3)
        made = RunState(module, PowerEMA(module), make_optimizers(module, OptimConfig(steps=10)))
        for _ in range(steps):
            module(torch.ones(1, 4)).square().sum().backward()
            for optimizer in made.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            made.step += 1
            made.ema.update(module, made.step)
        return made

    sound = folder / "sound"
    expected = {}
    for steps in (1, 2):
        made = state(steps)
        save_checkpoint(sound, made, keep=5)
        expected[steps] = {f: {k: v.clone() for k, v in group.items()} for f, group in made.tensors().items()}
    root = folder / "case"

    def case(rng: random.Random) -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound, root)
        for _ in range(rng.randint(1, 3)):
            spoil(rng, root)
        newest, _ = newest_checkpoint(root)
        if newest is None:
            raise UserError("none is whole")
        files, step, _ = read_checkpoint(newest)
        for name, group in expected[step].items():
            assert all(torch.equal(value, files[name][key]) for key, value in group.items())

    return case


def spoil(rng: random.Random, root: Path) -> None:
    """Do something to a file of a folder of checkpoints."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if not files:
        return
    file, other = rng.choice(files), rng.choice(files)
    kind = rng.randrange(7)
    if kind == 0:
        file.unlink()
    elif kind == 1:
        file.write_bytes(mutated(file.read_bytes(), rng))
    elif kind == 2:
        file.write_bytes(other.read_bytes())
    elif kind == 3:
        (file.parent / "extra.safetensors").write_bytes(other.read_bytes())
    elif kind == 4:
        file.unlink()
        file.symlink_to(other if other != file else "/dev/null")
    elif kind == 5:
        (root / rng.choice(("step_00000009", "step_abc", "tmp_00000003"))).mkdir(exist_ok=True)
    else:
        file.write_bytes(b"")


def arguments(folder: Path) -> Case:
    tiny = PRESETS["tiny"]
    tokenizer = train_tokenizer(["red apple", "blue heart, 3d"], vocab_size=300, max_length=8)
    pipe = AttnDiffPipeline(
        AttentionUNet2DModel(**{**tiny["unet"], "sample_size": 16}),
        default_scheduler(make_objective({})),
        condition_encoder=ConditionEncoder(**tiny["encoder"], vocab_size=len(tokenizer), max_length=8),
        tokenizer=tokenizer,
    )
    pipe.set_progress_bar_config(disable=True)
    sound = {
        "prompt": ["red apple", ["red apple", "blue heart"], "", "x" * 500],
        "height": [None, 16, 32],
        "width": [None, 16],
        "num_inference_steps": [1, 2],
        "guidance_scale": [1.0, 2.0],
        "guidance_interval": [(0.0, 1.0), (0.2, 0.8)],
        "negative_prompt": [None, "blue"],
        "num_images_per_prompt": [1, 2],
        "generator": [None, torch.Generator()],
        "latents": [None, torch.randn(1, 3, 16, 16)],
        "prompt_embeds": [None, torch.randn(1, 4, 32)],
        "sigmas": [None, [1.0, 0.5]],
        "output_type": ["pil", "np", "pt", "latent"],
        "class_labels": [None],
    }
    odd = [None, -1, 0, 3.7, float("nan"), float("inf"), "many", [], [None], {}, (1, 2, 3), True, b"x", torch.zeros(2)]
    odd += [[0.5, 1.0], "PIL", torch.full((1, 3, 16, 16), float("nan")), torch.zeros(1, 3, 7, 7), object()]

    def case(rng: random.Random) -> None:
        call = {name: rng.choice(values) for name, values in sound.items() if name == "prompt" or rng.random() < 0.3}
        for name in rng.sample(list(sound), rng.choice((0, 1, 1, 2))):
            call[name] = rng.choice(odd)
        pipe(**call)

    return case


@dataclass
class Target:
    """What is fuzzed.

    Args:
        make: Makes the case in a folder of its own.
        cases: How many in full.
        fast: How many with ``--fast``.
        named: Errors that count as named.
    """

    make: Callable[[Path], Case]
    cases: int
    fast: int
    named: tuple[type[Exception], ...] = (UserError,)


TARGETS = {
    "safetensors": Target(safetensors_files, 100_000, 10_000),
    "configs": Target(configs, 20_000, 1_000),
    "images": Target(images, 20_000, 4_000),
    "metadata rows": Target(metadata, 20_000, 2_000),
    "captions": Target(captions, 50_000, 5_000, (ValueError,)),
    "layouts": Target(meanings.layouts, 20_000, 1_000),
    "declared depths": Target(meanings.declared, 20_000, 1_000),
    "spreadsheets": Target(meanings.delimited, 20_000, 1_000),
    "checkpoint folders": Target(checkpoints, 5_000, 500),
    "pipeline arguments": Target(arguments, 5_000, 300, (ValueError,)),
}


def prepare() -> None:
    """Once in every process: one thread, no warnings about what is broken, and no more memory than `MEMORY`."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def fuzz(name: str, seeds: range) -> dict:
    """Run a target's cases of these seeds."""
    target = TARGETS[name]
    count = {"cases": 0, "named_errors": 0, "accepted": 0, "unnamed_errors": 0, "errors": []}
    with tempfile.TemporaryDirectory() as folder:
        case = target.make(Path(folder))
        for seed in seeds:
            count["cases"] += 1
            try:
                case(random.Random(f"{name} {seed}"))
                count["accepted"] += 1
            except target.named:
                count["named_errors"] += 1
            except Exception as error:
                count["unnamed_errors"] += 1
                count["errors"].append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    return {**count, "errors": count["errors"][:SHOWN]}


def run(cases: dict[str, int], lanes: int = 2) -> dict[str, dict]:
    """All targets, their cases shared out over processes; counts by target."""
    jobs = []
    with ProcessPoolExecutor(lanes, multiprocessing.get_context("spawn"), prepare) as pool:
        for name, number in cases.items():
            size = max(1, number // (2 * lanes))
            jobs += [(name, pool.submit(fuzz, name, range(i, min(i + size, number)))) for i in range(0, number, size)]
        report: dict[str, dict] = {}
        for name, job in tqdm(jobs, "Fuzzing"):
            found, total = job.result(), report.setdefault(name, {"errors": []})
            for key, value in found.items():
                total[key] = total.get(key, 0) + value if key != "errors" else [*total[key], *value][:SHOWN]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a tenth of the cases or less")
    parser.add_argument("--target", choices=list(TARGETS), help="one target alone")
    parser.add_argument("--seed", type=int, help="with --target, one case alone, its error shown in full")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.target and options.seed is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[options.target].make(Path(folder))(random.Random(f"{options.target} {options.seed}"))
        return
    names = [options.target] if options.target else list(TARGETS)
    began = time.monotonic()
    report = run({name: TARGETS[name].fast if options.fast else TARGETS[name].cases for name in names})
    print(json.dumps({**report, "seconds": round(time.monotonic() - began), "hardware": hardware()}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if any(found["unnamed_errors"] for found in report.values()):
        raise SystemExit("there were unnamed errors; repeat one with --target NAME --seed N")


if __name__ == "__main__":
    main()
