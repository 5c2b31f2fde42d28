"""EDM2's U-Net, written from the paper: Karras et al. 2024, arXiv 2312.02696, config G, whose equations are named here.

Kept of the configuration for ImageNet at 64 px (``edm2-img64``, Table 6 and Figure 21): levels of 1, 2, 3 and 4 times
the width, 3 blocks a level going down and 4 going up, attention where the image is 16 or 8 px wide and in the first of
the two blocks between, heads of about 64 channels, an embedding as wide as the widest level, Fourier features as many
as the width, no dropout (as of its size S). What is different here:

- An image of 32 px ends at 4 px instead of 8, so that the second and third level attend instead of the last two. Larger
  images keep these levels.
- The one-hot class, which has magnitude 1 there, is the pooled condition, scaled to magnitude 1.
- Activations are not clamped to 256 at most, which is for float16.

denoising-diffusion-pytorch's `KarrasUnet` is another network: it doubles widths, weighs branches 0.7 to 0.3 instead of
0.3 to 0.7, and attends to extra learned tokens.

Shapes: B batch, C channels, E channels of the embedding, H heads, D channels of a head, L pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

MULTIPLES = (1, 2, 3, 4)
BLOCKS = 3  # of a level, going down
ATTENDING = (1, 2)  # levels: of 16 and 8 px where the image has 32
BRANCH, EMBEDDING, SKIP = 0.3, 0.5, 0.5  # weights of the second part in sums and concatenations (section 2.5)


def unit_magnitude(x: torch.Tensor, dim: int | tuple[int, ...]) -> torch.Tensor:
    """Scaled so that the squares along ``dim`` have mean 1: pixel norm (Eq. 30), and what weights undergo (Alg. 1)."""
    mean_square = x.float().square().mean(dim, keepdim=True)
    return x * (mean_square + 1e-8).rsqrt().to(x.dtype)


def mp_silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU over the magnitude that it leaves of a standard normal input (Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """``(1 - t) a + t b``, of magnitude 1 where both have it (Eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """``a (B, C1, ...)`` and ``b (B, C2, ...)`` side by side, which count as ``1 - t`` to ``t`` (Eq. 103)."""
    total = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (total * (1 - t) / math.sqrt(a.shape[1])), b * (total * t / math.sqrt(b.shape[1]))], dim=1)


class MPFourier(nn.Module):
    """Fixed random frequencies and phases of a scalar ``(B,)``, ``(B, C)`` (Eq. 75)."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return math.sqrt(2) * (x.float()[:, None] * self.frequencies + self.phases).cos()


class MPLayer(nn.Module):
    """A linear layer or a convolution without bias whose weights have magnitude 1 (Eq. 47, 66; Alg. 1).

    In training every pass sets the stored weights back to magnitude 1 first, so that the learning rate is the relative
    size of a step.

    Args:
        inputs: Channels.
        outputs: Channels.
        kernel: Side of a convolution, None for a linear layer.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *(() if kernel is None else (kernel, kernel))))

    def forward(self, x: torch.Tensor, gain: torch.Tensor | float = 1.0) -> torch.Tensor:
        filters = tuple(range(1, self.weight.ndim))
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit_magnitude(self.weight, filters))
        weight = unit_magnitude(self.weight, filters) * (gain / math.sqrt(self.weight[0].numel()))
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Attention(nn.Module):
    """Attention of normalised queries, keys and values (Figure 21)."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value = MPLayer(channels, 3 * channels, 1)
        self.out = MPLayer(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.query_key_value(x).flatten(2).unflatten(1, (3, self.heads, -1))  # (B, 3, H, D, L)
        query, key, value = unit_magnitude(parts, 3).transpose(3, 4).unbind(1)  # (B, H, L, D)
        attended = F.scaled_dot_product_attention(query, key, value)
        return mp_sum(x, self.out(attended.transpose(2, 3).reshape(x.shape)), BRANCH)


class Block(nn.Module):
    """A residual block (Figure 21), of the encoder with pixel norm on its main path, of the decoder without.

    Args:
        inputs: Channels.
        channels: Of the result.
        embedding: Channels E.
        heads: Of the attention after it, 0 for none.
        encodes: Whether it belongs to the encoder.
        resample: What is done to the image first.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        embedding: int,
        heads: int = 0,
        encodes: bool = False,
        resample: nn.Module | None = None,
    ):
        super().__init__()
        self.encodes, self.resizes, self.resample = encodes, resample is not None, resample or nn.Identity()
        self.main = nn.Identity() if inputs == channels else MPLayer(inputs, channels, 1)
        self.first = MPLayer(channels if encodes else inputs, channels, 3)
        self.embedding, self.gain = MPLayer(embedding, channels), nn.Parameter(torch.zeros(()))
        self.second = MPLayer(channels, channels, 3)
        self.attention = Attention(channels, heads) if heads else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        x = self.resample(x)
        if self.encodes:
            x = unit_magnitude(self.main(x), 1)
        scale = 1 + self.embedding(embedding, self.gain)
        branch = self.second(mp_silu(self.first(mp_silu(x)) * scale[:, :, None, None]))
        return self.attention(mp_sum(x if self.encodes else self.main(x), branch, BRANCH))


