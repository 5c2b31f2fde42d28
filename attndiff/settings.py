"""Groups of settings: typed, checked, and every mistake in them one sentence."""

from difflib import get_close_matches
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from attndiff.errors import UserError


class SettingError(UserError):
    """A setting that does not fit.

    Args:
        place: Its key, dotted, from the section down; empty where several do not go together.
        problem: What is the matter and what would be right, the end of a sentence.
    """

    def __init__(self, place: str, problem: str):
        super().__init__(place, problem)
        self.place, self.problem = place, problem

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}" if self.place else self.problem


class Section(BaseModel):
    """A group of settings; assignments are validated like what it is made of.

    Raises:
        SettingError: If a value does not fit.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _first_of(error) from None

    def replace(self, **changes: Any) -> Self:
        """The section with other values of some settings, checked anew."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})


def _first_of(error: ValidationError) -> SettingError:
    """The first of a validator's complaints, with its place and the value that it is about."""
    first = error.errors()[0]
    place, cause = ".".join(map(str, first["loc"])), first.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):  # of a section in this one
        return SettingError(".".join(filter(None, (place, cause.place))), cause.problem)
    message, value = first["msg"].removeprefix("Value error, ").rstrip("."), first["input"]
    about = f", not {value!r}" if first["type"] != "value_error" and isinstance(value, (str, int, float)) else ""
    return SettingError(place, f"{message[:1].lower()}{message[1:]}{about}")


def check_keys(values: Any, kind: type[Section], prefix: str = "") -> None:
    """Raise `UserError` with the nearest right key if a section, or one in it, is given one that it does not have."""
    if not isinstance(values, dict):
        raise UserError(f"config: {prefix[:-1]} must be a section of 'key: value' lines, not {values!r}.")
    known = kind.model_fields
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are: {', '.join(known)}."
            raise UserError(f"config: unknown key {prefix}{key}; {hint}")
        inner = (get_args(known[key].annotation) or [known[key].annotation])[0]
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            continue
        if value is not None or known[key].default is not None:  # else a section that a run does without
            check_keys(value, inner, f"{prefix}{key}.")


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `UserError` with the nearest right value if `value` is none of `choices`."""
    if value not in choices:
        near = get_close_matches(str(value), choices, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"{argument}={value!r} is unknown: {hint}it is one of {', '.join(choices)}")
