"""The network: an hourglass of convolution blocks where resolution is high and transformer blocks where it is low.

Shapes: B batch, C channels, H rows, W columns, S condition tokens. Images enter and leave as ``(B, C, H, W)``.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from attndiff.nn.attention import additive_mask
from attndiff.nn.blocks import (
    Conv3x3,
    ConvBlock,
    Downsample,
    TransformerBlock,
    Upsample,
    depth_to_space,
    space_to_depth,
)
from attndiff.nn.kinds.arrangement import Sequences, make_sequences
from attndiff.nn.level import Level

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass
class AttentionUNet2DOutput(BaseOutput):
    """``sample (B, out_channels, H, W)``: the network's prediction."""

    sample: torch.Tensor


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise coordinate, then a linear layer (arXiv 2006.09011, technique 2)."""

    def __init__(self, dim: int, n_freqs: int = 64):
        super().__init__()
        self.n_freqs = n_freqs
        self.proj = nn.Linear(2 * n_freqs, dim)

    def forward(self, noise_level: torch.Tensor) -> torch.Tensor:
        # From a quarter turn to 32 turns over the range of +-1.7 that ln(sigma) / 4 covers.
        octaves = torch.linspace(-2.0, 4.0, self.n_freqs, device=noise_level.device, dtype=torch.float32)
        angles = math.pi * noise_level.float()[:, None] * octaves.exp2()  # (B, n_freqs)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.proj(waves.to(self.proj.weight.dtype))


class AttentionUNet2DModel(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin):
    """Denoising U-Net with self- and cross-attention at several scales; the architecture is the list ``levels``.

    It predicts what its objective defines from a noisy image, one continuous noise coordinate and condition tokens.
    It knows nothing of schedulers: `attndiff.diffusion.objectives` scales its input and interprets its output.

    Args:
        sample_size: Side of the training images in pixels; other sizes work where the levels divide them.
        in_channels: Channels of the input, spatially aligned conditions included.
        out_channels: Channels of the prediction.
        patch_size: Pixels per side that the stem folds into channels.
        levels: Dicts with the fields of `Level`, highest resolution first.
        head_dim: Channels per attention head; a multiple of 8.
        embedding_dim: Channels of the noise (and pooled condition) embedding.
        cross_attention_dim: Channels of the condition tokens, or None without any.
        pooled_dim: Channels of the pooled condition, or None without one.
        dropout: Dropout probability inside blocks.
        seamless: Convolutions wrap around the borders, for tileable textures.

    Raises:
        ValueError: If a width does not fit ``head_dim`` or an attention kind is unknown.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ConvBlock", "TransformerBlock"]
    _repeated_blocks = ["ConvBlock", "TransformerBlock"]
    _skip_layerwise_casting_patterns = ["norm", "stem", "head", "embedding", "modulation"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int = 2,
        levels: list[dict] | None = None,
        head_dim: int = 32,
        embedding_dim: int = 256,
        cross_attention_dim: int | None = None,
        pooled_dim: int | None = None,
        dropout: float = 0.0,
        seamless: bool = False,
    ):
        super().__init__()
        specs = [Level(**level) for level in levels or [{"width": 64}, {"width": 128, "attention": "global"}]]
        self.level_specs = specs
        widths = [spec.width for spec in specs]
        self.stem = Conv3x3(in_channels * patch_size**2, widths[0], seamless=seamless)
        self.noise_embedding = NoiseEmbedding(embedding_dim)
        self.pooled_embedding = nn.Linear(pooled_dim, embedding_dim, bias=False) if pooled_dim else None

        def stage(spec: Level) -> nn.ModuleList:
            return nn.ModuleList(self._block(spec) for _ in range(spec.depth))

        self.down_blocks = nn.ModuleList(stage(spec) for spec in specs[:-1])
        self.downsamplers = nn.ModuleList(Downsample(a, b) for a, b in zip(widths, widths[1:]))
        self.mid_block = stage(specs[-1])
        self.upsamplers = nn.ModuleList(Upsample(b, a) for a, b in zip(widths, widths[1:]))
        self.up_blocks = nn.ModuleList(stage(spec) for spec in specs[:-1])
        self.norm_out = nn.LayerNorm(widths[0], bias=False)
        self.head = Conv3x3(widths[0], out_channels * patch_size**2, seamless=seamless)
        nn.init.zeros_(self.head.weight)

        # One matmul makes the scales of all blocks.
        self.scale_sizes = [
            block.scales_per_channel * spec.width for spec, blocks in self._stages() for block in blocks
        ]
        self.modulation = nn.Linear(embedding_dim, sum(self.scale_sizes))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.gradient_checkpointing = False

    def _block(self, spec: Level) -> nn.Module:
        config = self.config
        if not spec.attends:
            return ConvBlock(spec.width, config.dropout, config.seamless)
        context = config.cross_attention_dim if spec.cross_attention else None
        return TransformerBlock(spec.width, config.head_dim, spec.self_attention, context, config.dropout)

    def _stages(self) -> list[tuple[Level, nn.ModuleList]]:
        """Every run of blocks with its level, in the order of execution."""
        encoder = list(zip(self.level_specs, self.down_blocks))
        decoder = list(zip(self.level_specs, self.up_blocks))
        return [*encoder, (self.level_specs[-1], self.mid_block), *reversed(decoder)]

    @property
    def size_multiple(self) -> int:
        """Heights and widths must be multiples of this many pixels."""
        return self.config.patch_size * 2 ** (len(self.level_specs) - 1)

    def forward(
        self,
        sample: torch.Tensor | None,
        noise_level: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        pooled_projections: torch.Tensor | None = None,
        condition_cache: list[KeyValue] | None = None,
        return_condition_cache: bool = False,
        return_dict: bool = True,
    ) -> AttentionUNet2DOutput | tuple[torch.Tensor] | list[KeyValue]:
        """Predict from a noisy image.

        Args:
            sample: ``(B, in_channels, H, W)``, about unit variance; H and W multiples of `size_multiple`.
            noise_level: ``(B,)`` or scalar, the noise coordinate ``ln(sigma) / 4``, sigma = noise over signal.
            encoder_hidden_states: Condition tokens ``(B, S, cross_attention_dim)``.
            encoder_attention_mask: ``(B, S)`` bool, true for tokens that count.
            pooled_projections: Pooled condition ``(B, pooled_dim)``.
            condition_cache: What an earlier call with ``return_condition_cache`` gave for these tokens, used instead
                of them: keys and values never depend on the noise level.
            return_condition_cache: Only compute that cache from ``encoder_hidden_states`` and return it. It is a mode
                of ``forward`` because offloading hooks wrap nothing else.
            return_dict: Return `AttentionUNet2DOutput` rather than a tuple.

        Raises:
            ValueError: If the size is not a multiple of `size_multiple`.
        """
        if return_condition_cache:
            return self._condition_cache(encoder_hidden_states)
        height, width = sample.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"height {height} and width {width} must be multiples of {self.size_multiple} for this network."
            )
        if condition_cache is None and encoder_hidden_states is not None:
            condition_cache = self._condition_cache(encoder_hidden_states)
        mask = None if encoder_attention_mask is None else additive_mask(encoder_attention_mask, sample.dtype)
        scales = self._scales(noise_level, pooled_projections, sample.shape[0])
        keys = iter(condition_cache or [])

        patch = self.config.patch_size
        x = self.stem(space_to_depth(sample.permute(0, 2, 3, 1), patch))
        skips = []
        for spec, blocks, down in zip(self.level_specs, self.down_blocks, self.downsamplers):
            x = self._run(spec, blocks, x, scales, keys, mask)
            skips.append(x)
            x = down(x)
        x = self._run(self.level_specs[-1], self.mid_block, x, scales, keys, mask)
        for spec, blocks, up in reversed(list(zip(self.level_specs, self.up_blocks, self.upsamplers))):
            x = up(x, skips.pop())
            x = self._run(spec, blocks, x, scales, keys, mask)
        x = depth_to_space(self.head(self.norm_out(x)), patch).permute(0, 3, 1, 2)
        return AttentionUNet2DOutput(sample=x) if return_dict else (x,)

    def _condition_cache(self, tokens: torch.Tensor) -> list[KeyValue]:
        """Keys and values of every cross-attention layer, in the order of execution."""
        tokens = tokens.to(self.dtype)
        return [
            block.cross_attn.key_value(tokens)
            for spec, blocks in self._stages()
            if spec.cross_attention and self.config.cross_attention_dim
            for block in blocks
        ]

    def _scales(self, noise_level: torch.Tensor, pooled: torch.Tensor | None, batch: int):
        """Iterator over each block's modulation ``(B, scales_per_channel * width)``, in the order of execution."""
        emb = self.noise_embedding(noise_level.reshape(-1).expand(batch))
        if self.pooled_embedding is not None and pooled is not None:
            emb = emb + self.pooled_embedding(pooled.to(self.pooled_embedding.weight.dtype))
        return iter(self.modulation(F.silu(emb)).split(self.scale_sizes, dim=-1))

    def _run(self, spec: Level, blocks: nn.ModuleList, x, scales, keys, mask) -> torch.Tensor:
        """Apply the blocks of one level to ``x (B, H, W, C)``."""
        sequences = self._sequences(spec, x) if spec.self_attention and len(blocks) else [None]
        for i, block in enumerate(blocks):
            arguments = ()
            if spec.attends:
                key_value = next(keys, None) if block.cross_attn is not None else None
                arguments = (sequences[i % len(sequences)], key_value, mask)
            x = self._call(block, x, next(scales), *arguments)
        return x

    def _sequences(self, spec: Level, x: torch.Tensor) -> list[Sequences]:
        """What the blocks of a level take in turn for ``x (B, H, W, C)``."""
        batch, height, width, _ = x.shape
        return [
            make_sequences(arrangement, batch, self.config.head_dim, x)
            for arrangement in spec.arrangements(height, width)
        ]

    def _call(self, block: nn.Module, *args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
