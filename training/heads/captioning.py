"""A Transformer decoder that writes captions, looking at an encoded image.

Shapes: B images, C channels, H rows, W columns, L tokens of a caption, V tokens of the vocabulary.
"""

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import nn

import attndiff
from attndiff.condition import Condition
from attndiff.diffusion.features import image_streams, seen_multiple
from attndiff.diffusion.objectives import Objective
from attndiff.nn.decoder import TextDecoderModel
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.batches import Batch
from attndiff.training.heads import draws_dropout
from attndiff.training.heads.without_noise import HeadWithoutNoise

SMOOTHING = 0.1  # of labels (arXiv 1512.00567, section 7), while training
STEP = 8  # tokens
NO_TARGET = -100  # as of `torch.nn.functional.cross_entropy`


class CaptioningModel(HeadWithoutNoise):
    """The `Head` that learns to write captions; its loss is nats per token.

    Args:
        text_decoder: Writes.
        condition_encoder: Of the image; its streams say what is seen of it.
        end: Token that ends a caption, as it begins one.
        denoiser: A frozen denoising network, whose features are seen, and what it predicts.
    """

    description = "A Transformer"
    unit = "Nats per token"

    def __init__(
        self,
        text_decoder: TextDecoderModel,
        condition_encoder: ConditionEncoder,
        end: int,
        denoiser: tuple[AttentionUNet2DModel, Objective] | None = None,
    ):
        super().__init__()
        self.text_decoder, self.condition_encoder, self.end = text_decoder, condition_encoder, end
        # In a tuple, the network is no submodule: it is neither trained, averaged nor stored in checkpoints.
        self._denoiser = denoiser or ()

    def _apply(self, fn, recurse: bool = True):
        for network in self._denoiser[:1]:  # goes along to another device
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Nats per token of every caption, ``(B,)`` float32; of smoothed labels while training."""
        ids, counting = without_padding(batch["input_ids"], batch["attention_mask"].bool())
        # No image is left out, but the learned null takes part: DistributedDataParallel waits for every gradient.
        all_there = torch.zeros_like(batch["drop"])
        seen = Condition.encoded(self.condition_encoder, **self.seen_in(batch["images"]), drop=all_there)
        logits = self.text_decoder(ids, encoder_hidden_states=seen.tokens, encoder_attention_mask=seen.mask).logits
        targets = following(ids, counting, self.end)
        smoothing = SMOOTHING if self.training else 0.0
        nats = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
        )
        return nats.view_as(targets).sum(1) / counting.sum(1)

    def seen_in(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the encoder takes of images ``(B, C, H, W)``."""
        return image_streams(self.condition_encoder, images, *self._denoiser)

    @property
    def has_dropout(self) -> bool:
        """Whether decoder or encoder drop activations."""
        return draws_dropout(self)

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Compute the decoder's activations again in the backward pass, or keep them."""
        self.text_decoder.disable_gradient_checkpointing()
        if on:
            self.text_decoder.enable_gradient_checkpointing()

    def blocks(self) -> list[nn.Module]:
        """Those of decoder and encoder."""
        return [*self.text_decoder.decoder.blocks, *self.condition_encoder.blocks]

    # What becomes of it

    def components(self, plain: bool = False) -> dict[str, nn.Module]:
        """``text_decoder``, ``condition_encoder``, and the denoising network as ``unet`` where there is one."""
        networks = {"text_decoder": self.text_decoder, "condition_encoder": self.condition_encoder}
        return {**networks, "unet": self._denoiser[0]} if self._denoiser else networks

    def to_pipeline(self, name: str, vae=None, text_encoder=None, **others) -> DiffusionPipeline:
        """A pipeline around the networks, which are shared with it."""
        objective = {"objective": self._denoiser[1].to_config()} if self._denoiser else {}
        return getattr(attndiff, name)(**self.components(), **objective, **others)

    @property
    def size_multiple(self) -> int:
        """Sides of its images: of patches, and of the denoising network."""
        return seen_multiple(self.condition_encoder, *self._denoiser[:1])


def without_padding(ids: torch.Tensor, counting: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts ``(B, L)``, and which tokens count, as long as the longest, in steps that few shapes come out of."""
    longest = int(counting.sum(1).max())
    length = -(-longest // STEP) * STEP
    return ids[:, :length], counting[:, :length]


def following(ids: torch.Tensor, counting: torch.Tensor, end: int) -> torch.Tensor:
    """What follows every token of texts ``(B, L)``: the next one, the end after the last, `NO_TARGET` after that.

    Args:
        ids: Tokens, ``(B, L)`` int64; texts begin at the first.
        counting: Which of them are there, ``(B, L)`` bool.
        end: The token that ends a text.
    """
    after = F.pad(ids[:, 1:], (0, 1), value=end)
    last = counting & ~F.pad(counting[:, 1:], (0, 1), value=False)
    return after.masked_fill(last, end).masked_fill(~counting, NO_TARGET)
