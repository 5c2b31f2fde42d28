"""From a config to what a run trains and on what: the parts, put together.

What opens data, what learns from it and what makes networks are files of their own in `attndiff.training.parts`.
Networks follow from the config and what was learned, so that they are made again without the data.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from accelerate.utils import set_seed
from diffusers import AutoencoderKL

from attndiff.data.rows import Row, Rows
from attndiff.diffusion.objectives import make_objective
from attndiff.errors import UserError
from attndiff.tasks.registry import TASKS
from attndiff.tasks.task import Sample, Task, TaskSettings
from attndiff.training.conditioning import Conditioning
from attndiff.training.config import TrainConfig
from attndiff.training.heads import Head
from attndiff.training.heads.captioning import CaptioningModel
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.heads.raster import RasterModel
from attndiff.training.heads.student import StudentModel
from attndiff.training.parallel.once import once
from attndiff.training.parts.given import Given, check_vae, open_given
from attndiff.training.parts.grounding import Contrast, check_grounding
from attndiff.training.parts.learning import learn, learn_objective
from attndiff.training.parts.networks import (
    Networks,
    begin_grounded,
    check_model,
    keep_encoder,
    make_networks,
)
from attndiff.training.parts.opening import Opened, bucket_note, encoded, open_data
from attndiff.training.state.learned import Learned

CHANGED = "are not those that it was trained on any more"
GONE = "could not be opened"
# What is trained, by the name that a task has for it.
HEADS: dict[str, Callable[[Networks, Learned], Head]] = {
    "denoising": lambda made, learned: DenoisingModel(made.network, made.encoder, make_objective(learned.objective)),
    "raster": lambda made, learned: RasterModel(made.network, made.encoder),
    "captioning": lambda made, learned: CaptioningModel(
        made.network, made.encoder, made.conditioning.tokenizer.bos_token_id, made.denoiser
    ),
}
GROUNDED = (
    "what words look like was learned before step 1, and the text encoder keeps it from here on; "
    "condition.grounding_steps=0 leaves that out"
)


@dataclass
class Parts:
    """What a run trains and on what.

    Args:
        images: Training images or their latents; None where the data are not at hand.
        validation: Held-out ones; None where the data are not at hand.
        conditioning: From captions and labels to tensors.
        model: Encoder, network and loss.
        learned: What was learned from the data.
        vae: The autoencoder of the latents.
        notes: What is to be said of data and weights, a sentence each.
        without_data: What is the matter with data that are not at hand, the end of a sentence.
    """

    images: Rows | None
    validation: Rows | None
    conditioning: Conditioning
    model: Head
    learned: Learned
    vae: AutoencoderKL | None = None
    notes: list[str] = field(default_factory=list)
    without_data: str | None = None

    @property
    def task(self) -> Task:
        """What is trained for."""
        return TASKS[self.learned.task["name"]]

    @property
    def task_settings(self) -> TaskSettings:
        """Its settings, those measured on the images among them."""
        return self.task.settings(**self.learned.task)

    @property
    def grounded(self) -> bool:
        """Whether the condition's encoder learned words before the network learned to draw."""
        encoder = self.model.condition_encoder
        return encoder is not None and encoder.config.grounded

    @property
    def make_sample(self) -> Callable[[Row, np.random.Generator], Sample]:
        """What the task adds to a training sample, of a row and a generator."""
        return partial(self.task.make_sample, settings=self.task_settings)


def build(
    config: TrainConfig,
    kept: Learned | None = None,
    held: Callable[[], AbstractContextManager] = nullcontext,
    grounds: bool = True,
) -> Parts:
    """Open the data, learn from it what is not known yet, and make (or load) the model.

    Args:
        config: The run's settings.
        kept: What the run has learned already, by which the data are read then.
        held: Makes the context in which the run's folder may be written: latents are kept there.
        grounds: Whether the encoder may learn words first, as it may before a run's first step.

    Raises:
        UserError: If data and model do not go together.
    """
    check_model(config)
    check_grounding(config)
    opened = open_data(config, kept and kept.class_names)
    # Weights are drawn from the global generator, once, before anything else.
    set_seed(config.seed)
    given = open_given(config)
    if given.vae is not None:
        check_vae(config, given.vae, opened.images)
    learned = kept or once(partial(learn, config, opened, given))
    networks = make_networks(config, learned, given)
    grounded = None
    if grounds and kept is None:
        grounded = once(Contrast(config, networks.encoder, opened.images, networks.conditioning).weights)
    if grounded is not None:
        learned = replace(learned, encoder=grounded, notes=[*learned.notes, GROUNDED])
        begin_grounded(networks.encoder, grounded)
    buckets = [bucket_note(config, opened.images, networks.network.size_multiple)] if config.data.max_aspect else []
    if given.vae is not None:
        with held():
            opened = encoded(config, opened, given.vae)
    if kept is None:
        objective = once(partial(learn_objective, config, given, opened.images, learned.task))
        learned = replace(learned, objective=objective, notes=[*learned.notes, *buckets])
    return _put_together(config, learned, given, networks, opened)


def build_without_data(config: TrainConfig, learned: Learned) -> Parts:
    """The model of a run from what it learned, its weights those that the run began with; no data are opened.

    Raises:
        UserError: If a model that the config names cannot be opened.
    """
    set_seed(config.seed)
    given = open_given(config)
    return _put_together(config, learned, given, make_networks(config, learned, given))


def _put_together(
    config: TrainConfig, learned: Learned, given: Given, networks: Networks, opened: Opened | None = None
) -> Parts:
    keep_encoder(networks.encoder, config.optim)
    model = HEADS[TASKS[learned.task["name"]].head](networks, learned)
    if config.distill:
        model = StudentModel(model, config.distill)
    if config.model.lora_rank:
        model.add_adapter(config.model.lora_rank)
    model.set_gradient_checkpointing(config.optim.gradient_checkpointing)
    images, validation = (opened.images, opened.validation) if opened else (None, None)
    notes = [*learned.notes, *networks.notes]
    return Parts(images, validation, networks.conditioning, model, learned, given.vae, notes)


def add_data(config: TrainConfig, parts: Parts) -> str | None:
    """Give parts that were built without data the images that the run was trained on, if they are still there.

    Returns:
        What was the matter with the data, None if nothing was; ``parts.without_data`` says so without naming places.
    """
    try:
        opened = open_data(config, parts.learned.class_names)
        if parts.learned.read_otherwise or opened.images.fingerprint != parts.learned.fingerprint:
            parts.without_data = CHANGED
            return f"the data {CHANGED}"
        if parts.vae is not None:
            opened = encoded(config, opened, parts.vae)
    except UserError as error:
        parts.without_data = GONE
        return f"the data {GONE} ({error})"
    parts.images, parts.validation = opened.images, opened.validation
    return None
