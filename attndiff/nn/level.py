"""A level of the network, and the kinds of self-attention that it may have."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from attndiff.nn.kinds.arrangement import Arrangement
from attndiff.nn.kinds.coarse_window_attention import coarse_window_arrangements
from attndiff.nn.kinds.global_attention import global_arrangements
from attndiff.nn.kinds.routed_attention import routed_arrangements
from attndiff.nn.kinds.window_attention import window_arrangements

# Gives the arrangements that the blocks of a level take in turn, for a height, a width, and a level's ``window`` and
# ``max_tokens``; None where pixels do not attend to each other.
AttentionKind = Callable[[int, int, int, int], list[Arrangement]]
ATTENTION_KINDS: dict[str, AttentionKind | None] = {
    "none": None,
    "window": window_arrangements,
    "window_coarse": coarse_window_arrangements,
    "routed": routed_arrangements,
    "global": global_arrangements,
}
SIDES = ("encoder", "decoder")


@dataclass
class Level:
    """One resolution of the network; ``levels`` is a list of these, highest resolution first.

    Args:
        width: Channels; a multiple of ``head_dim`` where the level attends.
        depth: Blocks on the way down, and as many on the way up; the last level has them once.
        attention: Kind of self-attention, a key of `ATTENTION_KINDS`: ``"none"``; ``"window"``, in windows and in every
            other block in the dilated grids that join them; ``"window_coarse"``, the same with a coarse grid of the
            whole image, 8 x 8 at most, in the same softmax; ``"routed"``, of every window to the two windows that fit
            it best; ``"global"``, of every pixel to every other.
        cross_attention: Whether the pixels attend to the condition tokens. A level with neither kind of attention is
            made of convolution blocks, any other of transformer blocks.
        max_tokens: Pixels up to which ``"global"`` attention is global; larger images attend in windows, with a
            warning.
        window: Side of an attention window in pixels of this level; where it does not divide the image, windows are a
            little smaller, down to half.
        gated: Every pixel sets how much of what each head of self-attention gives it counts, from none to twice.
        noise_temperature: The noise level, and what is pooled of the condition, set how sharply each head of
            self-attention looks.
        attention_side: Which of its blocks have self-attention: those on the way down, ``"encoder"``, on the way up,
            ``"decoder"``, or ``"both"``. The others are as with ``attention`` ``"none"``. The last level has no sides.

    Raises:
        ValueError: If the kind or the side is unknown, the level has no channels, or a setting of self-attention is
            given to a level that has none.
    """

    width: int
    depth: int = 2
    attention: str = "none"
    cross_attention: bool = False
    max_tokens: int = 1024
    window: int = 8
    gated: bool = False
    noise_temperature: bool = False
    attention_side: str = "both"

    def __post_init__(self):
        if self.attention not in ATTENTION_KINDS:
            *names, last = map(repr, ATTENTION_KINDS)
            raise ValueError(f"levels: attention must be {', '.join(names)} or {last}, not {self.attention!r}.")
        if self.width < 1 or self.depth < 0:
            raise ValueError(f"levels: width {self.width} and depth {self.depth} must be positive.")
        if self.attention_side not in ("both", *SIDES):
            raise ValueError(
                f"levels: attention_side must be 'both', 'encoder' or 'decoder', not {self.attention_side!r}."
            )
        if not self.self_attention and (self.gated or self.noise_temperature or self.attention_side != "both"):
            raise ValueError(
                "levels: gated, noise_temperature and attention_side are of self-attention, and attention is "
                f"{self.attention!r}: choose a kind of attention, or leave them out."
            )

    @property
    def self_attention(self) -> bool:
        """Whether pixels attend to each other."""
        return ATTENTION_KINDS[self.attention] is not None

    @property
    def attends(self) -> bool:
        """Whether pixels attend to anything, which makes its blocks transformer blocks."""
        return self.self_attention or self.cross_attention

    def on(self, side: str) -> "Level":
        """What its blocks on one of the `SIDES` are made of."""
        if self.attention_side in ("both", side):
            return self
        return replace(self, attention="none", gated=False, noise_temperature=False, attention_side="both")

    def arrangements(self, height: int, width: int) -> list[Arrangement]:
        """The arrangements that the blocks of a level with self-attention take in turn, at one size in its pixels."""
        return ATTENTION_KINDS[self.attention](height, width, self.window, self.max_tokens)
