"""The network's prediction, led away from another: classifier-free guidance and autoguidance.

Shapes: B images, C channels, H and W of the latents.
"""

import torch
from diffusers.models.modeling_utils import ModelMixin

from attndiff.condition import Condition
from attndiff.diffusion.conditioned import ConditionedNetwork
from attndiff.diffusion.objectives import Objective

EVERYWHERE = (0.0, 1.0)


class GuidedNetwork:
    """Predicts with classifier-free guidance (arXiv 2207.12598, Eq. 6) or autoguidance (arXiv 2406.02507, Eq. 3).

    Args:
        unet: The network.
        objective: What it predicts.
        guide: A worse version of it, to lead away from instead of from another condition; or None.
        interval: Noise levels at which to lead, as noise / (noise + signal).

    Attributes:
        scale: Guidance scale; 1 is none. It may change between calls.
    """

    def __init__(
        self,
        unet: ModelMixin,
        objective: Objective,
        guide: ModelMixin | None = None,
        interval: tuple[float, float] = EVERYWHERE,
    ):
        self.objective, self.interval, self.scale = objective, tuple(interval), 1.0
        self.main = ConditionedNetwork(unet)
        self.guide = None if guide is None else ConditionedNetwork(guide)
        self._given: list[torch.Tensor] = []
        self._guide_told = False

    def prepare(
        self,
        condition: Condition,
        negative: Condition | None = None,
        of_guide: Condition | None = None,
    ) -> None:
        """Take conditions of B rows each; the same tensors again cost nothing.

        Args:
            condition: What the network is told.
            negative: What it is told to lead away from.
            of_guide: What the guide is told, in its own terms; it is not asked without.

        Raises:
            ValueError: If the first two have different numbers of rows.
        """
        self._guide_told = self.guide is not None and of_guide is not None
        given = [part for each in (condition, negative, of_guide) if each is not None for part in each.parts.values()]
        if self._given and len(given) == len(self._given) and all(a is b for a, b in zip(given, self._given)):
            return
        self._given = given
        if negative is not None and negative.rows != condition.rows:
            raise ValueError(
                f"prompt_embeds has {condition.rows} rows, but negative_prompt_embeds has {negative.rows}."
            )
        self.main.prepare(condition if negative is None else condition.join(negative))
        if self._guide_told:
            self.guide.prepare(of_guide)

    def __call__(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """The prediction ``(B, C, H, W)`` float32 for noisy images of the objective at one native level, a scalar."""
        scale = self._scale_at(level)
        x, coordinate = self.objective.scale_input(x, level), self.objective.coordinate(level)
        can_lead = self._guide_told or self.main.condition.rows == 2 * len(x)
        if scale == 1 or not can_lead:
            return self.main(x, coordinate)
        if self._guide_told:
            good, plain = self.main(x, coordinate), self.guide(x, coordinate)
        else:
            good, plain = self.main(torch.cat([x, x]), coordinate).chunk(2)
        return plain + scale * (good - plain)

    def _scale_at(self, level: torch.Tensor) -> float:
        """The guidance scale at a noise level; 1 where there is none."""
        if self.scale <= 1:
            return 1.0
        if self.interval != EVERYWHERE:  # looking at a level waits for the device
            noise_share = self.objective.log_ratio(level).sigmoid().item()
            if not self.interval[0] <= noise_share <= self.interval[1]:
                return 1.0
        return self.scale
