"""Networks from a config, what was learned and the models given; the data are not needed for it.

Weights are drawn from torch's global generator in the order in which the networks are made here.
"""

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL

from attndiff.diffusion.features import feature_channels, seen_multiple
from attndiff.diffusion.objectives import Objective
from attndiff.errors import UserError
from attndiff.nn.decoder import TextDecoderModel
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.raster.model import PixelTransformerModel
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.tasks.registry import TASKS, task_of
from attndiff.training.conditioning import Conditioning, make_conditioning
from attndiff.training.config import OptimConfig, TrainConfig
from attndiff.training.latents import vae_factor
from attndiff.training.parts.given import Given
from attndiff.training.settings.networks import check_network_settings
from attndiff.training.state.learned import Learned

# By their names in pipelines.
CLASSES = {"unet": AttentionUNet2DModel, "transformer": PixelTransformerModel, "text_decoder": TextDecoderModel}
COMPONENTS = {"denoising": "unet", "raster": "transformer", "captioning": "text_decoder"}  # of heads
PATCHES = 16  # a side of what a Transformer draws: four times as many would cost as much more, and attention still more
SEEN = 8  # likewise of what is only looked at: 16 make a step of the xs preset three times as long
Network = AttentionUNet2DModel | PixelTransformerModel | TextDecoderModel


@dataclass
class Networks:
    """What is trained, and what makes its condition.

    Args:
        conditioning: From captions and labels to tensors.
        encoder: Of the condition; None without one.
        network: What is told it.
        notes: What of an earlier model's weights could not be taken over, a sentence each.
        denoiser: A frozen network whose features of an image are seen, and what it predicts.
    """

    conditioning: Conditioning
    encoder: ConditionEncoder | None
    network: Network
    notes: list[str] = field(default_factory=list)
    denoiser: tuple[AttentionUNet2DModel, Objective] | None = None


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
    for name, cls in CLASSES.items():
        check_network_settings(cls, getattr(config.model, name), f"model.{name}")
    check_network_settings(ConditionEncoder, config.model.encoder, "model.encoder")


def make_networks(config: TrainConfig, learned: Learned, given: Given) -> Networks:
    """Networks from random weights, or from those of an earlier model.

    Raises:
        UserError: If the settings make no network, or the network does not take images of ``data.size``.
    """
    conditioning = given.conditioning or make_conditioning(config.condition, learned)
    make = _new if given.source is None else _from_earlier
    networks = make(config, conditioning, learned, given)
    _check_size(config, size_multiple(networks), given.vae)
    if learned.encoder is not None:
        begin_grounded(networks.encoder, learned.encoder)
    return networks


def component_of(learned: Learned) -> str:
    """Name of the network in pipelines, presets and the section ``model``: a key of `CLASSES`."""
    return COMPONENTS[TASKS[learned.task["name"]].head]


def _new(config: TrainConfig, conditioning: Conditioning, learned: Learned, given: Given) -> Networks:
    name = component_of(learned)
    encoder = _image_encoder(config, learned, given) if sees_images(name) else _new_encoder(config, conditioning)
    settings = {**PRESETS[config.model.preset][name], **_fitting(name, config, learned, given)}
    network = _make_network(name, {**settings, **getattr(config.model, name)}, encoder)
    return Networks(conditioning, encoder, network, denoiser=given.denoiser)


def _from_earlier(config: TrainConfig, conditioning: Conditioning, learned: Learned, given: Given) -> Networks:
    """Start from the weights of an earlier model; what does not fit its shapes starts anew and is listed."""
    source, name = given.source, component_of(learned)
    if COMPONENTS[task_of(source).head] != name:
        raise UserError(
            f"model.init_from {config.model.init_from} is of another kind than task.name {learned.task['name']} "
            f"trains: what is gone on with is a {name}."
        )
    earlier = getattr(source, name)
    settings = {k: v for k, v in earlier.config.items() if not k.startswith("_")}
    settings |= {**_channels_of(name, learned, given), **getattr(config.model, name)}
    if conditioning.tokenizer is not None and conditioning.tokenizer is source.tokenizer:
        kept = source.condition_encoder.config
        encoder = ConditionEncoder(**{k: v for k, v in kept.items() if not k.startswith("_")})
    else:  # class embeddings are made for the new classes
        encoder = _new_encoder(config, conditioning)
    network = _make_network(name, settings, encoder)
    notes = load_matching(network, earlier.state_dict(), name)
    if encoder is not None and source.condition_encoder is not None:
        notes += load_matching(encoder, source.condition_encoder.state_dict(), "condition_encoder")
    return Networks(conditioning, encoder, network, notes, given.denoiser)


