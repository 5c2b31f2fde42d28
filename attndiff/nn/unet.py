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
from attndiff.nn.level import SIDES, Level

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass
class AttentionUNet2DOutput(BaseOutput):
    """``sample (B, out_channels, H, W)``: the network's prediction."""

    sample: torch.Tensor


@dataclass
class Stage:
    """A run of blocks at one resolution.

    Args:
        name: Of its list of blocks in the network, such as ``"down_blocks.0"``.
        level: Its level; 0 has the highest resolution.
        spec: What the level is made of on its side of the network.
        blocks: Its blocks.
    """

    name: str
    level: int
    spec: Level
    blocks: nn.ModuleList

    def named_blocks(self) -> list[tuple[str, nn.Module]]:
        """Blocks by the names that they have in the network, such as ``"down_blocks.0.1"``."""
        return [(f"{self.name}.{i}", block) for i, block in enumerate(self.blocks)]


@dataclass
class BlockInputs:
    """What blocks take beside the pixels in one call of the network.

    Args:
        scales: ``(B, scale_size)`` by name of the block.
        keys: Keys and values of the condition, 2 x ``(B, S, heads, head_dim)``, by name of the block.
        mask: Of the condition, ``(B, 1, 1, S)`` additive.
        sequences: By level, what its blocks take in turn; nothing without self-attention.
    """

    scales: dict[str, torch.Tensor]
    keys: dict[str, KeyValue]
    mask: torch.Tensor | None
    sequences: list[list[Sequences]]


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
        ValueError: If a width does not fit ``head_dim``, or a level is none (see `Level`).
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
        if specs[-1].attention_side != "both":
            raise ValueError("levels: the last one is neither encoder nor decoder; leave out its attention_side.")
        self.level_specs = specs
        widths = [spec.width for spec in specs]
        self.stem = Conv3x3(in_channels * patch_size**2, widths[0], seamless=seamless)
        self.noise_embedding = NoiseEmbedding(embedding_dim)
        self.pooled_embedding = nn.Linear(pooled_dim, embedding_dim, bias=False) if pooled_dim else None

        def stage(spec: Level) -> nn.ModuleList:
            return nn.ModuleList(self._block(spec) for _ in range(spec.depth))

        self.down_blocks = nn.ModuleList(stage(spec.on("encoder")) for spec in specs[:-1])
        self.downsamplers = nn.ModuleList(Downsample(a, b) for a, b in zip(widths, widths[1:]))
        self.mid_block = stage(specs[-1])
        self.upsamplers = nn.ModuleList(Upsample(b, a) for a, b in zip(widths, widths[1:]))
        self.up_blocks = nn.ModuleList(stage(spec.on("decoder")) for spec in specs[:-1])
        self.norm_out = nn.LayerNorm(widths[0], bias=False)
        self.head = Conv3x3(widths[0], out_channels * patch_size**2, seamless=seamless)
        nn.init.zeros_(self.head.weight)

        # One matmul makes the scales of all blocks, in the order of execution.
        self.scale_sizes = {name: block.scale_size for stage in self.stages() for name, block in stage.named_blocks()}
        self.modulation = nn.Linear(embedding_dim, sum(self.scale_sizes.values()))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.gradient_checkpointing = False

    def _block(self, spec: Level) -> nn.Module:
        config = self.config
        if not spec.attends:
            return ConvBlock(spec.width, config.dropout, config.seamless)
        context = config.cross_attention_dim if spec.cross_attention else None
        return TransformerBlock(
            spec.width,
            config.head_dim,
            spec.self_attention,
            context,
            config.dropout,
            spec.gated,
            spec.noise_temperature,
        )

    def stages(self) -> list[Stage]:
        """Every run of blocks, in the order of execution."""
        specs = self.level_specs
        last = len(specs) - 1
        down, up = (
            [Stage(f"{name}.{i}", i, specs[i].on(side), blocks) for i, blocks in enumerate(self.get_submodule(name))]
            for name, side in zip(("down_blocks", "up_blocks"), SIDES)
        )
        return [*down, Stage("mid_block", last, specs[last], self.mid_block), *reversed(up)]

    def cross_attending(self) -> dict[str, int]:
        """Names of the blocks that attend to the condition, and the level of each, in the order of execution."""
        return {
            name: stage.level
            for stage in self.stages()
            if stage.spec.cross_attention and self.config.cross_attention_dim
            for name, _ in stage.named_blocks()
        }

    def grid_size(self, level: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that a level has of an image of ``height`` and ``width``."""
        stride = self.config.patch_size * 2**level
        return height // stride, width // stride

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
            ValueError: If the size is not a multiple of `size_multiple`, or the cache is of another network.
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
        x = self.stem(space_to_depth(sample.permute(0, 2, 3, 1), self.config.patch_size))  # (B, H, W, C)
        inputs = BlockInputs(
            scales=self._scales(noise_level, pooled_projections, sample.shape[0]),
            keys={} if condition_cache is None else self._keys(condition_cache),
            mask=None if encoder_attention_mask is None else additive_mask(encoder_attention_mask, sample.dtype),
            sequences=[self._sequences(level, height, width, x) for level in range(len(self.level_specs))],
        )
        stages, last = self.stages(), len(self.down_blocks)
        skips = []
        for stage, down in zip(stages[:last], self.downsamplers):
            x = self._run(stage, x, inputs)
            skips.append(x)
            x = down(x)
        x = self._run(stages[last], x, inputs)
        for stage in stages[last + 1 :]:
            x = self.upsamplers[stage.level](x, skips.pop())
            x = self._run(stage, x, inputs)
        x = depth_to_space(self.head(self.norm_out(x)), self.config.patch_size).permute(0, 3, 1, 2)
        return AttentionUNet2DOutput(sample=x) if return_dict else (x,)

    def _condition_cache(self, tokens: torch.Tensor) -> list[KeyValue]:
        """Keys and values, 2 x ``(B, S, heads, head_dim)``, of the `cross_attending` blocks."""
        tokens = tokens.to(self.dtype)
        return [self.get_submodule(name).cross_attn.key_value(tokens) for name in self.cross_attending()]

    def _keys(self, cache: list[KeyValue]) -> dict[str, KeyValue]:
        """The same by name of the block."""
        names = self.cross_attending()
        if len(cache) != len(names):
            raise ValueError(
                f"condition_cache has {len(cache)} entries for {len(names)} blocks with cross-attention: pass what "
                "this network gave with return_condition_cache."
            )
        return dict(zip(names, cache))

    def _scales(self, noise_level: torch.Tensor, pooled: torch.Tensor | None, batch: int) -> dict[str, torch.Tensor]:
        """Each block's modulation ``(B, scale_size)`` by its name.

        Args:
            noise_level: ``(B,)``, ``(1,)`` or scalar.
            pooled: ``(B, pooled_dim)`` or None.
            batch: B.
        """
        emb = self.noise_embedding(noise_level.reshape(-1).expand(batch))  # (B, embedding_dim)
        if self.pooled_embedding is not None and pooled is not None:
            emb = emb + self.pooled_embedding(pooled.to(self.pooled_embedding.weight.dtype))
        scales = self.modulation(F.silu(emb)).split(list(self.scale_sizes.values()), dim=-1)
        return dict(zip(self.scale_sizes, scales))

    def _sequences(self, level: int, height: int, width: int, like: torch.Tensor) -> list[Sequences]:
        """What the blocks of a level take in turn at an image's size, for as many images as ``like (B, H, W, C)``."""
        spec = self.level_specs[level]
        if not spec.self_attention or not spec.depth:
            return []
        arrangements = spec.arrangements(*self.grid_size(level, height, width))
        return [make_sequences(arrangement, len(like), self.config.head_dim, like) for arrangement in arrangements]

    def _run(self, stage: Stage, x: torch.Tensor, inputs: BlockInputs) -> torch.Tensor:
        """Apply the blocks of a stage to ``x (B, H, W, C)``, H and W of its level."""
        in_turn = inputs.sequences[stage.level] or [None]
        for i, (name, block) in enumerate(stage.named_blocks()):
            attention = (in_turn[i % len(in_turn)], inputs.keys.get(name), inputs.mask) if stage.spec.attends else ()
            x = self._call(block, x, inputs.scales[name], *attention)
        return x

    def _call(self, block: nn.Module, *args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
