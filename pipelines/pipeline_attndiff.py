"""Sampling from text, from a class, or from nothing.

Shapes: P prompts, B = P * num_images_per_prompt images, S condition tokens, C channels, h and w of the latents.
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attndiff.diffusion.guidance import Embeds, GuidedNetwork, repeat_embeds
from attndiff.diffusion.objectives import Objective, make_objective
from attndiff.diffusion.schedules import (
    check_scheduler,
    check_student,
    level_at,
    scheduler_input,
    scheduler_output,
    set_timesteps,
)
from attndiff.folder.self_contained import CallLock, SelfContainedPipeline
from attndiff.lens.record import AttentionMaps, AttentionRecorder
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.call_checks import (
    as_labels,
    as_texts,
    check_choice,
    check_generators,
    check_latents,
    check_numbers,
    check_size,
)
from attndiff.pipelines.postprocess import OUTPUT_TYPES, to_output
from attndiff.pipelines.prompts import tokenize


@dataclass
class AttnDiffPipelineOutput(BaseOutput):
    """What a call returns.

    Args:
        images: List of pictures or arrays, array ``(B, H, W, C)`` or tensor ``(B, C, H, W)``, as ``output_type`` says.
        attention_maps: Where each pixel looked, if it was asked for.
    """

    images: list[Image.Image] | list[np.ndarray] | np.ndarray | torch.Tensor
    attention_maps: AttentionMaps | None = None


class AttnDiffPipeline(SelfContainedPipeline):
    """Sample images from captions, classes, or unconditionally.

    Args:
        unet: The denoising network, an `AttentionUNet2DModel`.
        scheduler: A stock scheduler that samples the objective.
        condition_encoder: Turns the condition into the tokens that the network attends to; a `ConditionEncoder`.
        tokenizer: Of captions.
        text_encoder: Frozen pretrained encoder whose hidden states the condition encoder takes instead of tokens.
        vae: Decodes the latents that the network was trained on, if these are not pixels.
        guide: A smaller or less trained network for autoguidance.
        objective: What the network predicts; the config of `attndiff.diffusion.objectives.make_objective`.
        data: What is known about the training images: ``channels`` (names), ``bit_depth``, ``value_range`` (the units
            that [-1, 1] stands for), ``class_names`` and ``size`` ``[height, width]``.
        student: Of a few-step student, ``sigmas`` (its noise levels by the number of steps) and ``guidance_scale``
            (the guidance that its own prediction includes).
    """

    model_cpu_offload_seq = "text_encoder->condition_encoder->unet->vae"
    _optional_components = ["condition_encoder", "tokenizer", "text_encoder", "vae", "guide"]
    _exclude_from_cpu_offload = ["guide"]
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ]
    _network_classes = [AttentionUNet2DModel, ConditionEncoder]

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        condition_encoder: ModelMixin | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: PreTrainedModel | None = None,
        vae: AutoencoderKL | None = None,
        guide: ModelMixin | None = None,
        objective: dict | None = None,
        data: dict | None = None,
        student: dict | None = None,
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            condition_encoder=condition_encoder,
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            guide=guide,
        )
        self.register_to_config(objective=make_objective(objective or {}).to_config(), data=data, student=student)
        self._lock = CallLock()

    # What a callback may look at and change during a call

    @property
    def guidance_scale(self) -> float:
        """The guidance of the call under way; 1 or less is none."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call under way needs the unconditional prediction too."""
        return self._guidance_scale > 1 and self._conditional and self.guide is None

    @property
    def num_timesteps(self) -> int:
        """Steps of the call under way."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set ``_interrupt`` from a callback to leave out the steps that remain."""
        return self._interrupt

    @property
    def _conditional(self) -> bool:
        # Without a network, a pipeline still encodes prompts.
        return self.unet is None or self.unet.config.cross_attention_dim is not None

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae is not None else 1

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        sigmas: list[float] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        output_attention_maps: bool = False,
    ) -> AttnDiffPipelineOutput | tuple:
        """Sample images.

        Args:
            prompt: One caption or several; what goes beyond the tokenizer's length is cut, with a warning, and an empty
                one is no condition.
            class_labels: Numbers or names of classes, one for each prompt.
            height: Pixels; that of the training images by default. Multiples of the network's ``size_multiple`` work.
            width: Likewise.
            num_inference_steps: Steps of the scheduler; by default 20, or the most that a few-step student was made
                for.
            guidance_scale: How far to lead away from the unconditional prediction; 1 is not at all. By default 3, or 1
                for a student.
            guidance_interval: The noise levels to do so at, as noise / (noise + signal): 0 is clean, 1 noise alone
                (arXiv 2404.07724).
            negative_prompt: What to lead away from instead of the learned null; one for all prompts or one for each.
            num_images_per_prompt: Images of every prompt, side by side in the result.
            generator: Source of the noise; a list of one for each image gives the images that single calls give.
            latents: Standard normal noise ``(B, C, h, w)`` to begin with instead.
            prompt_embeds: Condition tokens ``(P, S, C)`` instead of a prompt.
            prompt_attention_mask: ``(P, S)`` bool, true for tokens that count; all by default.
            negative_prompt_embeds: Tokens to lead away from, instead of a negative prompt.
            negative_prompt_attention_mask: Their mask.
            sigmas: The objective's noise levels to step through instead of ``num_inference_steps``, falling, without 0.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see `attndiff.pipelines.postprocess.to_output`.
            return_dict: Return `AttnDiffPipelineOutput` rather than a tuple.
            callback_on_step_end: Called as ``callback(pipeline, step, timestep, tensors)`` after every step; what it
                returns replaces the tensors.
            callback_on_step_end_tensor_inputs: Which tensors it is given.
            output_attention_maps: Record which token each pixel attended to; the pixels stay the same.

        Raises:
            ValueError: If an argument is wrong, or the scheduler does not fit the objective.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        num_inference_steps, guidance_scale = self.own_defaults(num_inference_steps, guidance_scale)
        check_numbers(num_inference_steps, guidance_scale, guidance_interval, num_images_per_prompt)
        check_choice("output_type", [output_type], OUTPUT_TYPES)
        tensor_names = callback_on_step_end_tensor_inputs
        check_choice("callback_on_step_end_tensor_inputs", tensor_names, self._callback_tensor_inputs)
        with self._lock:
            objective, device = make_objective(self.config.objective), self._execution_device
            check_scheduler(self.scheduler, objective)
            if self.config.student:
                check_student(self.config.student, self.scheduler, guidance_scale)
                sigmas = sigmas or self.config.student["sigmas"].get(str(num_inference_steps))
            self._guidance_scale, self._interrupt = float(guidance_scale), False
            embeds = self.encode_prompt(
                prompt,
                class_labels,
                negative_prompt,
                num_images_per_prompt,
                self.do_classifier_free_guidance,
                prompt_embeds,
                prompt_attention_mask,
                negative_prompt_embeds,
                negative_prompt_attention_mask,
            )
            tensors = dict(zip(self._callback_tensor_inputs[1:], embeds))
            batch = num_images_per_prompt if tensors["prompt_embeds"] is None else len(tensors["prompt_embeds"])
            scheduler = copy.deepcopy(self.scheduler)  # schedulers keep state; the pipeline's own stays as it was
            set_timesteps(scheduler, objective, num_inference_steps, device, sigmas)
            tensors["latents"] = self.prepare_latents(batch, height, width, generator, latents, scheduler, device)
            recorder = AttentionRecorder(self.unet, rows=slice(0, batch)) if output_attention_maps else None
            with recorder or nullcontext():
                sampled = self._denoise(
                    scheduler, objective, tensors, guidance_interval, generator, callback_on_step_end, tensor_names
                )
            images = sampled if output_type == "latent" else self.decode_latents(sampled, output_type)
            self.maybe_free_model_hooks()
        maps = recorder.maps() if recorder else None
        if not return_dict:
            return (images,) if maps is None else (images, maps)
        return AttnDiffPipelineOutput(images=images, attention_maps=maps)

    def own_defaults(self, steps: int | None, guidance_scale: float | None) -> tuple[int, float]:
        """Steps and guidance as given, else as the kind of model has them."""
        student = self.config.student
        if steps is None:
            steps = max(int(name) for name in student["sigmas"]) if student else 20
        if guidance_scale is None:
            guidance_scale = 1.0 if student else 3.0
        return steps, guidance_scale

    # The condition

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The condition as tokens, with what guidance leads away from; arguments as in `__call__`.

        Returns:
            Tokens ``(B, S, C)`` and mask ``(B, S)`` of the condition and of its negative; None where there is none.
        """
        self._check_condition(prompt, class_labels, negative_prompt, prompt_embeds)
        if self._conditional:
            positive = (prompt_embeds, prompt_attention_mask)
            if prompt_embeds is None:
                positive = self._encode(as_texts(prompt), self._labels(class_labels))
            negative = (negative_prompt_embeds, negative_prompt_attention_mask)
            if do_classifier_free_guidance and negative_prompt_embeds is None:
                if self.condition_encoder is None:
                    raise ValueError("without a condition_encoder, guidance needs negative_prompt_embeds: give them.")
                negative = self._encode_negative(as_texts(negative_prompt, "negative_prompt"), len(positive[0]))
            prompt_embeds, prompt_attention_mask = repeat_embeds(*positive, num_images_per_prompt)
            negative_prompt_embeds, negative_prompt_attention_mask = repeat_embeds(*negative, num_images_per_prompt)
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    def _encode(self, texts: list[str] | None, labels: torch.Tensor | None) -> Embeds:
        """Tokens and mask of ``P`` captions, of labels, or of both; an empty caption is no condition."""
        if texts is not None and labels is not None and len(texts) != len(labels):
            raise ValueError(f"prompt has {len(texts)} texts, but class_labels has {len(labels)}: give as many.")
        streams, drop = {}, None
        if texts is not None:
            ids, mask = (tensor.to(self._execution_device) for tensor in tokenize(self.tokenizer, texts))
            if self.text_encoder is None:
                streams = {"input_ids": ids, "attention_mask": mask}
            else:
                states = self.text_encoder(ids, attention_mask=mask).last_hidden_state
                streams = {"context": states, "context_mask": mask}
            if labels is None:
                drop = torch.tensor([not text.strip() for text in texts], device=ids.device)
        encoded = self.condition_encoder(**streams, class_labels=labels, drop=drop)
        return encoded.tokens, encoded.mask

    def _encode_negative(self, texts: list[str] | None, prompts: int) -> Embeds:
        """Tokens and mask of what guidance leads away from: captions, or the learned null."""
        if texts is None:
            encoded = self.condition_encoder(batch_size=prompts)
            return encoded.tokens, encoded.mask
        if len(texts) not in (1, prompts):
            raise ValueError(f"negative_prompt has {len(texts)} texts for {prompts} prompts: give one, or one each.")
        return self._encode(texts * (prompts // len(texts)), None)

    def _labels(self, class_labels) -> torch.Tensor | None:
        """Class numbers ``(P,)`` on the device."""
        if class_labels is None:
            return None
        names = (self.config.data or {}).get("class_names")
        return as_labels(class_labels, self.condition_encoder.config.num_classes, names).to(self._execution_device)

    def _check_condition(self, prompt, class_labels, negative_prompt, prompt_embeds) -> None:
        """Raise ValueError unless the kinds of condition given are those that the model was made for."""
        texts = self.tokenizer is not None
        classes = self.condition_encoder is not None and self.condition_encoder.config.num_classes is not None
        takes = " or ".join(["a prompt"] * texts + ["class_labels"] * classes) or "prompt_embeds"
        if not self._conditional:
            if any(value is not None for value in (prompt, class_labels, negative_prompt, prompt_embeds)):
                raise ValueError("this model is unconditional: call it without prompt and class_labels.")
        elif prompt_embeds is not None:
            if prompt is not None or class_labels is not None:
                raise ValueError("prompt_embeds stands for the whole condition: leave out prompt and class_labels.")
        elif prompt is None and class_labels is None:
            raise ValueError(f"this model needs a condition: give {takes}.")
        elif (prompt is not None or negative_prompt is not None) and not texts:
            raise ValueError(f"this model does not read text: give {takes} instead of prompt and negative_prompt.")
        elif class_labels is not None and not classes:
            raise ValueError(f"this model has no classes: give {takes} instead of class_labels.")

    # Sampling

    def prepare_latents(
        self,
        batch: int,
        height: int | None,
        width: int | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        scheduler: SchedulerMixin,
        device: torch.device,
    ) -> torch.Tensor:
        """The noise ``(B, C, h, w)`` float32 that sampling starts from, at the scheduler's first level."""
        factor, side = self.vae_scale_factor, self.unet.config.sample_size
        size = (self.config.data or {}).get("size") or [side * factor, side * factor]
        height, width = size[0] if height is None else height, size[1] if width is None else width
        check_size(height, width, self.unet.size_multiple * factor)
        shape = (batch, self.unet.config.out_channels, height // factor, width // factor)
        check_latents(latents, shape)
        check_generators(generator, batch)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * getattr(scheduler, "init_noise_sigma", 1.0)  # flow ones have none

    def _denoise(
        self,
        scheduler: SchedulerMixin,
        objective: Objective,
        tensors: dict[str, torch.Tensor | None],
        interval: tuple[float, float],
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable | None,
        callback_inputs: list[str],
    ) -> torch.Tensor:
        """Run all steps from ``tensors["latents"]``; the result is ``(B, C, h, w)``."""
        network = GuidedNetwork(self.unet, self.guide)
        settings = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        self._num_timesteps = len(scheduler.timesteps)
        with self.progress_bar(total=self._num_timesteps) as progress:
            for i, t in enumerate(scheduler.timesteps):
                if self.interrupt:
                    continue
                latents = tensors["latents"]
                level = level_at(scheduler, objective, i, t)
                x = objective.scale_input(scheduler_input(scheduler, objective, latents, t), level)
                network.prepare(*self._embeds(tensors))
                scale = self._scale_at(objective, level, interval)
                prediction = network.predict(x, objective.coordinate(level), scale)
                output = scheduler_output(scheduler, objective, prediction, latents, t)
                tensors["latents"] = scheduler.step(output, t, latents, return_dict=False, **settings)[0]
                if callback is not None:
                    shown = {name: tensors[name] for name in callback_inputs}
                    tensors.update(callback(self, i, t, shown) or {})
                progress.update()
        return tensors["latents"]

    def _embeds(self, tensors: dict[str, torch.Tensor | None]) -> tuple[Embeds | None, Embeds | None]:
        """The condition, and what to lead away from if this step does so without a guide."""
        if tensors["prompt_embeds"] is None:
            return None, None
        negative = None
        if self.do_classifier_free_guidance and tensors["negative_prompt_embeds"] is not None:
            negative = (tensors["negative_prompt_embeds"], tensors["negative_prompt_attention_mask"])
        return (tensors["prompt_embeds"], tensors["prompt_attention_mask"]), negative

    def _scale_at(self, objective: Objective, level: torch.Tensor, interval: tuple[float, float]) -> float:
        """The guidance scale at a noise level; 1 where there is none."""
        if self._guidance_scale <= 1:
            return 1.0
        if tuple(interval) != (0.0, 1.0):  # looking at a level waits for the device
            noise_share = objective.log_ratio(level).sigmoid().item()
            if not interval[0] <= noise_share <= interval[1]:
                return 1.0
        return self._guidance_scale

    def decode_latents(self, latents: torch.Tensor, output_type: str):
        """Images of sampled latents ``(B, C, h, w)``, in an output type."""
        if self.vae is not None:
            config = self.vae.config
            latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
            latents = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()
        return to_output(latents, self.config.data, output_type)
