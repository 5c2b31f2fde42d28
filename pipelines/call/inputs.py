"""Texts and classes of a call in one form, whatever form they came in."""

from numbers import Integral

import torch


def as_texts(prompt: str | list[str] | None, name: str = "prompt") -> list[str] | None:
    """A prompt as a list of texts.

    Raises:
        ValueError: If it is neither a text nor a list of texts, or holds what is no text in any encoding.
    """
    if prompt is None:
        return None
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a text or a list of texts, not {describe_type(prompt)}.")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"{name} holds {half}, which is half of a character: take it out.") from None
    return list(texts)


def as_labels(class_labels, num_classes: int, class_names: list[str] | None) -> torch.Tensor | None:
    """Class labels as an int64 tensor ``(B,)``.

    Args:
        class_labels: Number or name of a class, a list of them, a tensor of numbers, or None.
        num_classes: How many classes there are.
        class_names: Their names, in order, if they have any.

    Raises:
        ValueError: If a label is of another type, out of range or no such name.
    """
    if class_labels is None:
        return None
    if isinstance(class_labels, torch.Tensor):
        class_labels = class_labels.reshape(-1).tolist()
    labels = list(class_labels) if isinstance(class_labels, (list, tuple)) else [class_labels]
    if not labels:
        raise ValueError("class_labels is empty; give at least one class.")
    return torch.tensor([_label(label, num_classes, class_names or []) for label in labels], dtype=torch.int64)


def _label(label: int | str, num_classes: int, class_names: list[str]) -> int:
    """The number of one class."""
    if isinstance(label, str):
        if label not in class_names:
            known = f"the names are {', '.join(class_names[:20])}" if class_names else "its classes have numbers only"
            raise ValueError(f"class_labels: this model has no class {label!r}; {known}.")
        return class_names.index(label)
    if not isinstance(label, Integral) or isinstance(label, bool):
        raise ValueError(f"class_labels must be class numbers or names, not {describe_type(label)}.")
    if not 0 <= label < num_classes:
        raise ValueError(f"class_labels: {label} is out of range; this model has the classes 0 to {num_classes - 1}.")
    return int(label)


def describe_type(value) -> str:
    """The type of a wrong argument in words."""
    if isinstance(value, (list, tuple)):
        return f"a list of {type(value[0]).__name__}" if value else "an empty list"
    return type(value).__name__
