"""What both checkouts do."""

from dataclasses import dataclass

from sameness.figures import PARTS, PIXELS

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
