"""The networks that attndiff is measured against, each in a configuration that its authors published.

A peer is narrowed by one number, its width, until it has as many parameters or operations as attndiff; depths, levels,
kinds of block and channels per normalisation group stay as published. All take the same condition: tokens by
cross-attention where a network has it, else the pooled vector beside its noise embedding.

Where no package has the network as its paper describes it, it is written here from the paper, in a file of its own. A
package that is absent is an `ImportError` here; whoever measures names it and goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.utils import BaseOutput
from torch import nn

from attndiff.diffusion.objectives import Objective
from attndiff.training.heads.denoising import DenoisingModel
from bench.edm2_unet import MULTIPLES, EDM2UNet
from bench.partial_import import network_module
from bench.peer_objectives import (
    EDM2,
    CleanImage,
    KarrasSoftMinSNR,
    LinearEpsilon,
    ScaledLinearEpsilon,
    SigmoidVelocity,
)
from bench.pixel_transformer import PixelTransformer
from bench.uncertainty import UncertaintyWeighted

RATES = (2e-4, 5e-4, 1e-3)  # of AdamW, which the peers' authors use
HEAD = 32  # channels of an attention head, about, as in attndiff's own small presets


@dataclass
class Prediction(BaseOutput):
    """``sample (B, C, H, W)``."""

    sample: torch.Tensor


class Adapted(nn.Module):
    """diffusers' network behind the call that our denoising model makes."""

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet = unet

    def forward(self, sample, noise_level, encoder_hidden_states, encoder_attention_mask, pooled_projections):
        return self.unet(sample, noise_level, encoder_hidden_states, encoder_attention_mask=encoder_attention_mask)


class AdaptedUNet2D(nn.Module):
    """diffusers' `UNet2DModel`, whose "identity" class embedding takes the pooled condition."""

    def __init__(self, unet: UNet2DModel, pooled_dim: int):
        super().__init__()
        self.unet = unet
        self.pooled = nn.Linear(pooled_dim, 4 * unet.config.block_out_channels[0])

    def forward(self, sample, noise_level, encoder_hidden_states, encoder_attention_mask, pooled_projections):
        return self.unet(sample, noise_level, class_labels=self.pooled(pooled_projections))


