"""What is measured: a network with the condition encoder and loss of a preset, in one of its forms."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attndiff.diffusion.objectives import FlowMatching
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.heads.denoising import DenoisingModel

SIZE, TOKENS, VOCABULARY = 32, 24, 2048


@dataclass(frozen=True)
class Network:
    """A preset with random weights.

    Args:
        preset: Name in `PRESETS`.
        form: ``"default"``, or ``"compiled"`` by torch.compile.
    """

    preset: str
    form: str = "default"

    @property
    def name(self) -> str:
        """As tables show it."""
        return self._titled(f"attndiff {self.preset}")

    def _titled(self, name: str) -> str:
        return name if self.form == "default" else f"{name}, {self.form}"

    @property
    def plain(self) -> "Network":
        """The same network in its default form."""
        return replace(self, form="default")

    def unet(self, size: int) -> torch.nn.Module:
        """The network alone, for images of a size."""
        return AttentionUNet2DModel(**{**PRESETS[self.preset]["unet"], "sample_size": size})

    def make(self, size: int = SIZE) -> DenoisingModel:
        """The network, the preset's condition encoder, and one loss for all: it does not matter to speed."""
        encoder = ConditionEncoder(**PRESETS[self.preset]["encoder"], vocab_size=VOCABULARY)
        return DenoisingModel(self.unet(size), encoder, FlowMatching())

    def build(self, size: int = SIZE) -> DenoisingModel:
        """The model from seeded random weights, on the CPU, its form not yet applied."""
        torch.manual_seed(0)
        return self.make(size)

    def prepared(self, device: str, size: int = SIZE) -> DenoisingModel:
        """The model on a device and in its form."""
        model = self.build(size).to(device)
        if self.form == "compiled":
            model.unet.compile()
        return model

    def cost(self) -> dict:
        """Parameters, and operations of one image's forward pass (2 per multiply-add)."""
        return {"parameters": parameters(self), "forward_gflop": forward_flops(self) / 1e9}


@cache
def parameters(network: Network) -> int:
    """How many parameters a model has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in network.make().parameters())


@cache
def forward_flops(network: Network) -> float:
    """FLOPs of one image's forward pass, nothing computed; attention counts as its two matmuls."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model, batch = network.make(), make_batch(1, device="meta")
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(batch)
    return float(counter.get_total_flops())


def make_batch(count: int, size: int = SIZE, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Random images, noise and captions: speed does not depend on what is in them."""
    shape = (count, 3, size, size)
    batch = {
        "images": torch.randn(shape),
        "noise": torch.randn(shape),
        "normal": torch.randn(count),
        "drop": torch.zeros(count, dtype=torch.bool),
        "input_ids": torch.randint(2, VOCABULARY, (count, TOKENS)),
        "attention_mask": torch.ones(count, TOKENS, dtype=torch.int64),
    }
    return {key: value.to(device) for key, value in batch.items()}
