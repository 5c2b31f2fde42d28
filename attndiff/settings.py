"""Groups of settings: typed, checked, and every mistake in them one sentence."""

from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

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

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)

    def __init__(self, **values: Any):
        _refuse_booleans(type(self), values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _first_of(error) from None

    def replace(self, **changes: Any) -> Self:
        """The section with other values of some settings, checked anew."""
        return type(self)(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})


def _refuse_booleans(section: type[Section], values: dict[str, Any]) -> None:
    """Raise `SettingError` for ``true`` where a number is asked for: Python would count it as 1."""
    for name, value in values.items():
        kind = kind_of_key(section, name)
        entries = [(entry, kind_of_items(kind)) for entry in value] if isinstance(value, list) else [(value, kind)]
        for entry, asked in entries:
            kinds = kinds_of(asked)
            if isinstance(entry, bool) and bool not in kinds and kinds & NUMBERS:
                raise SettingError(name, f"input should be a valid number, not {entry}")


def _first_of(error: ValidationError) -> SettingError:
    """The first of a validator's complaints, with its place and the value that it is about."""
    first = error.errors()[0]
    place, cause = ".".join(map(str, first["loc"])), first.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):  # of a section in this one
        return SettingError(".".join(filter(None, (place, cause.place))), cause.problem)
    message, value = first["msg"].removeprefix("Value error, ").rstrip("."), first["input"]
    about = f", not {value!r}" if first["type"] != "value_error" and isinstance(value, (str, int, float)) else ""
    return SettingError(place, f"{message[:1].lower()}{message[1:]}{about}")


# What a setting is declared to be

NUMBERS = {int, float}


def kinds_of(kind: object) -> set:
    """What a value may be, by its annotation: of a union what each of its parts may be, of a literal its type."""
    if get_origin(kind) is Annotated:
        return kinds_of(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return set().union(*map(kinds_of, get_args(kind)))
    return {type(value) for value in get_args(kind)} if get_origin(kind) is Literal else {kind}


def sections_of(kind: object) -> list[type[Section]]:
    """The sections that a value may be."""
    return [each for each in kinds_of(kind) if isinstance(each, type) and issubclass(each, Section)]


def kind_of_key(kind: object, key: str) -> object:
    """The annotation of what stands under a key of a section or mapping.

    `Any` where nothing is said of it; of a key that a section does not have (see `check_keys`), a text as good as any.
    """
    for section in sections_of(kind):
        if key in section.model_fields:
            return section.model_fields[key].annotation
    if sections_of(kind):
        return str
    return next((get_args(each)[1] for each in kinds_of(kind) if get_origin(each) is dict), Any)


def kind_of_items(kind: object) -> object:
    """The annotation of the entries of a list; `Any` where nothing is said of them."""
    return next((get_args(each)[0] for each in kinds_of(kind) if get_origin(each) is list), Any)


def check_keys(values: Any, kind: object, prefix: str = "") -> None:
    """Raise `UserError` with the nearest right key if a section, or one in it, is given one that it does not have.

    Args:
        values: What is given.
        kind: The section, or several of which it may be any.
        prefix: Its own key with a dot, where it lies in another.
    """
    if not isinstance(values, dict):
        raise UserError(f"config: {prefix[:-1]} must be a section of 'key: value' lines, not {values!r}.")
    known = {name: field for section in sections_of(kind) for name, field in section.model_fields.items()}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are: {', '.join(known)}."
            raise UserError(f"config: unknown key {prefix}{key}; {hint}")
        if not sections_of(known[key].annotation):
            continue
        if value is not None or known[key].default is not None:  # else a section that a run does without
            check_keys(value, known[key].annotation, f"{prefix}{key}.")


def check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `UserError` with the nearest right value if `value` is none of `choices`."""
    if value not in choices:
        near = get_close_matches(str(value), choices, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"{argument}={value!r} is unknown: {hint}it is one of {', '.join(choices)}")
