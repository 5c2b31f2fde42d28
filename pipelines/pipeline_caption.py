"""Captions of images.

Shapes: B images, C channels, H and W of an image, S condition tokens, L tokens of a caption, h and w of what is seen.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from transformers import PreTrainedTokenizerBase

from attndiff.alpha import is_premultiplied, premultiplied
from attndiff.condition import Condition
from attndiff.diffusion.features import features_grid, image_streams
from attndiff.diffusion.objectives import make_objective
from attndiff.folder.self_contained import SelfContainedPipeline
from attndiff.lens.words_seen import words_seen
from attndiff.nn.decoder import TextDecoderModel
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.generation import TextGenerator
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.call.images import as_pixels
from attndiff.pipelines.call.inputs import describe_type
from attndiff.pipelines.call.lock import CallLock
from attndiff.pipelines.call.offloading import to_its_device

AT_ONCE = 64  # images that are looked at together, so that memory does not grow with their number


@dataclass
class CaptionOutput(BaseOutput):
    """What a call returns.

    Args:
        captions: One an image.
        tokens: The tokens of each, if attention maps were asked for.
        attention_maps: Where the model looked for each of them, ``(L, h, w)`` float32, which sums to one over the
            image; likewise.
    """

    captions: list[str]
    tokens: list[list[str]] | None = None
    attention_maps: list[torch.Tensor] | None = None

    @property
    def generated_text(self) -> list[str]:
        """The captions, as pipelines of ``transformers`` call them."""
        return self.captions


class AttnDiffCaptionPipeline(SelfContainedPipeline):
    """Write captions of images.

    Args:
        text_decoder: Writes; a `TextDecoderModel`.
        condition_encoder: Of the image; a `ConditionEncoder`.
        tokenizer: Of captions.
        unet: A denoising network whose features of an image are seen, an `AttentionUNet2DModel`.
        objective: What ``unet`` predicts; the config of `attndiff.diffusion.objectives.make_objective`.
        data: What is known about the training images, as of `attndiff.pipelines.base.ImagePipeline`.
        task: Settings of the task.
    """

    model_cpu_offload_seq = "unet->condition_encoder->text_decoder"
    _optional_components = ["unet"]
    _network_classes = [TextDecoderModel, ConditionEncoder, AttentionUNet2DModel]

    def __init__(
        self,
        text_decoder: ModelMixin,
        condition_encoder: ModelMixin,
        tokenizer: PreTrainedTokenizerBase,
        unet: ModelMixin | None = None,
        objective: dict | None = None,
        data: dict | None = None,
        task: dict | None = None,
    ):
        super().__init__()
        self.register_modules(
            text_decoder=text_decoder, condition_encoder=condition_encoder, tokenizer=tokenizer, unet=unet
        )
        self.register_to_config(objective=objective, data=data, task=task)
        self._lock = CallLock()

    @property
    def image_channels(self) -> int:
        """Channels of the images that it sees."""
        return len(self.config.data["channels"])

    @property
    def image_side(self) -> int:
        """Pixels a side of what it sees."""
        return self.config.data["size"][0]

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str = "",
        max_new_tokens: int | None = None,
        num_beams: int = 4,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        length_penalty: float = 0.7,
        generate_kwargs: dict[str, Any] | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        output_attention_maps: bool = False,
    ) -> CaptionOutput | tuple:
        """Write a caption of every image.

        Args:
            image: Pictures, which may differ in size, or arrays ``(B, H, W, C)``, or a tensor ``(B, C, H, W)`` in
                [0, 1]. What is not of the size of the training images is seen as its middle square in that size.
            prompt: How captions begin.
            max_new_tokens: At most; by default as many as in training.
            num_beams: Texts that are kept while searching; 1 takes the likeliest token each time.
            do_sample: Draw tokens by their likelihood.
            temperature: Above 0; less than 1 draws likelier tokens.
            top_p: In (0, 1]: tokens are drawn from the likeliest ones that have this probability together.
            length_penalty: Of beams: above 0 for longer captions, below for shorter ones.
            generate_kwargs: Whatever else `transformers.GenerationMixin.generate` takes.
            generator: Source of chance of what is drawn; the global one by default.
            return_dict: Return `CaptionOutput` rather than a tuple.
            output_attention_maps: Say where the model looked for every token.

        Raises:
            ValueError: If an argument is wrong.
        """
        start = self._start(prompt)
        longest = self.text_decoder.config.max_length
        most = longest - start.shape[1] if max_new_tokens is None else max_new_tokens
        _check_search(most, longest - start.shape[1], num_beams, temperature, top_p)
        images = self._images(image)
        search = {"max_new_tokens": most, "num_beams": num_beams, "do_sample": do_sample}
        if do_sample:
            search |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
        if num_beams > 1:
            search |= {"length_penalty": length_penalty}
        captions, tokens, maps = [], [], []
        with self._lock, _drawing_from(generator), self.progress_bar(total=len(images)) as progress:
            for batch in images.split(AT_ONCE):
                seen = self._see(batch)
                ids = self._write(start, seen, {**search, **(generate_kwargs or {})})
                captions += self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                if output_attention_maps:
                    tokens += [self.tokenizer.convert_ids_to_tokens(row) for row in ids]
                    maps += words_seen(self.text_decoder, ids, seen.tokens, self._grids(batch))
                progress.update(len(batch))
            self.maybe_free_model_hooks()
        captions = [caption.strip() for caption in captions]
        if not return_dict:
            return (captions, tokens, maps) if output_attention_maps else (captions,)
        return CaptionOutput(captions, tokens or None, maps or None)

    # The parts of a call

    def _start(self, prompt: str) -> torch.Tensor:
        """The tokens that captions begin with, ``(1, L)``."""
        if not isinstance(prompt, str):
            raise ValueError(f"prompt must be a text, with which all captions begin, not {describe_type(prompt)}.")
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"].to(self._execution_device)
        longest = self.text_decoder.config.max_length
        if ids.shape[1] >= longest:
            raise ValueError(
                f"prompt has {ids.shape[1]} tokens, and captions of this model have {longest} at most: shorten it."
            )
        return ids

    def _images(self, image) -> torch.Tensor:
        """Images as they were trained on, ``(B, C, H, W)`` in [-1, 1]."""
        data = self.config.data
        each = list(image) if isinstance(image, (list, tuple)) else [image]
        if not each:
            raise ValueError("image is an empty list: give at least one.")
        size = tuple(data["size"])
        pixels = [_of_size(as_pixels(one, len(data["channels"]), data), size) for one in each]
        images = torch.cat(pixels).to(self._execution_device)
        return premultiplied(images) if is_premultiplied(data) else images

    def _see(self, images: torch.Tensor) -> Condition:
        """What the decoder is told of images ``(B, C, H, W)``."""
        seen_by = () if self.unet is None else (self.unet, make_objective(self.config.objective))
        streams = image_streams(self.condition_encoder, images, *seen_by)
        return Condition.encoded(self.condition_encoder, **streams)

    def _grids(self, images: torch.Tensor) -> list[tuple[int, int]]:
        """Rows and columns of each kind of tokens that the encoder makes of images."""
        height, width = images.shape[-2:]
        side = self.condition_encoder.config.image_patch_size
        patches = [(height // side, width // side)] if "image" in self.condition_encoder.streams else []
        return patches if self.unet is None else [*patches, features_grid(self.unet, height, width)]

    def _write(self, start: torch.Tensor, seen: Condition, search: dict[str, Any]) -> torch.Tensor:
        """Tokens of a caption of each image, ``(B, L)`` int64, padded at the end."""
        tokenizer = self.tokenizer
        to_its_device(self.text_decoder)
        writer = TextGenerator(
            self.text_decoder, tokenizer.bos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
        )
        try:
            return writer.generate(
                start.expand(seen.rows, -1),
                attention_mask=torch.ones_like(start).expand(seen.rows, -1),
                encoder_hidden_states=seen.tokens,
                encoder_attention_mask=seen.token_mask,
                **search,
            )
        except (TypeError, ValueError) as error:  # of arguments that generate does not know or take together
            raise ValueError(f"generate_kwargs: {' '.join(str(error).split())[:300]}") from None


@contextmanager
def _drawing_from(generator: torch.Generator | None):
    """Have what is drawn inside depend on a generator, and nothing outside: ``generate`` takes none."""
    if generator is None:
        yield
        return
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, not {describe_type(generator)}.")
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
        yield


def _of_size(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images ``(B, C, H, W)`` of a size, by their middle of its shape."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    scale = min(height / size[0], width / size[1])
    inner = [max(1, round(side * scale)) for side in size]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    middle = images[..., top : top + inner[0], left : left + inner[1]]
    return F.interpolate(middle, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def _check_search(most: int, room: int, beams: int, temperature: float, top_p: float) -> None:
    """Raise ValueError unless a search can be made with these numbers."""
    for name, value in {"max_new_tokens": most, "num_beams": beams}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, not {value!r}.")
    if most > room:
        raise ValueError(f"max_new_tokens: this model has learned captions of {room} more tokens at most, not {most}.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0, such as 0.7, not {temperature!r}; do_sample=False draws none.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p!r}.")
