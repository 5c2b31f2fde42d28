"""See whether this checkout trains and samples with the numbers of an earlier one, run beside it on the same machine.

    python scripts/same_numbers.py ../earlier                            # a few minutes on two cores
    python scripts/same_numbers.py ../earlier --only text,LoRA --json same.json

Both are driven as a user drives them, each run in a process of its own that finds attndiff in its checkout and nowhere
else, on one thread of the CPU in float32, so that sums are rounded alike. Every logged training loss is compared in
hex, every held-out loss and distance likewise, and pixels by their SHA-256: those of the sample grids, and those of
models that are opened by `attndiff.load`, by stock diffusers where attndiff cannot be imported, and by their network
alone. What differs on purpose is said in `EXPECTED`, by run and part; anything else that differs fails.
"""

import argparse
import hashlib
import importlib
import importlib.abc
import importlib.util
import io
import json
import multiprocessing
import os
import runpy
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from multiprocessing.process import BaseProcess
from pathlib import Path
from shutil import copytree, rmtree
from string import Template

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TRAINING, HELD_OUT, PIXELS = PARTS = ("training losses", "held-out losses", "pixels")
EXPECTED: dict[str, dict[str, str]] = {
    "text": {"held-out losses": "the 256 of 310 images that are looked at are spread over all instead of the first"},
    "distances": {"held-out losses": "distances are those of an extractor that learns what is said of the images"},
}
TOO_LONG = 300  # seconds that no process takes
FORK = multiprocessing.get_context("fork")
SLOW = ["accelerate", "datasets", "diffusers.pipelines.pipeline_utils", "diffusers.models.autoencoders", "peft"]
SLOW += ["matplotlib.pyplot", "torch._dynamo", "torch.distributed.fsdp", "transformers.integrations.flash_attention"]

BASE = {
    "data": {"size": 16},
    "condition": {"vocab_size": 300, "max_length": 8},
    "model": {"preset": "tiny"},
    "optim": {"steps": 8, "batch_size": 8, "warmup": 2, "precision": "fp32", "deterministic": True},
    "log": {"every": 1, "validate_every": 4, "sample_every": 8, "checkpoint_every": 4, "tracker": None},
}
SQUARES = "data.path=$data/squares data.validation=0.25 data.caption_column=text"
MANY = "data.path=$data/many data.validation=0.5 data.label_column=label condition.kind=class"
EMOJI = "data.path=emoji32 data.caption_column=captions"  # more held-out images than are looked at
STYLES = 'data.path=emoji32 data.label_column=style data.where={"group":["Activities"]} condition.kind=class'
SHAPES = "data.path=$data/shapes data.validation=0.2 data.max_aspect=2.0 data.bucket_multiple=4 condition.kind=none"
SHARDS = "data.path=$data/parquet data.caption_column=text data.stream=true data.shuffle_buffer=16"
TARS = "data.path=$data/tars data.caption_column=text data.image_column=png data.stream=true data.shuffle_buffer=16"
FORMAT_1 = "$old/tests/fixtures/format_1"  # what an earlier version wrote
DISTILLING = "log.every=1 log.validate_every=4 log.sample_every=8 log.checkpoint_every=4 log.tracker=null"
DISTILLING += " optim.batch_size=8 optim.warmup=2 optim.precision=fp32 optim.deterministic=true"
STUDENT = f"$runs/base/pipeline --data $data/squares --steps 8 --out $out {DISTILLING}"


@dataclass(frozen=True)
class Run:
    """Something that both checkouts do.

    Args:
        words: What is added to the command, with ``$data``, ``$old`` (the earlier checkout), ``$runs`` (of the same
            checkout) and ``$out`` in it.
        role: What the process is, a key of `ROLES`.
        command: What the words are added to.
        processes: Of the run.
        anew: Whether it is a newly started process instead of one forked off this, which has imported much.
        needs: Runs whose pipelines it opens.
        begun: A run's folder to go on from, without its log.
        stopped: Whether it loses everything after its last checkpoint but one, and goes on from there.
        parts: Of which there must be figures.
    """

    words: str = ""
    role: str = "command line"
    command: str = "train $data/config.json out=$out"
    processes: int = 1
    anew: bool = False
    needs: tuple[str, ...] = ()
    begun: str | None = None
    stopped: bool = False
    parts: tuple[str, ...] = PARTS


def opened(role: str, anew: bool = False) -> Run:
    """A run that opens `MODELS`."""
    return Run(role=role, command="", anew=anew, needs=("base", "student"), parts=(PIXELS,))


