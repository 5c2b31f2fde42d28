"""What a run learns from its data, once: written as ``learned/`` before step 1 and read from there ever after.

A resumed run and an export take the tokenizer, the order of the classes, the objective with its ``sigma_data`` and the
description of the data from this folder, whatever has become of the data. Checkpoints name it by its hash, so that
weights never go on with what they were not trained with.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from attndiff.alpha import has_alpha, is_premultiplied
from attndiff.errors import UserError
from attndiff.training.state.checkpoint import sync

FOLDER = "learned"  # in a run's folder
PARTIAL = "learned.partial"
FACTS, TOKENIZER, ENCODER = "learned.json", "tokenizer", "encoder.safetensors"
FORMAT_VERSION = 1
INTAKE = 4  # how files become tensors; raised when the same file gives other pixels than before


@dataclass
class Learned:
    """All that depends on the data and is known before step 1.

    Args:
        data: What a pipeline keeps about its data: channels, depth, range, class names, size of the images.
        images: Number of training images; None of a stream.
        held_out: Number of held-out images.
        objective: Settings of the objective, ``sigma_data`` among them; empty until it is measured.
        tokenizer: Trained on the captions; None where the condition is no text, or a given tokenizer reads it.
        fingerprint: Of the training images with their captions or classes; of a stream, of its head.
        skipped: Number of files left out; None of a stream, which finds out on the way.
        licences: That the rows name, each with its number of rows, most first.
        prompts: What to draw while training and on the card: captions of held-out images, or classes.
        notes: What is to be said of the data, a sentence each.
        task: Settings of the task, those measured on the images among them.
        encoder: Weights of the condition encoder, where it has been grounded.
        words: Of the captions; empty where not all captions were read, or they have too many.
        intake: Version of how files become tensors.
        digest: SHA-256 of the folder that holds all this; None before it is written.
    """

    data: dict
    images: int | None
    held_out: int
    objective: dict = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerFast | None = None
    fingerprint: str | None = None
    skipped: int | None = None
    licences: list[tuple[str, int]] = field(default_factory=list)
    prompts: list[str | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    task: dict = field(default_factory=lambda: {"name": "generate"})
    encoder: dict[str, torch.Tensor] | None = None
    words: list[str] = field(default_factory=list)
    intake: int = INTAKE
    digest: str | None = None

    @property
    def read_otherwise(self) -> bool:
        """Whether the images were surely other numbers then: earlier versions did not multiply colour by alpha."""
        return has_alpha(self.data) and not is_premultiplied(self.data)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their numbers."""
        return self.data["class_names"]


def write_learned(learned: Learned, run: Path) -> None:
    """Put ``learned/`` into a run's folder, whole or not at all: written aside, synced, renamed.

    Only for a run without a checkpoint that names one: what lies there is replaced.
    """
    partial, final = run / PARTIAL, run / FOLDER
    for left in (partial, final):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    facts = {key: value for key, value in vars(learned).items() if key not in ("tokenizer", "encoder", "digest")}
    text = json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=1, ensure_ascii=False)
    (partial / FACTS).write_text(text + "\n", encoding="utf-8")
    if learned.tokenizer is not None:
        learned.tokenizer.save_pretrained(partial / TOKENIZER)
    if learned.encoder is not None:
        save_file(learned.encoder, partial / ENCODER)
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    partial.rename(final)
    sync(run)


def read_learned(run: Path, named: str | None = None) -> Learned:
    """What a run learned from its data.

    Args:
        run: The run's folder.
        named: The hash by which a checkpoint names it; None takes what is there.

    Raises:
        UserError: If it is missing, not what the checkpoint names, or of another format.
    """
    folder = run / FOLDER
    if not (folder / FACTS).is_file():
        raise UserError(
            f"{folder} is missing: it holds what the run learned from its data before step 1 (tokenizer, classes, "
            "sigma_data), which its weights mean nothing without; put it back, or choose another 'out'."
        )
    digest = learned_digest(run)
    if named is not None and digest != named:
        raise UserError(
            f"{folder} is not what the weights of this run were trained with: its files were changed; restore them, "
            "or choose another 'out'."
        )
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    version = facts.pop("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder} is of format {version}, and this attndiff reads {FORMAT_VERSION}; go on with the version that "
            "wrote it."
        )
    tokenizer = _read_tokenizer(folder / TOKENIZER) if (folder / TOKENIZER).is_dir() else None
    encoder = load_file(folder / ENCODER) if (folder / ENCODER).is_file() else None
    return Learned(**facts, tokenizer=tokenizer, encoder=encoder, digest=digest)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as it was before it was written: saving it gives the same files."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    stored = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer.init_kwargs = {key: value for key, value in tokenizer.init_kwargs.items() if key in stored}
    return tokenizer


def learned_digest(run: Path) -> str:
    """SHA-256 over names and contents of all files of a run's ``learned/``."""
    folder, total = run / FOLDER, hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()
