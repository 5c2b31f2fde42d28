"""What every pipeline shares: its components, and a call from its checks to its images.

A pipeline of a task adds a `__call__` that reads as the task does: take the options, encode what is told, make the
latents to begin with, sample, and give back images; see `attndiff.pipelines.pipeline_attndiff`.

Shapes: B images, C channels, A aligned channels, H and W of the images, h and w of the latents.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attndiff.alpha import is_premultiplied, premultiplied
from attndiff.condition import Condition
from attndiff.diffusion.guidance import GuidedNetwork
from attndiff.diffusion.objectives import Objective, make_objective
from attndiff.diffusion.sampler import SamplingStep, sampling_steps
from attndiff.diffusion.solver import Solver
from attndiff.diffusion.student import StudentRules
from attndiff.lens.record import AttentionMaps, AttentionRecorder
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.call.checks import check_choice, check_generators, check_guidance, check_size
from attndiff.pipelines.call.conditioning import ConditionedPipeline, EncodedCondition
from attndiff.pipelines.call.given import check_latents, returned_tensors
from attndiff.pipelines.call.guides import check_guide
from attndiff.pipelines.call.images import as_pixels
from attndiff.pipelines.call.lock import CallLock
from attndiff.pipelines.call.options import CallOptions
from attndiff.pipelines.call.postprocess import to_output

logger = logging.get_logger(__name__)

# Number of the next step and the state before it to that state with what is known of it.
Keep = Callable[[int, torch.Tensor], torch.Tensor]
STEPS, GUIDANCE_SCALE = 20, 3.0  # of a call that names none, unless the kind of model has others


class ImagePipeline(ConditionedPipeline):
    """Sample images with a denoising network.

    Args:
        unet: The denoising network, an `AttentionUNet2DModel`.
        scheduler: A stock scheduler that samples the objective.
        condition_encoder: Turns the condition into the tokens that the network attends to; a `ConditionEncoder`.
        tokenizer: Of captions.
        text_encoder: Frozen pretrained encoder whose hidden states the condition encoder takes instead of tokens.
        vae: Decodes the latents that the network was trained on, if these are not pixels.
        guide: A smaller or less trained network for autoguidance. It is told nothing if it is unconditional, and
            without a ``guide_encoder`` attends to the tokens of ``condition_encoder``, which it must be trained on.
        guide_encoder: The guide's own condition encoder, which reads what ``condition_encoder`` reads.
        objective: What the network predicts; the config of `attndiff.diffusion.objectives.make_objective`.
        data: What is known about the training images: ``channels`` (names), ``bit_depth``, ``value_range`` (what
            [-1, 1] stands for), ``units`` of that, ``class_names``, ``size`` ``[height, width]``, ``alpha`` (that
            colour is multiplied inside by the last channel), and of drawings the colour of their ``ink``.
        student: Of a few-step student, the fields of `attndiff.diffusion.student.StudentRules`.
        task: Settings of the task that the model was made for, those measured on its images among them.
    """

    model_cpu_offload_seq = "text_encoder->condition_encoder->guide_encoder->unet->vae"
    _optional_components = ["condition_encoder", "tokenizer", "text_encoder", "vae", "guide", "guide_encoder"]
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
        guide_encoder: ModelMixin | None = None,
        objective: dict | None = None,
        data: dict | None = None,
        student: dict | None = None,
        task: dict | None = None,
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
            guide_encoder=guide_encoder,
        )
        self.register_to_config(
            objective=make_objective(objective or {}).to_config(), data=data, student=student, task=task
        )
        self._lock = CallLock()

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """A second pipeline on the same weights, each in its precision; threads need one each.

        Args:
            pipeline: Any pipeline that has the components.
            kwargs: Components and settings to replace, and ``dtype`` to cast to.
        """
        # The stock method casts shared weights to float32, and drops networks whose class is a folder's own.
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        components, settings = cls._get_signature_keys(cls)
        parts = {name: part for name, part in pipeline.components.items() if name in components}
        stored = {name: pipeline.config[name] for name in settings if name in pipeline.config}
        made = cls(**{**parts, **stored, **kwargs})
        return made if dtype is None else made.to(dtype=dtype)

    # What is known of the model

    @property
    def objective(self) -> Objective:
        """What the network predicts."""
        return make_objective(self.config.objective)

    @property
    def student(self) -> StudentRules | None:
        """How it is sampled if it is a few-step student."""
        return StudentRules(**self.config.student) if self.config.student else None

    @property
    def image_channels(self) -> int:
        """Channels of the images that it draws."""
        return self.unet.config.out_channels if self.vae is None else self.vae.config.out_channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that it draws unless told otherwise: those of the training images."""
        side = self.unet.config.sample_size * self.vae_scale_factor
        return tuple((self.config.data or {}).get("size") or (side, side))

    @property
    def image_side(self) -> int:
        """Its first side."""
        return self.image_size[0]

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae is not None else 1

    def own_defaults(self, steps: int | None = None, guidance_scale: float | None = None) -> tuple[int, float]:
        """Steps and guidance as given, else as the kind of model has them."""
        student, can_lead = self.student, self._conditional or self.guide is not None
        if steps is None:
            steps = student.most_steps if student else STEPS
        if guidance_scale is None:
            guidance_scale = GUIDANCE_SCALE if can_lead and not student else 1.0
        return steps, guidance_scale

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
    def do_autoguidance(self) -> bool:
        """Whether the call under way needs the guide's prediction too."""
        return self._guidance_scale > 1 and self.guide is not None

    @property
    def num_timesteps(self) -> int:
        """Steps of the call under way."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set ``_interrupt`` from a callback to leave out the steps that remain."""
        return self._interrupt

    # The parts of a call

    @contextmanager
    def calling(self, options: CallOptions) -> Iterator[Solver]:
        """The time of a call, in which no other runs; gives its solver.

        Raises:
            ValueError: If the model cannot be sampled like this.
        """
        check_choice("callback_on_step_end_tensor_inputs", options.shown_tensors, self._callback_tensor_inputs)
        check_guide(self.guide, self.guide_encoder, self.condition_encoder)
        steps, sigmas, student = options.num_inference_steps, options.sigmas, self.student
        with self._lock:
            solver = Solver(self.scheduler, self.objective)
            self._guidance_scale, self._interrupt = float(options.guidance_scale), False
            self._check_guidance()
            if options.strength is not None:
                steps = max(1, int(steps * options.strength))
            if student:
                sigmas = sigmas or student.levels(steps)
            solver.set_timesteps(steps, self._execution_device, sigmas)
            if options.strength is not None:
                solver.begin_under(options.strength, sigmas)
            self._num_timesteps = len(solver.timesteps)
            yield solver
            self.maybe_free_model_hooks()

    def given_pixels(self, image) -> torch.Tensor:
        """The argument ``image`` of a call as the network sees it, ``(N, C, H, W)``; raises ValueError, `as_pixels`."""
        pixels = as_pixels(image, self.image_channels, self.config.data).to(self._execution_device)
        return premultiplied(pixels) if is_premultiplied(self.config.data) else pixels

    def prepare_latents(
        self,
        batch: int,
        height: int | None,
        width: int | None,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        noise_scale: float,
    ) -> torch.Tensor:
        """The noise ``(B, C, h, w)`` float32 that sampling starts from.

        Args:
            batch: B.
            height: Pixels; those of the training images by default.
            width: Likewise.
            generator: Source of the noise.
            latents: Standard normal noise to take instead.
            noise_scale: Of the solver.
        """
        factor, own = self.vae_scale_factor, self.image_size
        height, width = own[0] if height is None else height, own[1] if width is None else width
        check_size(height, width, self.unet.size_multiple * factor)
        shape = (batch, self.unet.config.out_channels, height // factor, width // factor)
        check_latents(latents, shape)
        check_generators(generator, batch)
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * noise_scale

    def sample(
        self,
        solver: Solver,
        latents: torch.Tensor,
        encoded: EncodedCondition,
        options: CallOptions,
        aligned: torch.Tensor | None = None,
        keep: Keep | None = None,
    ) -> tuple[torch.Tensor, AttentionMaps | None]:
        """Go from noise to a sample.

        Args:
            solver: From `calling`.
            latents: From `prepare_latents`.
            encoded: From `encode`.
            options: Of the call.
            aligned: ``(B, A, h, w)`` channels beside the noisy image, for the network and its guide.
            keep: Puts back what is known after every step.

        Returns:
            Latents ``(B, C, h, w)``, and where each pixel looked if the options ask for it.
        """
        network = self.guided_network(encoded, options, aligned)
        recorder = AttentionRecorder(self.unet, rows=slice(0, len(latents))) if options.output_attention_maps else None
        tensors = {"latents": latents, **encoded.tensors}
        with recorder or nullcontext(), self.progress_bar(total=self._num_timesteps) as progress:
            for step in sampling_steps(network, solver, latents, options.generator):
                if keep is not None:
                    step.latents = keep(step.index + 1, step.latents)
                tensors["latents"] = step.latents
                if options.callback_on_step_end is not None:
                    tensors |= self._called_back(options, step, tensors)
                    encoded = self._led(encoded, tensors)
                    step.latents = tensors["latents"]
                    self._tell(network, encoded, tensors, aligned)
                progress.update()
                if self.interrupt:
                    break
        return tensors["latents"], recorder.maps() if recorder else None

    def _called_back(
        self, options: CallOptions, step: SamplingStep, tensors: dict[str, torch.Tensor | None]
    ) -> dict[str, torch.Tensor | None]:
        """What the callback puts in the place of tensors after a step, checked as arguments of the call are."""
        shown = {name: tensors[name] for name in options.shown_tensors}
        returned = options.callback_on_step_end(self, step.index, step.timestep, shown)
        changed = returned_tensors(returned, tensors)
        if "latents" in changed:
            latents = changed["latents"]
            if latents is None:
                raise ValueError("latents: callback_on_step_end must return a tensor, not None.")
            check_latents(latents, step.latents.shape, "the noisy image")
            changed["latents"] = latents.to(step.latents.device, torch.float32)
        for name in ("prompt", "negative_prompt"):
            names = f"{name}_embeds", f"{name}_attention_mask"
            if changed.keys() & set(names):
                told = self._given_tokens(name, *({**tensors, **changed}[one] for one in names), len(step.latents))
                changed |= dict(zip(names, (told.tokens, told.mask)))
        return changed

    def _led(self, encoded: EncodedCondition, tensors: dict[str, torch.Tensor | None]) -> EncodedCondition:
        """The conditions, with what guidance needs if a callback has turned it on; puts the negative into ``tensors``.

        Raises:
            ValueError: If the model cannot be guided like this.
        """
        self._check_guidance()
        no_negative = self.do_classifier_free_guidance and tensors["negative_prompt_embeds"] is None
        no_guide = self.do_autoguidance and self.guide_encoder is not None and encoded.of_guide is None
        if not (no_negative or no_guide):
            return encoded
        encoded = encoded.again(self.do_classifier_free_guidance, self.do_autoguidance)
        if no_negative:
            tensors |= {name: part for name, part in encoded.tensors.items() if name.startswith("negative_prompt")}
        return encoded

    def _check_guidance(self) -> None:
        """Raise ValueError unless the model can be sampled with the guidance scale of the call under way.

        Where there is nothing to lead away from, that is said once.
        """
        check_guidance(self._guidance_scale)
        if self._guidance_scale > 1 and not self._conditional and self.guide is None:
            logger.warning_once(
                "guidance_scale has no effect: this model has no condition, so that there is nothing to lead away from "
                "and it samples as with guidance_scale=1; leave it out, or give the pipeline a guide."
            )
        if self.student:
            self.student.check(self.scheduler, self._guidance_scale)

    def guided_network(
        self, encoded: EncodedCondition, options: CallOptions, aligned: torch.Tensor | None = None
    ) -> GuidedNetwork:
        """The network under the guidance of a call; arguments as in `sample`."""
        network = GuidedNetwork(self.unet, self.objective, self.guide, options.guidance_interval)
        self._tell(network, encoded, encoded.tensors, aligned)
        return network

    def _tell(
        self,
        network: GuidedNetwork,
        encoded: EncodedCondition,
        tensors: dict[str, torch.Tensor | None],
        aligned: torch.Tensor | None,
    ) -> None:
        """Give a network the conditions, and the guidance, as a callback has left them."""
        network.scale = self._guidance_scale
        positive = Condition(tensors["prompt_embeds"], tensors["prompt_attention_mask"], aligned=aligned)
        negative = None
        if self.do_classifier_free_guidance and tensors["negative_prompt_embeds"] is not None:
            tokens, mask = tensors["negative_prompt_embeds"], tensors["negative_prompt_attention_mask"]
            negative = Condition(tokens, mask, aligned=aligned)
        of_guide = None
        if self.do_autoguidance:
            own = encoded.of_guide and replace(encoded.of_guide, aligned=aligned)
            of_guide = positive if self.guide_encoder is None else own
        network.prepare(positive, negative, of_guide)

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents ``(B, C, h, w)`` of images in [-1, 1]."""
        if self.vae is None:
            return pixels
        found = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode().float()
        return (found - (getattr(self.vae.config, "shift_factor", None) or 0.0)) * self.vae.config.scaling_factor

    def decode_latents(self, latents: torch.Tensor, output_type: str, size: tuple[int, int] | None = None):
        """Images of sampled latents ``(B, C, h, w)``, in an output type; of a size, without what goes beyond it."""
        if output_type == "latent":
            return latents
        if self.vae is not None:
            config = self.vae.config
            latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
            latents = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()
        if size is not None:
            latents = latents[..., : size[0], : size[1]]
        return to_output(latents, self.config.data, output_type)