MODELS = {
    "format 1": f"{FORMAT_1}/pipeline",
    "emoji-xs": "emoji-xs",  # each checkout's own
    "emoji-xs-student": "emoji-xs-student",
    "base": "$runs/base/pipeline",
    "student": "$runs/student/pipeline",
}
PROMPTS = ["pizza, noto", "red apple, noto", "cat face, fluent 3d", "rocket, noto"]

RUNS = {
    "base": Run(SQUARES),
    "text": Run(f"{EMOJI} optim.flip=0.5"),
    "class": Run(STYLES),
    "none": Run(f"{SQUARES} condition.kind=none"),
    "other objective and optimizer": Run(f"{SQUARES} objective.name=edm optim.optimizer=adamw optim.skip_above=50"),
    "pretrained encoder": Run(f"{SQUARES} condition.pretrained=$data/encoder condition.max_length=12"),
    "latents": Run(f"{SQUARES} data.size=32 model.vae=$data/vae optim.flip=0.5"),
    "buckets": Run(f"{SHAPES} optim.flip=0.5"),
    "stream of parquet": Run(SHARDS),
    "stream of tar, two workers": Run(f"{TARS} optim.flip=0.5 optim.workers=2"),
    "init_from": Run(f"{SQUARES} model.init_from=$runs/base/pipeline", needs=("base",)),
    "LoRA": Run(f"{SQUARES} model.init_from=$runs/base/pipeline model.lora_rank=2", needs=("base",)),
    "student": Run(STUDENT, command="distill", needs=("base",)),
    "student with discriminator": Run(
        f"{STUDENT} --adversarial 0.5 distill.adversarial_from=0.4", command="distill", needs=("base",)
    ),
    "accumulation": Run(f"{SQUARES} optim.micro_batch=2 optim.flip=0.5"),
    "two processes": Run(
        f"{SQUARES} optim.flip=0.5", role="launched", command="$data/config.json out=$out", processes=2, anew=True
    ),
    "dropout": Run(f"{SQUARES} model.unet.dropout=0.2 condition.dropout=0.3"),
    "flips": Run(f"{SQUARES} optim.flip=0.5"),
    "two workers": Run(f"{SQUARES} optim.flip=0.5 optim.workers=2"),
    "resumed": Run(f"{SQUARES} optim.flip=0.5 optim.micro_batch=4 model.unet.dropout=0.2", stopped=True),
    "format 1 goes on": Run(command=f"train {FORMAT_1}/config.yaml out=$out", begun=f"{FORMAT_1}/run"),
    "distances": Run(f"{MANY} log.evaluate_every=4"),
    "attndiff.load": opened("load"),
    "stock diffusers": opened("stock diffusers", anew=True),
    "network alone": opened("network alone"),
}


# Within a process of a checkout


class Checkout(importlib.abc.MetaPathFinder):
    """Finds attndiff in one checkout, where its pyproject.toml says, whatever is installed."""

    def __init__(self, root: Path):
        self.project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        folders = self.project["tool"]["setuptools"].get("package-dir", {})
        self.root, self.places = root, {"attndiff": root / folders.get("", ".") / "attndiff"}
        self.places |= {package: root / folder for package, folder in folders.items() if package}

    def find_spec(self, name: str, path=None, target=None):
        if name.partition(".")[0] != "attndiff":
            return None
        if place := self.places.get(name):
            where = [str(place)]
            return importlib.util.spec_from_file_location(name, place / "__init__.py", submodule_search_locations=where)
        spec = PathFinder.find_spec(name, path)
        if spec is None:  # finders further down may know another checkout
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec

    def check(self) -> None:
        """Refuse to have run with modules of anywhere else."""
        loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "attndiff"}
        places = {name: Path(module.__file__ or module.__path__[0]) for name, module in loaded.items()}
        elsewhere = {name: str(p) for name, p in places.items() if not p.resolve().is_relative_to(self.root)}
        if elsewhere or not loaded:
            raise SystemExit(f"attndiff is not that of {self.root}: {elsewhere or 'not imported'}")


class Absent(importlib.abc.MetaPathFinder):
    """Makes importing attndiff impossible."""

    def find_spec(self, name: str, path=None, target=None):
        if name.partition(".")[0] == "attndiff":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def within(root: Path, role: str, words: list[str]) -> None:
    """Be a process of a checkout."""
    sys.path.pop(0)  # this script's folder
    # Of loader workers: one that is spawned would look for attndiff elsewhere.
    multiprocessing.set_start_method("fork", force=True)
    if role == "stock diffusers":
        sys.meta_path.insert(0, Absent())
        return ROLES[role](root, words)
    checkout = Checkout(root)
    sys.meta_path.insert(0, checkout)
    ROLES[role](root, words)
    checkout.check()


