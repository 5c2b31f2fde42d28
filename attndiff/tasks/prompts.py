"""What a model is told to draw: a text, a class, or nothing. The one place where the three are told apart.

A ``pipeline`` here is any of ours.
"""

import json
from collections.abc import Callable, Iterable

import torch

from attndiff.data.columns import CAPTION, LABEL
from attndiff.data.rows import Row, Rows
from attndiff.errors import UserError

Value = str | int | None  # a caption, the number of a class, or nothing in particular
SHOWN = 20  # class names in a sentence
CAPTION_COLUMNS = ("captions", "caption", "text", "prompt")  # where they are looked for, in this order
Inputs = dict[str, torch.Tensor]  # of a `ConditionEncoder`, for one sample


class Prompt:
    """What every kind of prompt can say; as it stands, that of a model that is told nothing.

    Attributes:
        name: As ``condition.kind`` has it.
        setting: The setting under ``data`` that names its column, or None.
        reads_text: Whether it takes a tokenizer.
        hub_tag: The Hub's name of what such a model does.
        summary: What it does, as the end of a sentence.
    """

    name = "none"
    setting: str | None = None
    reads_text = False
    hub_tag = "unconditional-image-generation"
    summary = "makes images from nothing but noise"

    @property
    def is_given(self) -> bool:
        """Whether such a model is told anything."""
        return self.setting is not None

    # Of data

    def check(self, images: Rows) -> None:
        """Raise `UserError` unless every image of a set has what it is to be drawn for."""

    def find_column(self, table, names: list[str]) -> str | None:
        """The column of a table that holds what images are drawn for, where no setting names it.

        Args:
            table: With ``columns`` and ``column(name)``.
            names: Of the model's classes.

        Raises:
            UserError: If there is none.
        """
        return None

    def inputs(self, row: Row, choice: float, tokenize: Callable[[str], Inputs]) -> Inputs:
        """What the condition's encoder takes of a row; ``choice`` in [0, 1) picks among its captions."""
        return {}

    def encoder_settings(self, class_names: list[str] | None, tokenizer) -> dict:
        """Which streams a `ConditionEncoder` of its own needs."""
        return {}

    # Of a call

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

    def check(self, images: Rows) -> None:
        if not images.class_names:
            raise UserError("condition.kind is 'class', but the data has no classes; set data.label_column.")

    def find_column(self, table, names: list[str]) -> str | None:
        found = next((name for name in label_first(table.columns) if are_classes(table, name, set(names))), None)
        if found is None:
            shown = ", ".join(sorted(names)[:5]) or "its classes"
            raise UserError(
                f"{table.origin}: the model draws classes ({shown}), and no column holds them; name it, such as "
                "label_column=kind."
            )
        return found

    def inputs(self, row: Row, choice: float, tokenize: Callable[[str], Inputs]) -> Inputs:
        return {"class_labels": torch.tensor(row[LABEL.name])}

    def encoder_settings(self, class_names: list[str] | None, tokenizer) -> dict:
        return {"num_classes": len(class_names)}

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
    reads_text = True
    hub_tag = "text-to-image"
    summary = "makes images from text"

    def check(self, images: Rows) -> None:
        if CAPTION not in images.columns:
            raise UserError("condition.kind is 'text', but the data has no captions; set data.caption_column.")

    def find_column(self, table, names: list[str]) -> str | None:
        found = next((name for name in CAPTION_COLUMNS if name in table.columns), None)
        if found is None:
            raise UserError(
                f"{table.origin}: the model draws what captions say, and no column is called one of "
                f"{', '.join(CAPTION_COLUMNS)}; name it, such as caption_column=title."
            )
        return found

    def inputs(self, row: Row, choice: float, tokenize: Callable[[str], Inputs]) -> Inputs:
        captions = row[CAPTION.name]
        return tokenize(captions[int(choice * len(captions))])

    def encoder_settings(self, class_names: list[str] | None, tokenizer) -> dict:
        return {"vocab_size": len(tokenizer), "max_length": tokenizer.model_max_length}

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


def label_first(columns: Iterable[str]) -> list[str]:
    """Names of columns, the one called as labels are before the others."""
    return sorted(columns, key=lambda name: name != LABEL.name)


def are_classes(table, name: str, wanted: set[str]) -> bool:
    """Whether a column gives every image one of the wanted classes; of no wanted ones, whether it is the labels'."""
    if not wanted and name != LABEL.name:
        return False
    values = table.column(name)
    if any(isinstance(value, (list, dict)) or value is None or value == "" for value in values):
        return False
    found = {str(value) for value in values}
    return found <= wanted if wanted else len(found) > 1
