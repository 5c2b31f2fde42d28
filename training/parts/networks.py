"""Networks from a config, what was learned and the models given; the data are not needed for it.

Weights are drawn from torch's global generator in the order in which the networks are made here.
"""

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL

from attndiff.errors import UserError
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.tasks.registry import TASKS
from attndiff.training.conditioning import Conditioning, make_conditioning
from attndiff.training.config import OptimConfig, TrainConfig
from attndiff.training.latents import vae_factor
from attndiff.training.parts.given import Given
from attndiff.training.settings.networks import check_network_settings
from attndiff.training.state.learned import Learned


@dataclass
class Networks:
    """What is trained, and what makes its condition.

    Args:
        conditioning: From captions and labels to tensors.
        encoder: Of the condition; None without one.
        unet: The network.
        notes: What of an earlier model's weights could not be taken over, a sentence each.
    """

    conditioning: Conditioning
    encoder: ConditionEncoder | None
    unet: AttentionUNet2DModel
    notes: list[str] = field(default_factory=list)


def begin_grounded(encoder: ConditionEncoder, weights: dict[str, torch.Tensor]) -> None:
    """Give an encoder the weights that a contrast has found."""
    encoder.load_state_dict(weights)
    encoder.register_to_config(grounded=True)


def keep_encoder(encoder: ConditionEncoder | None, optim: OptimConfig) -> None:
    """Leave an encoder out of the training if its rate is 0, which is what a grounded one has unless told otherwise.

    Trained on at the network's rates by the network's loss it forgets in minutes what words look like: on icons a
    caption then gained a tenth of what it gains with one that stays (model_cards/words.md).
    """
    if encoder is None:
        return
    rate = optim.encoder_rate
    if rate == 0 or (rate is None and encoder.config.grounded):
        encoder.requires_grad_(False)


def check_model(config: TrainConfig) -> None:
    """Raise `UserError` for a setting of ``model.unet`` or ``model.encoder`` that no network has; needs no data."""
    check_network_settings(AttentionUNet2DModel, config.model.unet, "model.unet")
    check_network_settings(ConditionEncoder, config.model.encoder, "model.encoder")


def make_networks(config: TrainConfig, learned: Learned, given: Given) -> Networks:
    """Networks from random weights, or from those of an earlier model.

    Raises:
        UserError: If the settings make no network, or the network does not take images of ``data.size``.
    """
    conditioning = given.conditioning or make_conditioning(config.condition, learned)
    make = _new if given.source is None else _from_earlier
    networks = make(config, conditioning, learned, given)
    _check_size(config, networks.unet, given.vae)
    if learned.encoder is not None:
        begin_grounded(networks.encoder, learned.encoder)
    return networks


def _new(config: TrainConfig, conditioning: Conditioning, learned: Learned, given: Given) -> Networks:
    preset, channels = PRESETS[config.model.preset], _channels(learned, given.vae)
    side = config.data.size // (1 if given.vae is None else vae_factor(given.vae))
    settings = {"sample_size": side, **_sides(channels, learned)}
    settings = {**preset["unet"], **settings, **config.model.unet}
    encoder = _new_encoder(config, conditioning)
    if encoder is None:
        settings |= {"cross_attention_dim": None, "pooled_dim": None}
    return Networks(conditioning, encoder, _make_unet(settings, encoder))


def _from_earlier(config: TrainConfig, conditioning: Conditioning, learned: Learned, given: Given) -> Networks:
    """Start from the weights of an earlier model; what does not fit its shapes starts anew and is listed."""
    source, channels = given.source, _channels(learned, given.vae)
    settings = {k: v for k, v in source.unet.config.items() if not k.startswith("_")}
    settings |= {**_sides(channels, learned), **config.model.unet}
    if conditioning.tokenizer is not None and conditioning.tokenizer is source.tokenizer:
        kept = source.condition_encoder.config
        encoder = ConditionEncoder(**{k: v for k, v in kept.items() if not k.startswith("_")})
    else:  # class embeddings are made for the new classes
        encoder = _new_encoder(config, conditioning)
    unet = _make_unet(settings, encoder)
    notes = load_matching(unet, source.unet.state_dict(), "unet")
    if encoder is not None and source.condition_encoder is not None:
        notes += load_matching(encoder, source.condition_encoder.state_dict(), "condition_encoder")
    return Networks(conditioning, encoder, unet, notes)


def _new_encoder(config: TrainConfig, conditioning: Conditioning) -> ConditionEncoder | None:
    if not conditioning.prompt.is_given:
        return None
    preset = PRESETS[config.model.preset]["encoder"]
    settings = {**preset, **conditioning.encoder_settings, **config.model.encoder}
    return _make(ConditionEncoder, settings, "model.encoder")


def _make_unet(settings: dict, encoder: ConditionEncoder | None) -> AttentionUNet2DModel:
    """The network, as wide at its condition as the encoder is."""
    if encoder is not None:
        hidden = encoder.config.hidden_size
        settings = {**settings, "cross_attention_dim": hidden, "pooled_dim": hidden}
    return _make(AttentionUNet2DModel, settings, "model.unet")


def _make(cls: type, settings: dict, section: str):
    """Construct a network, turning a bad setting into one sentence."""
    check_network_settings(cls, settings, section)
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {error}") from None


def _sides(channels: int, learned: Learned) -> dict[str, int]:
    """Channels that go in, those that lie beside the noisy image among them, and that come out."""
    aligned = TASKS[learned.task["name"]].aligned_channels(channels)
    return {"in_channels": channels + aligned, "out_channels": channels}


def _channels(learned: Learned, vae: AutoencoderKL | None) -> int:
    """Channels that the network sees."""
    return len(learned.data["channels"]) if vae is None else vae.config.latent_channels


def _check_size(config: TrainConfig, unet: AttentionUNet2DModel, vae: AutoencoderKL | None) -> None:
    size, multiple, factor = config.data.size, unet.size_multiple, 1 if vae is None else vae_factor(vae)
    if size % (multiple * factor):
        network = "this network" if vae is None else f"this network on this VAE ({multiple} latents of {factor} pixels)"
        raise UserError(f"data.size {size} must be a multiple of {multiple * factor} for {network}.")


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
