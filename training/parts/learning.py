"""What is learned from data, before step 1 of a run that begins: tokenizer, classes, sigma_data, what the data are."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from attndiff.data.columns import CAPTION, IMAGE
from attndiff.data.rows import Row, Rows
from attndiff.data.subset import Subset, spread_over
from attndiff.data.tokenizer import train_tokenizer
from attndiff.diffusion.objectives import make_objective
from attndiff.errors import UserError
from attndiff.tasks.prompts import PROMPTS
from attndiff.tasks.registry import TASKS
from attndiff.tasks.task import GENERATE, TaskSettings, nothing
from attndiff.training.conditioning import Conditioning, count_tokens
from attndiff.training.config import TrainConfig
from attndiff.training.parts.given import Given
from attndiff.training.parts.opening import Opened
from attndiff.training.state.learned import Learned
from attndiff.words import MOST, words_of

EXAMPLES = 8  # of what to draw
MEASURED = 512  # images that sigma_data is measured on, spread over all


def learn(config: TrainConfig, opened: Opened, given: Given) -> Learned:
    """All but the objective, whose ``sigma_data`` is measured on latents where the run trains on those.

    Args:
        config: The run's settings.
        opened: Its data, as images.
        given: Models that it starts from.

    Raises:
        UserError: If the data has no classes where the condition is a class.
    """
    images, validation = opened.images, opened.validation
    stream, prompt = config.data.stream, PROMPTS[config.condition.kind]
    task = learn_task(config, images)
    given_images = TASKS[task.name].given is not nothing
    tokenizer, words, notes = None, [], list(opened.notes)
    if prompt.reads_text:
        captions = [caption for row in images for caption in row[CAPTION.name]]
        tokenizer = make_tokenizer(config, given.conditioning, captions)
        words = [] if stream else known_words(given, captions)
        tokens = count_tokens(tokenizer, captions)
        if tokens.cut:
            notes.append(tokens.note(is_adjustable(config, given.conditioning)))
    return Learned(
        data=images.describe(),
        images=None if stream else len(images),
        held_out=len(validation),
        tokenizer=tokenizer if given.conditioning is None else None,
        fingerprint=images.fingerprint,
        skipped=None if stream else len(images.skipped),
        licences=_licences(images),
        prompts=prompt.of_all(examples(validation)) if given_images else prompt.examples(images, validation, EXAMPLES),
        notes=notes,
        task=task.model_dump(),
        words=words,
    )


def make_tokenizer(config: TrainConfig, given: Conditioning | None, captions: list[str]) -> PreTrainedTokenizerBase:
    """The tokenizer that reads captions: the given one, or one that is trained on them."""
    if given is not None:
        return given.tokenizer
    return train_tokenizer(captions, config.condition.vocab_size, config.condition.max_length)


def known_words(given: Given, captions: list[str]) -> list[str]:
    """All words that the model was told by the end of its run; none where some are not at hand, or where too many."""
    learned_elsewhere = given.conditioning is not None
    if learned_elsewhere and not given.words:
        return []
    words = given.words.union(*map(words_of, captions))
    return sorted(words) if len(words) <= MOST else []


def is_adjustable(config: TrainConfig, given: Conditioning | None) -> bool:
    """Whether ``condition.max_length`` decides how much is kept of a caption, rather than the model that is given."""
    if given is None:
        return True
    return config.model.init_from is None and given.tokenizer.model_max_length == config.condition.max_length


def _licences(images: Rows) -> list[tuple[str, int]]:
    """The licences that the rows name, the commonest first."""
    if not len(images) or "license" not in images.cells(0):
        return []
    return Counter(str(images.cells(i)["license"]) for i in range(len(images))).most_common()


def examples(validation: Rows) -> Subset:
    """The held-out images that samples of a task are made of which is given images."""
    return spread_over(validation, min(EXAMPLES, len(validation)))


def learn_task(config: TrainConfig, images: Rows) -> TaskSettings:
    """The settings of the task, with what is measured on some of the images.

    Raises:
        UserError: If the task does not go together with the rest.
    """
    settings, task = config.task, TASKS[config.task.name]
    if task is not GENERATE and (config.model.vae or config.distill or config.data.stream):
        raise UserError(f"task.name {task.name} goes together with no model.vae, distill or data.stream: leave it out.")
    objective = config.objective.name or "flow"
    if task.objectives is not None and objective not in task.objectives:
        can = ", ".join(task.objectives)
        raise UserError(f"objective.name {objective} does not learn task.name {task.name}; give one of {can}.")
    if task.head == "raster":
        check_values(config, images)
    if task.makes == "captions":
        check_writing(config)
    return settings.model_copy(update=task.learn(some_rows(images), settings))


def check_values(config: TrainConfig, images: Rows) -> None:
    """Raise `UserError` unless a network can draw images value after value: of one shape, and of 256 values."""
    if config.data.max_aspect or config.model.lora_rank:
        raise UserError("task.name raster goes together with no data.max_aspect or model.lora_rank: leave it out.")
    depth = images.describe().get("bit_depth", 8)
    if depth != 8:
        raise UserError(f"task.name raster draws images of 8 bits a channel, and these have {depth}: convert them.")


def check_writing(config: TrainConfig) -> None:
    """Raise `UserError` unless the settings are those of something that writes."""
    condition = config.condition
    if condition.kind != "text":
        raise UserError("task.name caption learns from captions: set condition.kind=text.")
    if condition.pretrained or config.model.lora_rank or config.data.max_aspect:
        raise UserError(
            "task.name caption goes together with no condition.pretrained, model.lora_rank or data.max_aspect: leave "
            "it out."
        )
    if config.log.evaluate_every:
        raise UserError("log.evaluate_every measures samples, and task.name caption draws none: leave it out.")


def some_rows(images: Rows) -> Iterator[Row]:
    """Some rows from all over the set."""
    for i in range(0, len(images), max(1, len(images) // MEASURED)):
        yield images[i]


def learn_objective(config: TrainConfig, given: Given, images: Rows, task: dict) -> dict:
    """Settings of the objective, ``sigma_data`` measured where neither the config nor the earlier model gives it.

    Args:
        config: The run's settings.
        given: With the earlier model, whose objective is gone on with where the config does not say otherwise.
        images: What is trained on, latents or images.
        task: Settings of the task, which may denoise something else than the images.

    Raises:
        UserError: If the settings are no objective's.
    """
    earlier = (given.source.config.get("objective") if given.source is not None else None) or {}
    settings = {**earlier, **config.objective.model_dump()}
    if settings.get("sigma_data") is None:
        settings["sigma_data"] = standard_deviation(images, task)
    try:
        return make_objective(settings).to_config()
    except ValueError as error:
        raise UserError(f"config: {error}") from None


def standard_deviation(images: Rows, task: dict) -> float:
    """Of the values of what is denoised for some images from all over the set, to four digits."""
    kind, generator = TASKS[task["name"]], np.random.default_rng(0)
    settings, values = kind.settings(**task), []
    for row in some_rows(images):
        target = kind.make_sample(row, generator, settings).get("images")
        values.append(torch.from_numpy(row[IMAGE.name]) if target is None else target)
    return round(float(torch.cat([value.flatten() for value in values]).std()), 4)
