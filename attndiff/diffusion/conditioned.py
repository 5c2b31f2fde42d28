"""A network with the condition that it is told at every step, whose keys and values are computed once.

Shapes: B images, S condition tokens, C channels, H and W of the latents.
"""

from dataclasses import replace

import torch
from diffusers.models.modeling_utils import ModelMixin

from attndiff.condition import Condition
from attndiff.nn.encoder import pool_tokens


class ConditionedNetwork:
    """Calls a network with the first rows of a condition.

    Args:
        network: An `AttentionUNet2DModel`.
    """

    def __init__(self, network: ModelMixin):
        self.network = network
        self.condition = Condition()
        self._cache: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def prepare(self, condition: Condition) -> None:
        """Take a condition; a network without cross-attention takes its aligned channels only."""
        if self.network.config.cross_attention_dim is None:
            condition = Condition(aligned=condition.aligned)
        self.condition, self._cache = condition, None
        if condition.tokens is not None:
            mask = condition.token_mask
            self.condition = replace(condition, mask=mask, pooled=pool_tokens(condition.tokens, mask))
            self._cache = self.network(None, encoder_hidden_states=condition.tokens, return_condition_cache=True)

    def __call__(self, x: torch.Tensor, coordinate: torch.Tensor) -> torch.Tensor:
        """The network's prediction ``(B, C, H, W)`` float32 for scaled noisy images at one noise coordinate.

        Raises:
            ValueError: If the condition has fewer rows than there are images.
        """
        rows = len(x)
        told = self.condition[:rows]
        if told.rows is not None and told.rows < rows:
            raise ValueError(f"prompt_embeds has {told.rows} rows for {rows} images.")
        arguments = told.arguments()
        if self._cache is not None:
            cache = [(key[:rows], value[:rows]) for key, value in self._cache]
            arguments |= {"encoder_hidden_states": None, "condition_cache": cache}
        x = told.beside(x.to(self.network.dtype))
        return self.network(x, coordinate.expand(rows), **arguments).sample.float()