class TimeAndPooled(nn.Module):
    """A time embedding that also takes the pooled condition."""

    def __init__(self, time_mlp: nn.Sequential, pooled_dim: int):
        super().__init__()
        self.time_mlp, self.pooled = time_mlp, nn.Linear(pooled_dim, time_mlp[-1].out_features)

    def forward(self, time_and_pooled: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        time, pooled = time_and_pooled
        return self.time_mlp(time) + self.pooled(pooled)


class AdaptedUnet(nn.Module):
    """denoising-diffusion-pytorch's `Unet`, which hands its time argument to nothing but its time embedding."""

    def __init__(self, unet: nn.Module, pooled_dim: int):
        super().__init__()
        unet.time_mlp = TimeAndPooled(unet.time_mlp, pooled_dim)
        self.unet = unet

    def forward(self, sample, noise_level, encoder_hidden_states, encoder_attention_mask, pooled_projections):
        return Prediction(self.unet(sample, (noise_level, pooled_projections)))


class AdaptedTransformer(nn.Module):
    """k-diffusion's `ImageTransformerDenoiserModelV2`, which takes sigma and embeds ``ln(sigma) / 4`` as we do."""

    def __init__(self, transformer: nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, sample, noise_level, encoder_hidden_states, encoder_attention_mask, pooled_projections):
        return Prediction(self.transformer(sample, (4 * noise_level).exp(), mapping_cond=pooled_projections))


class AdaptedPooled(nn.Module):
    """A network of images, noise coordinate and pooled condition."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, sample, noise_level, encoder_hidden_states, encoder_attention_mask, pooled_projections):
        return Prediction(self.network(sample, noise_level, pooled_projections))


def stable_diffusion_unet(width: int, cross_attention_dim: int) -> nn.Module:
    """The default arguments of `UNet2DConditionModel`, which are those of Stable Diffusion 1, on images."""
    widths = (width, 2 * width, 4 * width, 4 * width)
    return Adapted(
        UNet2DConditionModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            block_out_channels=widths,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=tuple(parts(w, HEAD) for w in widths),  # the argument means the number of heads
            norm_num_groups=parts(width, 8),
        )
    )


def ddpm_unet(width: int, pooled_dim: int) -> nn.Module:
    """The configuration of ``google/ddpm-cifar10-32``, at width 128 there."""
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=2 * width,  # one head
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=width // 4,
        class_embed_type="identity",
    )
    return AdaptedUNet2D(unet, pooled_dim)


def lucidrains_unet(width: int, pooled_dim: int) -> nn.Module:
    """The README's ``Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=True)``."""
    module = network_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    return AdaptedUnet(module.Unet(dim=width, dim_mults=(1, 2, 4, 8), flash_attn=True), pooled_dim)


def hourglass_transformer(width: int, pooled_dim: int) -> nn.Module:
    """``configs/config_cifar10_transformer.json``, at width 256 there: global attention at both levels."""
    module = network_module("k_diffusion.models.image_transformer_v2")
    attention = module.GlobalAttentionSpec(64 if width % 64 == 0 else HEAD)
    levels = [module.LevelSpec(depth, w, 3 * w, attention, 0.0) for depth, w in ((2, width), (4, 2 * width))]
    mapping = module.MappingSpec(2, 256, 768, 0.0)
    return AdaptedTransformer(
        module.ImageTransformerDenoiserModelV2(levels, mapping, 3, 3, (2, 2), mapping_cond_dim=pooled_dim)
    )


def edm2_unet(width: int, pooled_dim: int) -> nn.Module:
    """The configuration for ImageNet at 64 px, of width 192 there in its smallest size."""
    heads = tuple(parts(width * multiple, 64) for multiple in MULTIPLES)
    return AdaptedPooled(EDM2UNet(width, pooled_dim, heads))


def pixel_transformer(width: int, pooled_dim: int) -> nn.Module:
    """JiT-B with the patches of ImageNet at 64 px, of width 768 there."""
    heads = parts(width // 4, 16)  # each a multiple of 4 channels, 64 at least
    return AdaptedPooled(PixelTransformer(width, heads, pooled_dim))


def parts(width: int, size: int) -> int:
    """The largest number of equal parts of a width with at least ``size`` channels each, or one."""
    return next(n for n in range(max(1, width // size), 0, -1) if width % n == 0)


@dataclass(frozen=True)
class Peer:
    """A network to compare with.

    Args:
        make: The network at a width, with the channels of the condition as second argument.
        step: Widths are multiples of this.
        published: The configuration that is narrowed.
        objective: What its authors train it on, made from the images' standard deviation.
        lr: AdamW's rate that the full comparison chose (model_cards/quality.json); a quick one takes it as it is.
        install: The command that adds its package.
        rates: What a full comparison tries first.
        head: The loss around network and objective.
    """

    make: Callable[[int, int], nn.Module]
    step: int
    published: str
    objective: type[Objective]
    lr: float
    install: str
    rates: tuple[float, float, float] = RATES
    head: type[DenoisingModel] = DenoisingModel


PEERS = {
    "diffusers UNet2DConditionModel": Peer(
        stable_diffusion_unet,
        4,
        "Stable Diffusion 1, the class's defaults",
        ScaledLinearEpsilon,
        2e-3,
        "pip install diffusers",
    ),
    "diffusers UNet2DModel": Peer(ddpm_unet, 4, "google/ddpm-cifar10-32", LinearEpsilon, 2e-3, "pip install diffusers"),
    "denoising-diffusion-pytorch Unet": Peer(
        lucidrains_unet,
        4,
        "its README's Unet(dim=64, dim_mults=(1, 2, 4, 8), flash_attn=True)",
        SigmoidVelocity,
        1e-3,
        "pip install --no-deps einops denoising-diffusion-pytorch",
    ),
    "k-diffusion image_transformer_v2": Peer(
        hourglass_transformer,
        32,
        "configs/config_cifar10_transformer.json (global attention: needs neither natten nor flash-attn)",
        KarrasSoftMinSNR,
        1e-3,
        "pip install --no-deps einops git+https://github.com/crowsonkb/k-diffusion",
    ),
    # No full comparison has chosen the rates of the two below yet: they are their authors', as said beside them.
    "EDM2 U-Net": Peer(
        edm2_unet,
        4,
        "config G for ImageNet at 64 px (arXiv 2312.02696), written in scripts/bench/edm2_unet.py",
        EDM2,
        1e-2,  # as published: weights of magnitude 1 make it the relative size of a step, whatever the width
        "nothing to install",
        rates=(5e-3, 1e-2, 2e-2),
        head=UncertaintyWeighted,
    ),
    "JiT": Peer(
        pixel_transformer,
        12,
        "JiT-B with patches of 4 x 4 pixels (arXiv 2511.13720), written in scripts/bench/pixel_transformer.py",
        CleanImage,
        7e-4,  # 2e-4 at width 768, in inverse ratio to the width
        "nothing to install",
    ),
}
