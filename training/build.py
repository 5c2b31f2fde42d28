"""From a config to what is trained: data, condition, network and objective."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers import AutoencoderKL

from attndiff.data.columns import CAPTION, IMAGE
from attndiff.data.image_set import ImageSet
from attndiff.data.parts import open_parts
from attndiff.diffusion.objectives import Objective, make_objective
from attndiff.errors import UserError
from attndiff.folder.open import load_quietly
from attndiff.folder.shipped import bundled_data
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.conditioning import Conditioning, make_conditioning
from attndiff.training.config import TrainConfig
from attndiff.training.heads import Head
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.heads.student import StudentModel
from attndiff.training.latents import FOLDER, LatentSet, check_channels, freeze, open_vae, vae_factor
from attndiff.training.settings.networks import check_network_settings
from attndiff.training.streams import open_streamed


@dataclass
class Parts:
    """What a run trains and on what."""

    images: ImageSet | LatentSet
    validation: ImageSet | LatentSet
    conditioning: Conditioning
    model: Head
    notes: list[str]
    vae: AutoencoderKL | None = None


def build(config: TrainConfig) -> Parts:
    """Open the data and make (or load) the model.

    Raises:
        UserError: If data and model do not go together.
    """
    data = config.data.replace(path=str(bundled_data(config.data.path) or config.data.path))
    images, validation, notes = open_streamed(data, config) if data.stream else open_parts(data)
    if config.condition.kind == "text" and CAPTION not in images.columns:
        raise UserError("condition.kind is 'text', but the data has no captions; set data.caption_column.")
    # Weights are drawn from the global generator, once, before anything else.
    set_seed(config.seed)
    source = load_quietly(config.model.init_from) if config.model.init_from else None
    vae = _open_vae(config, source, images)
    if source is None:
        conditioning, unet, encoder, more = _build_new(config, images, vae)
    else:
        conditioning, unet, encoder, more = _build_from(config, images, vae, source)
    _check_size(config, unet, vae)
    if data.max_aspect:
        more = [*more, bucket_note(config, images, unet.size_multiple)]
    if vae is not None:
        images, validation = _encode(config, images, validation, vae)
    settings = {**((source.config.objective if source else None) or {}), **config.objective.model_dump()}
    model = DenoisingModel(unet, encoder, make_run_objective(settings, images))
    if config.distill:
        if source.config.student:
            raise UserError(f"model.init_from {config.model.init_from} is a student already; distil its teacher.")
        model = StudentModel(model, config.distill)
    if config.model.lora_rank:
        model.add_adapter(config.model.lora_rank)
    model.set_gradient_checkpointing(config.optim.gradient_checkpointing)
    return Parts(images, validation, conditioning, model, notes + more, vae)


def bucket_note(config: TrainConfig, images: ImageSet, multiple: int) -> str:
    """How many images each bucket has; raises `UserError` if the network cannot take their sizes."""
    if config.data.bucket_multiple % multiple:
        raise UserError(
            f"data.bucket_multiple {config.data.bucket_multiple} must be a multiple of {multiple} for this network."
        )
    counts = {f"{width}x{height}": len(members) for (height, width), members in images.by_shape().items()}
    note = "buckets (width x height): " + ", ".join(f"{name}: {count}" for name, count in counts.items())
    small = [name for name, count in counts.items() if count < config.optim.batch_size]
    if small:
        note += f"; a batch of {', '.join(small)} shows images more than once, as there are fewer than optim.batch_size"
    return note


def _open_vae(config: TrainConfig, source, images: ImageSet) -> AutoencoderKL | None:
    """The autoencoder in whose latents to train: the config's, or that of the model to start from."""
    if config.model.vae:
        vae = open_vae(config.model.vae)
    elif source is not None and source.vae is not None:
        vae = freeze(source.vae)
    else:
        return None
    for key in ("stream", "max_aspect"):
        if getattr(config.data, key):
            raise UserError(f"model.vae does not go together with data.{key}: leave one of them out.")
    check_channels(vae, images)
    return vae


def _channels(images: ImageSet, vae: AutoencoderKL | None) -> int:
    """Channels that the network sees."""
    return len(images.describe()["channels"]) if vae is None else vae.config.latent_channels


def _check_size(config: TrainConfig, unet: AttentionUNet2DModel, vae: AutoencoderKL | None) -> None:
    size, multiple, factor = config.data.size, unet.size_multiple, 1 if vae is None else vae_factor(vae)
    if size % (multiple * factor):
        network = "this network" if vae is None else f"this network on this VAE ({multiple} latents of {factor} pixels)"
        raise UserError(f"data.size {size} must be a multiple of {multiple * factor} for {network}.")


