"""Models that a run is given: the one to start from, and frozen an autoencoder, a text encoder, a denoising network."""

from dataclasses import dataclass, field

from diffusers import AutoencoderKL, DiffusionPipeline

from attndiff.alpha import has_alpha, is_premultiplied
from attndiff.data.rows import Rows
from attndiff.diffusion.objectives import Objective, make_objective
from attndiff.errors import UserError
from attndiff.folder.open import load_quietly
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.tasks.caption import CAPTIONING
from attndiff.tasks.prompts import PROMPTS
from attndiff.training.conditioning import Conditioning, open_pretrained
from attndiff.training.config import TrainConfig
from attndiff.training.latents import check_channels, freeze, open_vae
from attndiff.words import take_words


@dataclass
class Given:
    """What the config names beside the data.

    Args:
        source: The earlier model to start from.
        vae: The autoencoder in whose latents to train.
        conditioning: Tokenizer and encoder of text; None where the run learns its own or has no text.
        words: That the earlier model's captions had, as far as it says so.
        denoiser: A network whose features of an image are seen, and what it predicts; None without one.
    """

    source: DiffusionPipeline | None
    vae: AutoencoderKL | None
    conditioning: Conditioning | None
    words: set[str] = field(default_factory=set)
    denoiser: tuple[AttentionUNet2DModel, Objective] | None = None


def open_given(config: TrainConfig) -> Given:
    """Open the models that a config names.

    Raises:
        UserError: If one cannot be opened.
    """
    source = load_quietly(config.model.init_from) if config.model.init_from else None
    if source is not None and has_alpha(source.config.data) and not is_premultiplied(source.config.data):
        raise UserError(
            f"model.init_from {config.model.init_from} is of an earlier version, whose colour was not multiplied by "
            "alpha, as that of images is now: train anew from random weights."
        )
    if config.distill and source.config.get("student"):
        raise UserError(f"model.init_from {config.model.init_from} is a student already; distil its teacher.")
    words = take_words(source.tokenizer) if source is not None and source.tokenizer is not None else set()
    denoiser = open_denoiser(config, source)
    return Given(source, _open_vae(config, source), open_text(config, source), words, denoiser)


def _open_vae(config: TrainConfig, source: DiffusionPipeline | None) -> AutoencoderKL | None:
    """The config's autoencoder, or that of the model to start from."""
    if config.model.vae:
        return open_vae(config.model.vae)
    earlier = getattr(source, "vae", None)
    return None if earlier is None else freeze(earlier)


def open_denoiser(
    config: TrainConfig, source: DiffusionPipeline | None
) -> tuple[AttentionUNet2DModel, Objective] | None:
    """The network of ``model.features``, or that which the captioning model to start from looks through.

    Raises:
        UserError: If it is no network of pixels.
    """
    if config.task.name != CAPTIONING.name:
        if config.model.features:
            raise UserError("model.features is seen by what writes captions: set task.name=caption, or leave it out.")
        return None
    seen_by = load_quietly(config.model.features) if config.model.features else source
    unet = getattr(seen_by, "unet", None)
    if config.model.features and (unet is None or seen_by.vae or unet.config.in_channels != unet.config.out_channels):
        raise UserError(f"model.features {config.model.features} is no model that denoises images: choose another.")
    return None if unet is None else (freeze(unet), make_objective(seen_by.config.objective))


def open_text(config: TrainConfig, source: DiffusionPipeline | None) -> Conditioning | None:
    """What reads text: the earlier model's own tokenizer and encoder, or the pretrained ones that are named."""
    prompt = PROMPTS[config.condition.kind]
    if not prompt.reads_text:
        return None
    if source is not None and source.condition_encoder is not None and source.tokenizer is not None:
        return Conditioning(prompt, source.tokenizer, getattr(source, "text_encoder", None))
    return open_pretrained(config.condition) if config.condition.pretrained else None


def check_vae(config: TrainConfig, vae: AutoencoderKL, images: Rows) -> None:
    """Raise `UserError` unless the images can be trained on as latents of the autoencoder."""
    for key in ("stream", "max_aspect"):
        if getattr(config.data, key):
            raise UserError(f"model.vae does not go together with data.{key}: leave one of them out.")
    check_channels(vae, images)
