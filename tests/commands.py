"""Running the command line in process, and small data to run it on."""

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from attndiff.apps.cli import main

WORDS = ["red apple", "blue heart", "green house", "yellow star"]
COLOURS = [(200, 30, 30), (30, 30, 200), (30, 160, 60), (230, 200, 30)]


@dataclass
class Result:
    """What a command answered."""

    code: int
    out: str
    err: str


def attndiff(*arguments: object) -> Result:
    """Run a command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code or 0
    return Result(code, out.getvalue(), err.getvalue())


def tree(folder: Path) -> dict[str, str]:
    """Every file under a folder with a hash of its content; folders with an empty one."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def make_images(folder: Path, captions: bool = True, count: int = 12, side: int = 16) -> Path:
    """Coloured squares in class folders ``a`` and ``b``, with a caption beside each."""
    for i in range(count):
        colour = COLOURS[i % len(COLOURS)]
        pixels = np.full((side, side, 3), 255, np.uint8)
        pixels[2 + i % 3 : -3, 3:-2] = colour
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        if captions:
            path.with_suffix(".txt").write_text(WORDS[i % len(WORDS)])
    return folder


def make_config(path: Path, images: Path, out: Path, **sections: dict) -> Path:
    """A training config for a tiny model and two steps; ``sections`` are merged in."""
    config = {
        "out": str(out),
        "data": {"path": str(images), "size": 16, "validation": 0.3, "caption_column": "text"},
        "condition": {"kind": "text", "vocab_size": 300, "max_length": 8},
        "model": {"preset": "tiny"},
        "optim": {"steps": 2, "batch_size": 4, "warmup": 1, "precision": "fp32"},
        "log": {"tracker": None, "prompts": WORDS[:2]},
    }
    for name, section in sections.items():
        config[name] = {**config[name], **section} if isinstance(config.get(name), dict) else section
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