def _encode(
    config: TrainConfig, images: ImageSet, validation: ImageSet, vae: AutoencoderKL
) -> tuple[LatentSet, LatentSet]:
    """Latents of the training and the held-out images, which may be the same."""
    folder = Path(config.out) / FOLDER
    latents = LatentSet(images, vae, folder, mirror=config.optim.flip > 0)
    return latents, latents if validation is images else LatentSet(validation, vae, folder)


def _build_new(
    config: TrainConfig, images: ImageSet, vae: AutoencoderKL | None
) -> tuple[Conditioning, AttentionUNet2DModel, ConditionEncoder | None, list[str]]:
    """Networks from random weights."""
    conditioning = make_conditioning(config.condition, images)
    preset = PRESETS[config.model.preset]
    channels = _channels(images, vae)
    side = config.data.size // (1 if vae is None else vae_factor(vae))
    settings = {"sample_size": side, "in_channels": channels, "out_channels": channels}
    unet_settings = {**preset["unet"], **settings, **config.model.unet}
    encoder = None
    if conditioning.kind == "none":
        unet_settings |= {"cross_attention_dim": None, "pooled_dim": None}
    else:
        encoder_settings = {**preset["encoder"], **conditioning.encoder_settings, **config.model.encoder}
        encoder = _make(ConditionEncoder, encoder_settings, "model.encoder")
        hidden = encoder.config.hidden_size
        unet_settings |= {"cross_attention_dim": hidden, "pooled_dim": hidden}
    return conditioning, _make(AttentionUNet2DModel, unet_settings, "model.unet"), encoder, []


def _make(cls: type, settings: dict, section: str):
    """Construct a network, turning a bad setting into one sentence."""
    check_network_settings(cls, settings, section)
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {error}") from None


def make_run_objective(settings: dict, images: ImageSet | LatentSet) -> Objective:
    """The objective, with ``sigma_data`` measured on the images (or latents) where the config does not give it."""
    settings = dict(settings)
    if settings.get("sigma_data") is None:
        sample = [images[i][IMAGE.name].ravel() for i in range(0, len(images), max(1, len(images) // 512))]
        settings["sigma_data"] = round(float(torch.from_numpy(np.concatenate(sample)).std()), 4)
    try:
        return make_objective(settings)
    except ValueError as error:
        raise UserError(f"config: {error}") from None


def _build_from(
    config: TrainConfig, images: ImageSet, vae: AutoencoderKL | None, source
) -> tuple[Conditioning, AttentionUNet2DModel, ConditionEncoder | None, list[str]]:
    """Start from the weights of an earlier model; what does not fit its shapes starts anew and is listed."""
    channels = _channels(images, vae)
    base = dict(source.unet.config)
    unet_settings = {k: v for k, v in base.items() if not k.startswith("_")}
    unet_settings |= {"in_channels": channels, "out_channels": channels, **config.model.unet}
    conditioning, encoder = _condition_from(config, source, images)
    if encoder is not None:
        hidden = encoder.config.hidden_size
        unet_settings |= {"cross_attention_dim": hidden, "pooled_dim": hidden}
    unet = _make(AttentionUNet2DModel, unet_settings, "model.unet")
    notes = load_matching(unet, source.unet.state_dict(), "unet")
    if encoder is not None and source.condition_encoder is not None:
        notes += load_matching(encoder, source.condition_encoder.state_dict(), "condition_encoder")
    return conditioning, unet, encoder, notes


def _condition_from(config: TrainConfig, source, images: ImageSet) -> tuple[Conditioning, ConditionEncoder | None]:
    """The earlier model's own tokenizer and encoder for text; class embeddings are made for the new classes."""
    old = source.condition_encoder
    if config.condition.kind == "text" and old is not None and source.tokenizer is not None:
        conditioning = Conditioning("text", source.tokenizer, source.text_encoder)
        return conditioning, ConditionEncoder(**{k: v for k, v in old.config.items() if not k.startswith("_")})
    conditioning = make_conditioning(config.condition, images)
    if conditioning.kind == "none":
        return conditioning, None
    settings = {**PRESETS[config.model.preset]["encoder"], **conditioning.encoder_settings, **config.model.encoder}
    return conditioning, _make(ConditionEncoder, settings, "model.encoder")


def load_matching(module: torch.nn.Module, state: dict[str, torch.Tensor], name: str) -> list[str]:
    """Copy every tensor whose name and shape fit; one sentence for each that does not."""
    own = module.state_dict()
    fits = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    module.load_state_dict(fits, strict=False)
    return [
        f"{name}.{key} starts from random weights: it is {tuple(own[key].shape)} here and "
        + (f"{tuple(state[key].shape)} in the earlier model." if key in state else "absent from the earlier model.")
        for key in own
        if key not in fits
    ]
