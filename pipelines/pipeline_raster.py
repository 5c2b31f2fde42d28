"""Images drawn value after value by a Transformer, from text, from a class, or from nothing.

Shapes: P prompts, B = P * num_images_per_prompt images, C channels, H and W of the images, N patches, K values of one,
S condition tokens.
"""

import torch
from diffusers.models.modeling_utils import ModelMixin
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.raster.model import PixelTransformerModel
from attndiff.nn.raster.order import to_images
from attndiff.nn.raster.sampling import draw_patches, warpers
from attndiff.pipelines.call.checks import check_choice, check_generators, check_numbers
from attndiff.pipelines.call.conditioning import ConditionedPipeline, EncodedCondition, GivenCondition
from attndiff.pipelines.call.lock import CallLock
from attndiff.pipelines.call.offloading import to_its_device
from attndiff.pipelines.call.output import AttnDiffPipelineOutput, as_output
from attndiff.pipelines.call.postprocess import to_output

LED = 1.5  # guidance of a call that names none
OUTPUTS = ("pil", "np", "pt")


class AttnDiffRasterPipeline(ConditionedPipeline):
    """Draw images patch after patch in raster order.

    Args:
        transformer: The network, a `PixelTransformerModel`.
        condition_encoder: Turns the condition into the tokens that the network attends to; a `ConditionEncoder`.
        tokenizer: Of captions.
        text_encoder: Frozen pretrained encoder whose hidden states the condition encoder takes instead of tokens.
        data: What is known about the training images, as of `attndiff.pipelines.base.ImagePipeline`.
        task: Settings of the task.
    """

    model_cpu_offload_seq = "text_encoder->condition_encoder->transformer"
    _optional_components = ["condition_encoder", "tokenizer", "text_encoder"]
    _network_classes = [PixelTransformerModel, ConditionEncoder]

    def __init__(
        self,
        transformer: ModelMixin,
        condition_encoder: ModelMixin | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | None = None,
        data: dict | None = None,
        task: dict | None = None,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer, condition_encoder=condition_encoder, tokenizer=tokenizer, text_encoder=text_encoder
        )
        self.register_to_config(data=data, task=task)
        self._lock = CallLock()

    @property
    def network(self) -> PixelTransformerModel:
        """What is told the condition."""
        return self.transformer

    @property
    def image_channels(self) -> int:
        """C."""
        return self.transformer.config.channels

    @property
    def image_side(self) -> int:
        """H and W."""
        return self.transformer.config.sample_size

    def own_defaults(self, steps: int | None = None, guidance_scale: float | None = None) -> tuple[int, float]:
        """Steps, of which there are as many as patches, and guidance as given, else as this kind of model has it."""
        led = LED if self._conditional else 1.0
        steps = self.transformer.grid**2 if steps is None else steps
        return steps, led if guidance_scale is None else guidance_scale

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        output_attention_maps: bool = False,
    ) -> AttnDiffPipelineOutput | tuple:
        """Draw images.

        Args:
            prompt: One caption or several; an empty one is no condition.
            class_labels: Numbers or names of classes, one for each prompt.
            height: That of the training images, which is the only one that it draws.
            width: Likewise.
            num_inference_steps: As many as there are patches, which is the only number that there is.
            guidance_scale: How far to lead the logits away from those without the condition; 1 is not at all.
            negative_prompt: What to lead away from instead of the learned null; one for all prompts or one for each.
            num_images_per_prompt: Images of every prompt, side by side in the result.
            temperature: Above 0; less than 1 draws likelier values.
            top_p: In (0, 1]: values are drawn from the likeliest ones that have this probability together.
            generator: Source of chance; a list of one for each image gives the images that single calls give.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``; see `to_output`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.
            output_attention_maps: Not known of this kind of model.

        Raises:
            ValueError: If an argument is wrong.
        """
        scale = self.own_defaults(None, guidance_scale)[1]
        self._check_call(height, width, num_inference_steps, output_attention_maps)
        _check_drawing(scale, num_images_per_prompt, temperature, top_p, output_type)
        given = GivenCondition(prompt, class_labels, negative_prompt)
        with self._lock:
            guided = scale != 1 and self._conditional
            encoded = self.encode(given, num_images_per_prompt, guided, autoguidance=False)
            batch = encoded.positive.rows or num_images_per_prompt
            check_generators(generator, batch)
            images = self._draw(encoded, self._chance(batch, generator), scale if guided else 1.0, temperature, top_p)
            self.maybe_free_model_hooks()
        return as_output(to_output(images, self.config.data, output_type), None, return_dict)

    def _check_call(self, height: int | None, width: int | None, steps: int | None, maps: bool) -> None:
        """Raise ValueError for what this kind of model cannot be asked for."""
        for name, side in {"height": height, "width": width}.items():
            if side not in (None, self.image_side):
                raise ValueError(f"{name}: this model draws images of {self.image_side} pixels a side; leave it out.")
        if steps not in (None, self.own_defaults()[0]):
            raise ValueError(
                f"num_inference_steps: this model takes {self.own_defaults()[0]}, one a patch; leave it out."
            )
        if maps:
            raise ValueError("output_attention_maps: this kind of model has none; leave it out.")

    def _chance(self, batch: int, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
        """Uniform numbers ``(B, N, K)``, each image's from its own generator where there is a list."""
        shape = self.transformer.grid**2, self.transformer.values_of_patch
        sources = generator if isinstance(generator, list) else [generator]
        rows = (batch, *shape) if len(sources) == 1 else (1, *shape)
        drawn = [torch.rand(rows, generator=one, device=one.device if one else "cpu") for one in sources]
        return torch.cat([one.to(self._execution_device) for one in drawn])

    def _draw(
        self, encoded: EncodedCondition, chance: torch.Tensor, scale: float, temperature: float, top_p: float
    ) -> torch.Tensor:
        """Images ``(B, C, H, W)`` in [-1, 1]."""
        condition = encoded.positive if scale == 1 else encoded.positive.join(encoded.negative)
        key_values = mask = None
        to_its_device(self.transformer)
        if condition.tokens is not None:
            key_values, mask = self.transformer.key_values(condition.tokens), condition.token_mask
        patches = draw_patches(self.transformer, chance, key_values, mask, scale, warpers(temperature, top_p))
        with self.progress_bar(total=self.transformer.grid**2) as progress:
            for sequence in patches:
                values = sequence
                progress.update()
        values = to_images(values, (self.image_side, self.image_side), self.transformer.config.patch_size)
        return values.float() * (2 / (self.transformer.config.num_values - 1)) - 1


def _check_drawing(scale: float, count: int, temperature: float, top_p: float, output_type: str) -> None:
    """Raise ValueError unless numbers and output type can be, in any model of this kind."""
    check_numbers(1, scale, (0.0, 1.0), count)
    check_choice("output_type", [output_type], OUTPUTS)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0, such as 0.7, not {temperature!r}.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p!r}.")
