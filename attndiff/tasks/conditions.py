"""What a model is told to draw: a text, a class, or nothing; the one place where the three are told apart."""

from typing import TYPE_CHECKING

from attndiff.errors import UserError

if TYPE_CHECKING:
    from attndiff.data.sources import ImageSet
    from attndiff.data.subset import Subset


def kind_of(pipeline) -> str:
    """What a model is conditioned on: ``"text"``, ``"class"`` or ``"none"``."""
    if pipeline.condition_encoder is None:
        return "none"
    return "text" if pipeline.tokenizer is not None else "class"


def call_arguments(pipeline, prompts: list[str]) -> dict:
    """The prompts as arguments of the pipeline's call.

    Raises:
        UserError: If this kind of model needs prompts and there are none, or the other way round.
    """
    kind, names = kind_of(pipeline), (pipeline.config.data or {}).get("class_names")
    if kind == "none":
        if prompts:
            raise UserError(f"PROMPT {prompts[0]!r}: this model is unconditional; leave the prompts out.")
        return {}
    if kind == "text":
        if not prompts:
            raise UserError("PROMPT is missing: this model draws what a text says, such as 'red apple'.")
        return {"prompt": prompts}
    if not prompts:
        classes = ", ".join(names[:20]) if names else f"0 to {pipeline.condition_encoder.config.num_classes - 1}"
        raise UserError(f"PROMPT is missing: this model draws classes; name some of {classes}.")
    return {"class_labels": [int(p) if p.isdigit() and p not in (names or []) else p for p in prompts]}


def tokens_of(pipeline, prompt: str) -> list[str]:
    """The condition tokens of a prompt as text: pieces of a caption, or the name of a class."""
    if kind_of(pipeline) == "class":
        return [prompt]
    ids = pipeline.tokenizer(prompt, padding="max_length", truncation=True)["input_ids"]
    return pipeline.tokenizer.convert_ids_to_tokens(ids)


def conditions_of(images: "ImageSet | Subset", kind: str) -> list[str | int | None]:
    """What to draw for each image of a set: its first caption, its class, or nothing in particular.

    Args:
        images: Real images.
        kind: ``"text"``, ``"class"`` or ``"none"``.
    """
    if kind == "text":
        return [images.captions(i)[0] for i in range(len(images))]
    return [images.label(i) if kind == "class" else None for i in range(len(images))]