def _new_encoder(config: TrainConfig, conditioning: Conditioning) -> ConditionEncoder | None:
    if not conditioning.prompt.is_given:
        return None
    preset = PRESETS[config.model.preset]["encoder"]
    settings = {**preset, **conditioning.encoder_settings, **config.model.encoder}
    return _make(ConditionEncoder, settings, "model.encoder")


def sees_images(name: str) -> bool:
    """Whether a network of this name is told an image rather than a prompt."""
    return name == "text_decoder"


def _image_encoder(config: TrainConfig, learned: Learned, given: Given) -> ConditionEncoder:
    """Of the image's patches, and of what a denoising network sees in it."""
    streams = {
        "image_channels": _channels(learned, None),
        "image_patch_size": max(1, config.data.size // SEEN),
        "context_dim": None if given.denoiser is None else feature_channels(given.denoiser[0]),
    }
    settings = {**PRESETS[config.model.preset]["image_encoder"], **streams, **config.model.encoder}
    return _make(ConditionEncoder, settings, "model.encoder")


def _make_network(name: str, settings: dict, encoder: ConditionEncoder | None) -> Network:
    """The network, as wide at its condition as the encoder is."""
    hidden = None if encoder is None else encoder.config.hidden_size
    widths = ("cross_attention_dim", "pooled_dim") if name == "unet" else ("cross_attention_dim",)
    return _make(CLASSES[name], {**settings, **dict.fromkeys(widths, hidden)}, f"model.{name}")


def _make(cls: type, settings: dict, section: str):
    """Construct a network, turning a bad setting into one sentence."""
    check_network_settings(cls, settings, section)
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}: {error}") from None


def _fitting(name: str, config: TrainConfig, learned: Learned, given: Given) -> dict[str, int]:
    """Size and channels, or tokens, of what a network is made for."""
    if sees_images(name):
        return _channels_of(name, learned, given)
    side = config.data.size // (1 if given.vae is None else vae_factor(given.vae))
    patch = {"patch_size": max(1, side // PATCHES)} if name == "transformer" else {}
    return {"sample_size": side, **patch, **_channels_of(name, learned, given)}


def _channels_of(name: str, learned: Learned, given: Given) -> dict[str, int]:
    """Channels that go in, those that lie beside the noisy image among them, and that come out; of texts, tokens."""
    if sees_images(name):
        tokenizer = learned.tokenizer if given.conditioning is None else given.conditioning.tokenizer
        return {"vocab_size": len(tokenizer), "max_length": tokenizer.model_max_length}
    channels = _channels(learned, given.vae)
    if name == "transformer":
        return {"channels": channels}
    task = TASKS[learned.task["name"]]
    settings = task.settings(**learned.task)
    made = task.made_channels(channels, settings)
    return {"in_channels": made + task.aligned_channels(channels, settings), "out_channels": made}


def _channels(learned: Learned, vae: AutoencoderKL | None) -> int:
    """Channels that the network sees."""
    return len(learned.data["channels"]) if vae is None else vae.config.latent_channels


def size_multiple(networks: Networks) -> int:
    """Of the sides of images: that of what they go into."""
    if isinstance(networks.network, TextDecoderModel):
        return seen_multiple(networks.encoder, *(networks.denoiser or ())[:1])
    return networks.network.size_multiple


def _check_size(config: TrainConfig, multiple: int, vae: AutoencoderKL | None) -> None:
    size, factor = config.data.size, 1 if vae is None else vae_factor(vae)
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
