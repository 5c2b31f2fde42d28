"""The settings of a run: typed, from YAML, overridden by KEY=VALUE, stored resolved beside the run.

Every mistake in them is one sentence: an unknown key is answered with the nearest right one, a wrong value with what
would be right.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from attndiff.data.config import DataConfig
from attndiff.errors import UserError
from attndiff.nn.presets import PRESETS
from attndiff.paths import expand, expand_setting
from attndiff.settings import Section, SettingError, check_choice, check_keys
from attndiff.tasks.registry import TASKS, AnyTaskSettings
from attndiff.tasks.task import GenerateSettings
from attndiff.training.settings.overrides import apply_overrides
from attndiff.training.settings.plain_yaml import read_yaml, write_yaml
from attndiff.training.settings.trackers import TRACKERS

FORMAT_VERSION = 1
RECIPES = Path(__file__).parent / "recipes"


class ConditionConfig(Section):
    """What the images are conditioned on."""

    kind: Literal["none", "class", "text"] = "text"
    vocab_size: int = Field(2048, ge=300)
    max_length: int = Field(24, ge=2)
    pretrained: str | None = None  # name or folder of a frozen transformers text encoder used instead of our tokenizer
    dropout: float = Field(0.1, ge=0, le=1)  # share of samples whose condition is replaced by the learned null
    # Of a contrast of texts and images, in which the encoder learns words before step 1; it keeps what it knows then.
    grounding_steps: int | None = Field(None, ge=0)  # None: what is worth it, nothing where captions say little
    # Share of a caption's words that a visit leaves out; None: 0.2 where the encoder learned words first, of fewer than
    # 20,000 images, else none.
    word_dropout: float | None = Field(None, ge=0, lt=1)

    _expand = field_validator("pretrained", mode="before")(expand_setting)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.word_dropout and self.kind != "text":
            raise SettingError("word_dropout", f"a condition of kind {self.kind} has no words; leave it out")
        return self


class ModelConfig(Section):
    """The network: a preset, and whatever is to differ from it."""

    preset: str = "xs"
    unet: dict[str, Any] = {}
    transformer: dict[str, Any] = {}  # of a task that draws value after value
    text_decoder: dict[str, Any] = {}  # of a task that writes captions
    encoder: dict[str, Any] = {}
    init_from: str | None = None  # pipeline folder whose weights to start from
    vae: str | None = None  # folder or Hub id of a frozen AutoencoderKL in whose latents to train
    features: str | None = None  # pipeline folder of a denoising model: what it sees in an image, captions are told
    lora_rank: int | None = Field(None, ge=1)  # train an adapter of this rank on init_from instead of all weights

    _expand = field_validator("init_from", "vae", "features", mode="before")(expand_setting)


class ObjectiveConfig(Section):
    """What the network learns to predict; what is not given is as in the model that the run starts from.

    It is stored as it was given, so that a run knows later what it was told and what it measured.
    """

    name: Literal["flow", "x0", "edm", "epsilon", "v"] | None = None  # flow where it is given nowhere
    sigma_data: float | None = Field(None, gt=0)  # of the training images; None: measured
    noise_mean: float = 0.0  # of ln(noise / signal) over training samples
    noise_std: float = Field(1.4, gt=0)
    # Cap of the signal-to-noise weight, infinite without one; None: the objective's own.
    min_snr_gamma: float | None = Field(None, gt=0, allow_inf_nan=True)

    @model_serializer(mode="wrap")
    def _given(self, dump) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


class OptimConfig(Section):
    """How the weights move."""

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)  # instead of steps: as many as fit, corrected as the run goes
    least_steps: int = Field(50, ge=1)  # of a run that minutes were given: fewer are not worth their time
    batch_size: int = Field(96, ge=1)  # images per step over all processes and micro-batches
    micro_batch: int | None = Field(None, ge=1)  # images a process handles at once; None: no accumulation
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = Field(2e-3, gt=0)
    adamw_lr: float = Field(1e-3, gt=0)  # of the parameters that Muon does not take
    # What both rates are multiplied by for the condition's encoder; None: 0 if it has learned words already, else 1.
    encoder_rate: float | None = Field(None, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(100, ge=0)  # steps
    decay: float = Field(0.4, ge=0, le=1)  # share of the run, at its end, over which the rate falls to zero
    clip: float = Field(1.0, gt=0, allow_inf_nan=True)  # gradient norm at most, which may be infinite
    # Leave out steps with a gradient norm above this (log: gradient_norm).
    skip_above: float | None = Field(None, gt=0, allow_inf_nan=True)
    max_skips: int = Field(5, ge=0)  # steps left out in a row, for that or for not being finite; then it stops
    ema: list[float] = [0.05, 0.10]  # relative widths of the kept averages
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    flip: float = Field(0.0, ge=0, le=1)  # probability of mirroring an image
    workers: int = Field(0, ge=0)  # loader processes
    deterministic: bool = False


class DistillConfig(Section):
    """Makes the run that of a student of ``model.init_from``, which samples in a few calls of the network."""

    guidance_scale: float = Field(3.0, ge=1)  # the teacher's, built into the student; 1 learns without a teacher
    steps: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 4], min_length=1)  # numbers of steps it is stored for
    first_gap: float = Field(0.25, gt=0, lt=1)  # share of its level that a step of the path takes, at first
    last_gap: float = Field(1 / 8, gt=0, lt=1)  # and at the end of the run
    adversarial_weight: float = Field(0.0, ge=0)  # of the discriminator's verdict on samples of one step; 0: none
    adversarial_from: float = Field(0.7, ge=0, lt=1)  # share of the run without one


class LogConfig(Section):
    """What is written while training, and how often in steps."""

    every: int = Field(10, ge=1)
    validate_every: int = Field(250, ge=1)
    sample_every: int = Field(1000, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    keep: int = Field(2, ge=1)  # checkpoints
    evaluate_every: int | None = Field(None, ge=1)  # Frechet and kernel distance of the longest average; None: never
    snapshot_every: int | None = Field(None, ge=1)  # keep the averages this often, to rebuild any other after the run
    prompts: list[str] = []  # captions (or class names) of the sample grids; empty: some of the held-out ones
    guidance_scale: float = Field(3.0, ge=0)
    tracker: str | None = "tensorboard"  # as Accelerate has it; None: none

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tracker is not None:
            check_choice("tracker", self.tracker, tuple(TRACKERS))
        return self


class TrainConfig(Section):
    """Everything that determines a run."""

    format_version: int = FORMAT_VERSION
    out: str
    seed: int = Field(0, ge=0, lt=2**32)
    task: AnyTaskSettings = GenerateSettings()
    data: DataConfig
    condition: ConditionConfig = ConditionConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig(name="flow")
    optim: OptimConfig = OptimConfig()
    distill: DistillConfig | None = None
    log: LogConfig = LogConfig()

    _expand = field_validator("out", mode="before")(expand_setting)


def load_config(path: str | Path, overrides: list[str] = ()) -> TrainConfig:
    """Read a YAML file (or the name of a bundled recipe) and apply ``KEY=VALUE`` overrides with dotted keys.

    Raises:
        UserError: If the file is missing or no YAML, a key is unknown or given twice, or a value does not fit.
    """
    file = expand(path)
    if not file.is_file() and (RECIPES / f"{path}.yaml").is_file():
        file = RECIPES / f"{path}.yaml"
    if not file.is_file():
        bundled = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise UserError(f"config {path} does not exist; give a YAML file or one of the bundled recipes: {bundled}.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"config {path} is not UTF-8 text; save it as UTF-8.") from None
    values = read_yaml(text, TrainConfig, f"config {path}") or {}
    if not isinstance(values, dict):
        raise UserError(f"config {path} must hold 'key: value' lines, not a {type(values).__name__}.")
    apply_overrides(values, overrides, TrainConfig)
    return make_config(values)


def make_config(values: dict[str, Any]) -> TrainConfig:
    """Validate a nested dict of settings.

    Raises:
        UserError: As `load_config`.
    """
    check_keys(values, TrainConfig)
    if values.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise UserError(
            f"format_version is {values['format_version']}, and this attndiff reads {FORMAT_VERSION}; "
            "use the version that wrote the config."
        )
    try:
        config = TrainConfig(**values)
    except SettingError as error:
        raise UserError(f"config: {error.place}: {error.problem}.") from None
    return _check_values(config)


def _check_values(config: TrainConfig) -> TrainConfig:
    if config.model.preset not in PRESETS:
        raise UserError(f"model.preset {config.model.preset!r} is unknown; choose one of {', '.join(PRESETS)}.")
    if (config.optim.steps is None) == (config.optim.minutes is None):
        raise UserError("config: give either optim.steps or optim.minutes.")
    if not config.optim.ema or any(not 0 < sigma < 0.28 for sigma in config.optim.ema):
        raise UserError("optim.ema must list relative widths between 0 and 0.28, such as [0.05, 0.10].")
    if config.model.lora_rank and not config.model.init_from:
        raise UserError("model.lora_rank trains an adapter on a model; name that model in model.init_from.")
    if config.model.vae and config.model.init_from:
        raise UserError("model.vae: a model that starts from another keeps that one's latents; leave one of them out.")
    if config.distill:
        _check_student(config)
    needed = {column.name: column.kind for column in TASKS[config.task.name].columns(config.task)}
    if needed.keys() - config.data.columns.keys():
        config.data = config.data.replace(columns={**needed, **config.data.columns})
    return config


def _check_student(config: TrainConfig) -> None:
    if not config.model.init_from or config.model.lora_rank:
        raise UserError("distill makes a student of a whole model; name it in model.init_from, without lora_rank.")
    if config.log.guidance_scale != 1:
        raise UserError("distill: a student has its guidance built in; set log.guidance_scale to 1.")


def store_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved settings as YAML."""
    path.write_text(write_yaml(config.model_dump(mode="json")), encoding="utf-8")