class EDM2UNet(nn.Module):
    """The network F of EDM's preconditioning.

    Args:
        width: Channels of the first level.
        pooled_dim: Channels of the pooled condition.
        heads: Of each level's attention; levels that do not attend ignore theirs, but for the last.
        channels: Of the image.
    """

    def __init__(self, width: int, pooled_dim: int, heads: tuple[int, ...], channels: int = 3):
        super().__init__()
        widths = [width * multiple for multiple in MULTIPLES]
        embedding = widths[-1]
        attending = [heads[level] if level in ATTENDING else 0 for level in range(len(widths))]
        self.noise_features, self.noise = MPFourier(width), MPLayer(width, embedding)
        self.pooled = MPLayer(pooled_dim, embedding)
        self.conv_in = MPLayer(channels + 1, width, 3)
        self.down, skips = nn.ModuleList(), [width]
        for level, out in enumerate(widths):
            if level > 0:
                self.down.append(Block(skips[-1], skips[-1], embedding, encodes=True, resample=nn.AvgPool2d(2)))
                skips.append(skips[-1])
            for _ in range(BLOCKS):
                self.down.append(Block(skips[-1], out, embedding, attending[level], encodes=True))
                skips.append(out)
        self.middle = nn.ModuleList([Block(out, out, embedding, heads[-1]), Block(out, out, embedding)])
        self.up = nn.ModuleList()
        for level, out in reversed([*enumerate(widths)]):
            below = widths[min(level + 1, len(widths) - 1)]
            if below != out:
                self.up.append(Block(below, below, embedding, resample=nn.Upsample(scale_factor=2)))
            for i in range(BLOCKS + 1):
                self.up.append(Block((out if i else below) + skips.pop(), out, embedding, attending[level]))
        self.conv_out, self.gain_out = MPLayer(width, channels, 3), nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, noise_level: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """The prediction ``(B, channels, height, width)``, both sides multiples of 8.

        Args:
            x: Noisy images of unit variance, of the same shape.
            noise_level: ``ln(sigma) / 4``, ``(B,)``.
            pooled: Of the condition, ``(B, pooled_dim)``.
        """
        told = self.pooled(unit_magnitude(pooled, 1))
        embedding = mp_silu(mp_sum(self.noise(self.noise_features(noise_level)), told, EMBEDDING))  # (B, E)
        x = self.conv_in(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))  # a channel of ones stands for biases
        skips = [x]
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        for block in self.up:
            x = block(x if block.resizes else mp_cat(x, skips.pop(), SKIP), embedding)
        return self.conv_out(x, self.gain_out)