def command_line(root: Path, words: list[str]) -> None:
    """The ``attndiff`` command that pyproject.toml names."""
    module, _, function = Checkout(root).project["project"]["scripts"]["attndiff"].partition(":")
    getattr(importlib.import_module(module), function)(words)


def launched(root: Path, words: list[str]) -> None:
    """The file that launchers of several processes start."""
    sys.argv = [str(root / "training/train.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def load(root: Path, words: list[str]) -> None:
    """The first door."""
    import attndiff

    report({name: sampled(attndiff.load(place)) for name, place in json.loads(words[0]).items()})


def stock_diffusers(root: Path, words: list[str]) -> None:
    """The second door."""
    from diffusers import DiffusionPipeline

    folders = {name: folder_of(root, place) for name, place in json.loads(words[0]).items()}
    report({n: sampled(DiffusionPipeline.from_pretrained(f, trust_remote_code=True)) for n, f in folders.items()})


def network_alone(root: Path, words: list[str]) -> None:
    """The third door: the network's answer to fixed noise."""
    import torch

    from attndiff import AttentionUNet2DModel

    hashes = {}
    for name, place in json.loads(words[0]).items():
        unet = AttentionUNet2DModel.from_pretrained(folder_of(root, place), subfolder="unet")
        random, config = torch.Generator().manual_seed(1), unet.config
        side = config.sample_size
        x = torch.randn(2, config.in_channels, side, side, generator=random)
        tokens = torch.randn(2, 4, config.cross_attention_dim, generator=random)
        with torch.no_grad():
            hashes[name] = hash_of(unet(x, torch.tensor([0.0, 0.5]), tokens).sample.numpy())
    report(hashes)


ROLES = {
    "command line": command_line,
    "launched": launched,
    "load": load,
    "stock diffusers": stock_diffusers,
    "network alone": network_alone,
}


def folder_of(root: Path, place: str) -> Path:
    """A model's folder, that of a bundled one wherever a checkout keeps it."""
    return Path(place) if "/" in place else next(root.glob(f"attndiff/**/{place}/model_index.json")).parent


def sampled(pipeline) -> str:
    """Hash of four samples in four steps."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return hash_of(pipeline(PROMPTS, num_inference_steps=4, generator=generators, output_type="np").images)


def hash_of(array: np.ndarray) -> str:
    """SHA-256 of an array with its shape and type."""
    what = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(what + np.ascontiguousarray(array).tobytes()).hexdigest()


def report(hashes: dict[str, str]) -> None:
    """Print hashes for `Side.figures` to read, on a line of their own."""
    print("\n" + json.dumps(hashes))


# What the runs are made of, the same files for both checkouts


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


# Running

Figures = dict[str, dict[str, str]]  # part: {which number: its value in hex}


@dataclass
class Side:
    """One of the two checkouts.

    Args:
        root: The checkout.
        folder: For its runs.
        data: What `make_data` made.
        old: The earlier checkout.
    """

    root: Path
    folder: Path
    data: Path
    old: Path

    def out(self, name: str) -> Path:
        """A run's folder; what it says is in files beside it."""
        return self.folder / name.replace(" ", "_")

    def start(self, name: str) -> BaseProcess:
        """Start a run, or what is left of it."""
        run, out = RUNS[name], self.out(name)
        if run.begun and not out.exists():
            copytree(Path(*self.words(run.begun, out)), out)
            (out / "log.jsonl").write_text("", encoding="utf-8")
        words = self.words(f"{run.command} {run.words}", out)
        if run.parts == (PIXELS,):
            words = [json.dumps({model: self.words(place, out)[0] for model, place in MODELS.items()})]
        process = FORK.Process(target=self.be, args=(run, words, out))
        process.start()
        return process

    def be(self, run: Run, words: list[str], out: Path) -> None:
        """Be the process of a run: this one as it is, or a new one in its place."""
        os.chdir(self.folder)
        for ending, number in {"out": 1, "err": 2}.items():
            said = os.open(f"{out}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, number)
        if not run.anew:
            return within(self.root, run.role, words)
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.processes}"]
        command = [sys.executable, *(several if run.processes > 1 else []), str(Path(__file__).resolve())]
        own = {"HF_HOME": str(self.folder / "home"), "PYTHONPATH": ""}  # with the code that comes with models
        os.execve(sys.executable, [*command, "--within", str(self.root), run.role, *words], {**os.environ, **own})

    def problem(self, name: str, process: BaseProcess) -> str | None:
        """Wait for a process; what is wrong with its end, in words, or None."""
        process.join(TOO_LONG)
        if process.is_alive():
            process.kill()
            return f"it takes more than {TOO_LONG} seconds"
        said = Path(f"{self.out(name)}.err").read_text(encoding="utf-8").strip().splitlines()
        return (said[-1].strip() if said else f"ended with {process.exitcode}") if process.exitcode else None

    def figures(self, name: str) -> Figures:
        """What is compared of a run that has ended."""
        if RUNS[name].parts == (PIXELS,):
            return {
                PIXELS: json.loads(Path(f"{self.out(name)}.out").read_text(encoding="utf-8").strip().splitlines()[-1])
            }
        return read_run(self.out(name))

    def words(self, text: str, out: Path) -> list[str]:
        """A command's words with every place put in."""
        places = {"data": self.data, "old": self.old, "runs": self.folder, "out": out}
        return [Template(word).substitute(places) for word in text.split()]


def forget_the_end(out: Path) -> None:
    """Leave a finished run as one that was killed before its last checkpoint."""
    *_, before, last = sorted((out / "checkpoints").glob("step_*"))
    step = int(before.name.removeprefix("step_"))
    rmtree(last)
    rmtree(out / "pipeline")
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "log.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8"
    )


def read_run(out: Path) -> Figures:
    """Losses and distances of a run's log in hex, and hashes of its sample grids."""
    found: Figures = {part: {} for part in PARTS}
    log = out / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        entry = json.loads(line)
        if "loss" in entry:
            number = len(found[TRAINING]) + 1  # a step that was logged twice counts twice
            found[TRAINING][f"loss {number}, of step {entry['step']}"] = float(entry["loss"]).hex()
        for where, value in held_out(entry):
            found[HELD_OUT][f"{where} at step {entry['step']}"] = float(value).hex()
    for picture in sorted((out / "samples").glob("*.png")):
        found[PIXELS][picture.name] = hash_of(np.asarray(Image.open(picture)))
    return found


def held_out(entry: dict) -> Iterator[tuple[str, float]]:
    """Name and value of what a log entry says of held-out images."""
    for weights, numbers in entry.items():
        if not isinstance(numbers, dict):
            continue
        if "per_level" in numbers:
            yield f"{weights} loss", numbers["loss"]
            yield from ((f"{weights} error {i}", value) for i, value in enumerate(numbers["per_level"]))
        for metric, measured in numbers.items():
            if isinstance(measured, dict) and "value" in measured:
                yield from ((f"{metric} {key}", measured[key]) for key in ("value", "floor"))


# Comparing


@dataclass
class Verdict:
    """What became of a run in both checkouts.

    Args:
        counts: Of each part: how many numbers are equal, and how many there are.
        different: The first numbers of each part that are not.
        problem: What is wrong, in words; None if everything is as it should be.
        note: What differs as said.
    """

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    different: dict[str, list[str]] = field(default_factory=dict)
    problem: str | None = None
    note: str | None = None

    def __str__(self) -> str:
        return self.problem or self.note or "the same"


def compare(name: str, both: list[Figures]) -> Verdict:
    """Count equal numbers; a part may differ only where `EXPECTED` says so."""
    verdict, said = Verdict(), EXPECTED.get(name, {})
    for part in PARTS:
        old, new = (figures.get(part, {}) for figures in both)
        keys = list(old | new)
        different = [key for key in keys if old.get(key) != new.get(key)]
        verdict.counts[part] = (len(keys) - len(different), len(keys))
        if different:
            verdict.different[part] = different[:5]
    unsaid = [f"{part} ({ks[0]})" for part, ks in verdict.different.items() if part not in said]
    if unsaid:
        verdict.problem = f"DIFFERS: {', '.join(unsaid)}"
    as_said = [f"{part}: {said[part]}" for part in verdict.different if part in said]
    equal = [part for part in said if part not in verdict.different]
    notes = [f"differs, as said: {'; '.join(as_said)}"] * bool(as_said)
    verdict.note = "; ".join([*notes, *(f"{part} are said to differ and do not" for part in equal)]) or None
    return verdict


def prepare() -> None:
    """Import, once for all processes, what takes longest and is none of a checkout's; on one thread of the CPU."""
    ones = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")
    os.environ.update({**dict.fromkeys(ones, "1"), "CUDA_VISIBLE_DEVICES": ""})
    for slow in SLOW:
        importlib.import_module(slow)
    sys.modules["torch"].set_num_threads(1)


def with_needed(names: list[str]) -> list[str]:
    """The named runs and those they need, in the order of `RUNS`."""
    wanted, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting += RUNS[name].needs
    return [name for name in RUNS if name in wanted]


def run_both(name: str, sides: dict[str, Side], failed: set[str]) -> Verdict:
    """A run in both checkouts at once."""
    lacking = [need for need in RUNS[name].needs if need in failed]
    if lacking:
        return Verdict(problem=f"FAILED: needs {', '.join(lacking)}")
    problems = at_once(name, sides)
    if RUNS[name].stopped and not problems:
        for side in sides.values():
            forget_the_end(side.out(name))
        problems = at_once(name, sides)
    found = {} if problems else {which: side.figures(name) for which, side in sides.items()}
    lacks = {(which, part) for which, figures in found.items() for part in RUNS[name].parts if not figures[part]}
    problems += [f"{which}: there are no {part}" for which, part in sorted(lacks)]
    return Verdict(problem=f"FAILED in {'; '.join(problems)}") if problems else compare(name, list(found.values()))


def at_once(name: str, sides: dict[str, Side]) -> list[str]:
    """Start a run in both checkouts and wait for both; what is wrong with their ends."""
    processes = {which: side.start(name) for which, side in sides.items()}
    problems = {which: side.problem(name, processes[which]) for which, side in sides.items()}
    return [f"{which}: {problem}" for which, problem in problems.items() if problem]


def line(name: str, cells: list[object], verdict: object) -> str:
    """A row of the table."""
    return f"{name:<30} {' '.join(f'{cell!s:>16}' for cell in cells)}  {verdict}"


def shares(counts: dict[str, tuple[int, int]]) -> list[str]:
    """Equal numbers of each part out of all."""
    found = [counts.get(part, (0, 0)) for part in PARTS]
    return [f"{equal}/{total}" if total else "-" for equal, total in found]


def campaign(names: list[str], old: Path) -> dict[str, Verdict]:
    """All runs, a row printed as soon as both checkouts have done one."""
    verdicts: dict[str, Verdict] = {}
    print(line("run", list(PARTS), ""), flush=True)
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        maker = FORK.Process(target=make_data, args=(data,))  # so that this process has no threads when it forks
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("the data for the runs could not be made")
        sides = {name: Side(root, Path(folder) / name, data, old) for name, root in {"old": old, "new": ROOT}.items()}
        for side in sides.values():
            side.folder.mkdir()
        for name in names:
            failed = {other for other, verdict in verdicts.items() if not verdict.counts}
            verdicts[name] = run_both(name, sides, failed)
            print(line(name, shares(verdicts[name].counts), verdicts[name]), flush=True)
    return verdicts


def arguments() -> argparse.Namespace:
    """Those of the command, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT", help="an earlier checkout")
    parser.add_argument("--only", help=f"runs, divided by commas, of: {', '.join(RUNS)}")
    parser.add_argument("--json", type=Path, help="file for the counts")
    found = parser.parse_args()
    found.old = found.old.resolve()
    if not (found.old / "pyproject.toml").is_file():
        parser.error(f"{found.old} is no checkout: it has no pyproject.toml")
    found.only = found.only.split(",") if found.only else list(RUNS)
    unknown = [name for name in [*found.only, *EXPECTED] if name not in RUNS]
    unknown += [part for parts in EXPECTED.values() for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; the runs are {', '.join(RUNS)}")
    return found


def main() -> None:
    if sys.argv[1:2] == ["--within"]:
        return within(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    asked, began = arguments(), time.monotonic()
    verdicts = campaign(with_needed(asked.only), asked.old)
    equal, total = Counter(), Counter()
    for verdict in verdicts.values():
        for part, (same, all_) in verdict.counts.items():
            equal[part] += same
            total[part] += all_
    wrong = [name for name, verdict in verdicts.items() if verdict.problem]
    seconds = round(time.monotonic() - began)
    ending = f"{len(wrong)} of {len(verdicts)} runs are wrong" if wrong else "everything is as it should be"
    totals = shares({part: (equal[part], total[part]) for part in PARTS})
    print(line(f"{len(verdicts)} runs, {seconds} s", totals, ending))
    if asked.json:
        runs = {name: vars(verdict) for name, verdict in verdicts.items()}
        asked.json.write_text(
            json.dumps({"runs": runs, "wrong": wrong, "seconds": seconds}, indent=1) + "\n", encoding="utf-8"
        )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
