"""The networks of a comparison: attndiff's, and peers narrowed until they match it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

from attndiff.apps.bench.network import SIZE, Network, forward_flops, parameters
from attndiff.nn.presets import PRESETS
from attndiff.training.heads.denoising import DenoisingModel
from bench.peers import PEERS

FORMS = ("default", "channels_last", "compiled")
MATCHES = ("parameters", "FLOPs")


@dataclass(frozen=True)
class Arm(Network):
    """A network to compare; its form may also be ``"channels_last"``, and of a peer "compiled" is both.

    Args:
        peer: Name in `PEERS`, or None for attndiff itself, whose condition encoder serves every network.
        match: What the peer has in common with the preset: ``"parameters"`` or ``"FLOPs"``.
    """

    peer: str | None = None
    match: str = "parameters"

    @property
    def name(self) -> str:
        """As tables show it."""
        if self.peer is None:
            return super().name
        return self._titled(self.peer + (" at equal FLOPs" if self.match == "FLOPs" else ""))

    @property
    def width(self) -> int:
        """Of the peer; 0 for attndiff, whose preset says all."""
        return matched_width(self.preset, self.peer, self.match) if self.peer else 0

    def unet(self, size: int) -> torch.nn.Module:
        """The network alone; a peer's takes images of any size."""
        return super().unet(size) if self.peer is None else peer_network(self.preset, self.peer, self.width)

    def prepared(self, device: str, size: int = SIZE) -> DenoisingModel:
        """The model on a device and in its form; attndiff's own layout is channels_last whatever its form."""
        model = super().prepared(device, size)
        if self.form != "default" and self.peer is not None:
            model.unet.to(memory_format=torch.channels_last)
        return model

    def cost(self) -> dict:
        """As of every network; of a peer also where it comes from and its width."""
        more = {"published": PEERS[self.peer].published, "width": self.width} if self.peer else {}
        return super().cost() | more


def peer_network(preset: str, peer: str, width: int) -> torch.nn.Module:
    """A peer's network of some width, for the condition tokens of a preset."""
    return PEERS[peer].make(width, PRESETS[preset]["encoder"]["hidden_size"])


@dataclass(frozen=True)
class _Narrowed(Network):
    """A peer of a width that is being tried."""

    peer: str = ""
    width: int = 0

    def unet(self, size: int) -> torch.nn.Module:
        return peer_network(self.preset, self.peer, self.width)


@cache
def matched_width(preset: str, peer: str, match: str) -> int:
    """The width at which a peer comes nearest to a preset's parameters or FLOPs, the condition encoder included.

    Raises:
        ImportError: If the peer's package is not installed.
    """
    cost = {"parameters": parameters, "FLOPs": forward_flops}[match]
    narrowed = partial(_Narrowed, preset, peer=peer)
    return nearest_width(lambda width: cost(narrowed(width=width)), cost(Network(preset)), PEERS[peer].step)


def nearest_width(cost: Callable[[int], float], goal: float, step: int) -> int:
    """The multiple of ``step`` whose cost, about its square, has a ratio to ``goal`` nearest to one."""
    guess = 4 * step
    for _ in range(3):
        guess = max(1, round(guess * (goal / cost(guess)) ** 0.5 / step)) * step
    around = [w for w in (guess - step, guess, guess + step) if w > 0]
    return min(around, key=lambda w: max(cost(w) / goal, goal / cost(w)))
