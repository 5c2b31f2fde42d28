"""Settings of a network from a config, checked against the signature of the class that they are for."""

import difflib
import inspect
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from attndiff.errors import UserError
from attndiff.nn.unet import Level

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def check_network_settings(cls: type, settings: dict[str, Any], section: str) -> None:
    """Refuse what a network's constructor does not know, or knows as something else.

    Args:
        cls: Class of the network.
        settings: Its arguments by name.
        section: Where they are in the config, such as ``"model.unet"``.

    Raises:
        UserError: With the setting, what it should be, and the nearest right name of an unknown one.
    """
    kinds = get_type_hints(cls.__init__)
    _check(settings, {name: kinds[name] for name in inspect.signature(cls).parameters}, section)
    for i, level in enumerate(settings.get("levels") or []):
        _check(level, get_type_hints(Level), f"{section}.levels[{i}]")


def _check(settings: dict[str, Any], kinds: dict[str, Any], section: str) -> None:
    for name, value in settings.items():
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(kinds)}."
            raise UserError(f"config: unknown key {section}.{name}; {hint}")
        try:
            TypeAdapter(kinds[name], config=STRICT).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UserError(f"config: {section}.{name}: {message[:1].lower()}{message[1:]}, not {value!r}.") from None
