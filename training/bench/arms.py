"""What is measured: a network with the condition encoder and loss that all share, in one of its forms."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attndiff.diffusion.objectives import FlowMatching
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.bench.peers import PEERS
from attndiff.training.heads.denoising import DenoisingModel

SIZE, TOKENS, VOCABULARY = 32, 24, 2048
FORMS = ("default", "channels_last", "compiled")
MATCHES = ("parameters", "FLOPs")


@dataclass(frozen=True)
class Arm:
    """A network to measure.

    Args:
        preset: Of attndiff; its condition encoder serves every network.
        peer: Name in `PEERS`, or None for attndiff itself.
        match: What the peer has in common with the preset: ``"parameters"`` or ``"FLOPs"``.
        form: ``"default"``, ``"channels_last"``, or ``"compiled"``, which is channels_last and torch.compile.
    """

    preset: str
    peer: str | None = None
    match: str = "parameters"
    form: str = "default"

    @property
    def name(self) -> str:
        """As tables show it."""
        name = f"attndiff {self.preset}" if self.peer is None else self.peer
        name += " at equal FLOPs" if self.match == "FLOPs" else ""
        return name if self.form == "default" else f"{name}, {self.form}"

    @property
    def plain(self) -> "Arm":
        """The same network in its default form."""
        return replace(self, form="default")

    @property
    def width(self) -> int:
        """Of the peer; 0 for attndiff, whose preset says all."""
        return matched_width(self.preset, self.peer, self.match) if self.peer else 0

    def build(self, size: int = SIZE) -> DenoisingModel:
        """The model from seeded random weights, on the CPU, its form not yet applied."""
        torch.manual_seed(0)
        return make_model(self.preset, self.peer, self.width, size)

    def prepared(self, device: str, size: int = SIZE) -> DenoisingModel:
        """The model on a device and in its form."""
        model = self.build(size).to(device)
        # attndiff's own layout is channels_last throughout, whatever the form.
        if self.form != "default" and self.peer is not None:
            model.unet.to(memory_format=torch.channels_last)
        if self.form == "compiled":
            model.unet.compile()
        return model

    def cost(self) -> dict:
        """Parameters, operations of one image's forward pass (2 per multiply-add), and where they come from."""
        network = (self.preset, self.peer, self.width)
        report = {"parameters": parameters(*network), "forward_gflop": forward_flops(*network) / 1e9}
        if self.peer:
            report |= {"published": PEERS[self.peer].published, "width": self.width}
        return report


def make_model(preset: str, peer: str | None, peer_width: int, size: int = SIZE) -> DenoisingModel:
    """A network, the preset's condition encoder, and one loss for all: it does not matter to speed."""
    settings = PRESETS[preset]
    hidden = settings["encoder"]["hidden_size"]
    if peer is None:
        network = AttentionUNet2DModel(**{**settings["unet"], "sample_size": size})
    else:
        network = PEERS[peer].make(peer_width, hidden)
    return DenoisingModel(network, ConditionEncoder(**settings["encoder"], vocab_size=VOCABULARY), FlowMatching())


@cache
def parameters(preset: str, peer: str | None, peer_width: int) -> int:
    """How many parameters a model has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_model(preset, peer, peer_width).parameters())


@cache
def forward_flops(preset: str, peer: str | None, peer_width: int) -> float:
    """FLOPs of one image's forward pass, nothing computed; attention counts as its two matmuls."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model, batch = make_model(preset, peer, peer_width), make_batch(1, device="meta")
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(batch)
    return float(counter.get_total_flops())


@cache
def matched_width(preset: str, peer: str, match: str) -> int:
    """The width at which a peer comes nearest to a preset's parameters or FLOPs, the condition encoder included.

    Raises:
        ImportError: If the peer's package is not installed.
    """
    cost = {"parameters": parameters, "FLOPs": forward_flops}[match]
    return nearest_width(lambda w: cost(preset, peer, w), cost(preset, None, 0), PEERS[peer].step)


def nearest_width(cost: Callable[[int], float], goal: float, step: int) -> int:
    """The multiple of ``step`` whose cost, about its square, has a ratio to ``goal`` nearest to one."""
    guess = 4 * step
    for _ in range(3):
        guess = max(1, round(guess * (goal / cost(guess)) ** 0.5 / step)) * step
    around = [w for w in (guess - step, guess, guess + step) if w > 0]
    return min(around, key=lambda w: max(cost(w) / goal, goal / cost(w)))


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
