"""The networks that attndiff is measured against, each in a configuration that its authors published.

A peer is narrowed by one number, its width, until it has as many parameters or operations as attndiff; depths, levels,
kinds of block and channels per normalisation group stay as published. All take the same condition: tokens by
cross-attention where a network has it, else the pooled vector beside its noise embedding.

A package that is absent is an `ImportError` here; whoever measures names it and goes on.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.utils import BaseOutput
from torch import nn

from attndiff.diffusion.objectives import Objective
from bench.peer_objectives import (
    KarrasSoftMinSNR,
    LinearEpsilon,
    ScaledLinearEpsilon,
    SigmoidVelocity,
)

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
        lr: AdamW's rate that the full comparison chose (model_cards/quality.json); a quick one begins there.
        install: The command that adds its package.
    """

    make: Callable[[int, int], nn.Module]
    step: int
    published: str
    objective: type[Objective]
    lr: float
    install: str


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
}

# What the files with the peers' networks import for their trainers and metrics, and the networks never touch.
UNNEEDED = (
    "dctorch",
    "ema_pytorch",
    "pytorch_fid",
    "scipy",
    "torchdiffeq",
    "torchsde",
    "torchvision",
)


class Blank(ModuleType):
    """In the place of a package that is not needed."""

    def __getattr__(self, name: str) -> "Blank":
        if name.startswith("__"):
            raise AttributeError(name)
        return Blank(name)


class BlankFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a `Blank` for each of `UNNEEDED` and their parts."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in UNNEEDED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return Blank(spec.name)

    def exec_module(self, module):
        pass


def network_module(name: str) -> ModuleType:
    """A module with a peer's network, without its package's ``__init__`` and without `UNNEEDED` packages.

    Raises:
        ImportError: If the package is not installed, or is a release without this module.
    """
    if name in sys.modules:
        return sys.modules[name]
    with _alone(name):
        return importlib.import_module(name)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Parents of a module that only know where their parts are, and blanks; all taken away again."""
    before, finder = dict(sys.modules), BlankFinder()
    for unneeded in [key for key in sys.modules if key.split(".")[0] in UNNEEDED]:
        del sys.modules[unneeded]
    parents = name.split(".")[:-1]
    for i in range(len(parents)):
        _bare_package(".".join(parents[: i + 1]))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for key in [k for k in sys.modules if k.split(".")[0] in UNNEEDED]:
            del sys.modules[key]
        sys.modules.update({key: module for key, module in before.items() if key.split(".")[0] in UNNEEDED})


def _bare_package(name: str) -> None:
    """Put a package into ``sys.modules`` without running its ``__init__``."""
    if name in sys.modules:
        return
    parent, _, _ = name.rpartition(".")
    path = sys.modules[parent].__path__ if parent else None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = ModuleType(name)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules[name] = package
