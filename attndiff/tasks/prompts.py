"""What a model is told to draw: a text, a class, or nothing. The one place where the three are told apart.

A ``pipeline`` here is any of ours.
"""

import json

from attndiff.data.columns import CAPTION, LABEL
from attndiff.data.rows import Rows
from attndiff.errors import UserError

Value = str | int | None  # a caption, the number of a class, or nothing in particular
SHOWN = 20  # class names in a sentence


class Prompt:
    """What every kind of prompt can say; as it stands, that of a model that is told nothing.

    Attributes:
        name: As ``condition.kind`` has it.
        setting: The setting under ``data`` that names its column, or None.
        hub_tag: The Hub's name of what such a model does.
        summary: What it does, as the end of a sentence.
    """

    name = "none"
    setting: str | None = None
    hub_tag = "unconditional-image-generation"
    summary = "makes images from nothing but noise"

    @property
    def is_given(self) -> bool:
        """Whether such a model is told anything."""
        return self.setting is not None

    def of(self, images: Rows, i: int) -> Value:
        """What image ``i`` was, or could have been, drawn for."""
        return None

    def of_all(self, images: Rows) -> list[Value]:
        """The same of every image of a set."""
        return [self.of(images, i) for i in range(len(images))]

    def arguments(self, values: list[Value]) -> dict:
        """One image for each value, as arguments of a pipeline's call."""
        return {"num_images_per_prompt": len(values)}

    def read(self, pipeline, texts: list[str]) -> dict:
        """What was typed, as arguments of the call; empty where the number of images decides.

        Raises:
            UserError: If this kind of model needs prompts and there are none, or the other way round.
        """
        if texts:
            raise UserError(f"PROMPT {texts[0]!r}: this model is unconditional; leave the prompts out.")
        return {}

    def tokens(self, pipeline, text: str) -> list[str]:
        """The condition tokens of a prompt as text."""
        raise UserError("attention maps show where the words of a prompt act; this model is unconditional.")

    def examples(self, images: Rows, held_out: Rows, n: int) -> list[Value]:
        """What to draw to see how a training is going.

        Args:
            images: Images trained on.
            held_out: Others.
            n: How many, at most where there are fewer.
        """
        return [None] * n

    def call(self, value: Value) -> str:
        """A value as Python source, the argument of a call."""
        return ""

    def limit(self, tokenizer, class_names: list[str] | None) -> str | None:
        """What such a model cannot be told, in a sentence."""
        return None


class ClassPrompt(Prompt):
    """One of the classes that the model was trained on, by name or number."""

    name = "class"
    setting = "label_column"
    summary = "makes images of a class"

    def of(self, images: Rows, i: int) -> Value:
        return images[i][LABEL.name]

    def arguments(self, values: list[Value]) -> dict:
        return {"class_labels": values}

    def read(self, pipeline, texts: list[str]) -> dict:
        names = class_names_of(pipeline)
        if not texts:
            shown = ", ".join(names[:SHOWN]) or f"0 to {pipeline.condition_encoder.config.num_classes - 1}"
            raise UserError(f"PROMPT is missing: this model draws classes; name some of {shown}.")
        return {"class_labels": [int(text) if text.isdecimal() and text not in names else text for text in texts]}

    def tokens(self, pipeline, text: str) -> list[str]:
        return [text]

    def examples(self, images: Rows, held_out: Rows, n: int) -> list[Value]:
        names = images.class_names
        return [names[i % len(names)] for i in range(n)]

    def call(self, value: Value) -> str:
        return f"class_labels={json.dumps(value, ensure_ascii=False)}"

    def limit(self, tokenizer, class_names: list[str] | None) -> str | None:
        return f"Knows {len(class_names)} classes: {', '.join(map(str, class_names))}."


class TextPrompt(Prompt):
    """A caption."""

    name = "text"
    setting = "caption_column"
    hub_tag = "text-to-image"
    summary = "makes images from text"

    def of(self, images: Rows, i: int) -> Value:
        return images[i][CAPTION.name][0]

    def arguments(self, values: list[Value]) -> dict:
        return {"prompt": values}

    def read(self, pipeline, texts: list[str]) -> dict:
        if not texts:
            raise UserError("PROMPT is missing: this model draws what a text says, such as 'red apple'.")
        return {"prompt": texts}

    def tokens(self, pipeline, text: str) -> list[str]:
        ids = pipeline.tokenizer(text, padding="max_length", truncation=True)["input_ids"]
        return pipeline.tokenizer.convert_ids_to_tokens(ids)

    def examples(self, images: Rows, held_out: Rows, n: int) -> list[Value]:
        picks = range(0, len(held_out), max(1, len(held_out) // n))
        return [held_out[i][CAPTION.name][0] for i in list(picks)[:n]]

    def call(self, value: Value) -> str:
        return json.dumps(value, ensure_ascii=False)

    def limit(self, tokenizer, class_names: list[str] | None) -> str | None:
        return (
            f"Captions are cut after {tokenizer.model_max_length} tokens; words that the training captions lack mean "
            "nothing to it."
        )


PROMPTS = {kind.name: kind() for kind in (Prompt, ClassPrompt, TextPrompt)}


def prompt_of(pipeline) -> Prompt:
    """The kind of prompt that a pipeline takes."""
    if pipeline.condition_encoder is None:
        return PROMPTS["none"]
    return PROMPTS["text" if pipeline.tokenizer is not None else "class"]


def class_names_of(pipeline) -> list[str]:
    """Names of a pipeline's classes, if it knows some."""
    return (pipeline.config.data or {}).get("class_names") or []
