"""What a pipeline folder may hold, looked at before anything of it is built.

A config is checked against the network's own signature, its numbers against caps, and its parameters, counted on
torch's meta device where they take no memory, against the weights that are there: no folder makes a process allocate
more than its files hold, none leaves a parameter at random, and none names a class outside of the libraries that
pipelines are made of.
"""

import inspect
import json
from pathlib import Path

import pydantic
import torch
from safetensors import SafetensorError, safe_open

import attndiff  # its names of pipelines
from attndiff.errors import UserError
from attndiff.folder.index import INDEX, VERSION_KEY, check_format, stored_class
from attndiff.folder.weights import SHARD_FILE, shard_indexes, shards_of
from attndiff.nn.decoder import TextDecoderModel
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.level import Level
from attndiff.nn.raster.model import PixelTransformerModel
from attndiff.nn.unet import AttentionUNet2DModel

NETWORKS = {
    cls.__name__: cls for cls in (AttentionUNet2DModel, ConditionEncoder, PixelTransformerModel, TextDecoderModel)
}
LIBRARIES = ("diffusers", "transformers")
MOST = 2**20  # of any whole number in a config
LONGEST = 32  # entries of any list in one
STRICT = pydantic.ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


def check_folder(folder: Path) -> str:
    """Look through a pipeline folder for what would not open.

    Returns:
        Name of the pipeline's class, one of `attndiff.PIPELINES`.

    Raises:
        UserError: Naming the file that is missing, damaged, or not what attndiff wrote.
    """
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is no pipeline folder: it has no {INDEX}; give one that was saved or exported.")
    for path in sorted([folder / INDEX, *folder.glob("*/*.json")]):
        read_json(path)
    index = read_json(folder / INDEX)
    check_index(folder / INDEX, index)
    parts = {part: entry for part, entry in index.items() if isinstance(entry, list) and part != "_class_name"}
    for part, (library, _) in parts.items():
        if library and not (folder / part).is_dir():
            raise UserError(f"{folder} is incomplete: its folder {part} is missing; copy or download it again.")
    networks = {part: name for part, (_, name) in parts.items() if name in NETWORKS}
    for part, name in networks.items():
        check_network(folder / part, name)
    others = {path.parent for path in folder.glob("*/*.safetensors*")} - {folder / part for part in networks}
    for part in sorted(others):
        for file in [file for files in weight_files(part) for file in files]:
            stored_shapes(file)
    return stored_class(index)


def check_class(folder: Path, index: dict) -> None:
    """Raise `UserError` unless this attndiff has the pipeline's class, and reads the folder's format."""
    name, version = stored_class(index), index.get(VERSION_KEY)
    try:
        check_format(str(folder), index)
    except ValueError as error:
        raise UserError(str(error)) from None
    if name in attndiff.PIPELINES:
        return
    if not name.startswith("AttnDiff"):
        raise UserError(f"{folder} holds a {name}, not a pipeline of attndiff's; open it with diffusers.")
    by = f", which attndiff {version} wrote" if isinstance(version, str) else ""
    raise UserError(
        f"{folder} holds an {name}{by}; this is attndiff {attndiff.__version__}, which has "
        f"{', '.join(attndiff.PIPELINES)}: install a version that has it, or take another folder."
    )


def check_index(path: Path, index) -> None:
    """Raise `UserError` unless the pipeline, and every component, is of a class that is known here."""
    if not isinstance(index, dict):
        raise UserError(f"{path} must hold components by name, not a {type(index).__name__}.")
    check_class(path.parent, index)
    for part, entry in index.items():
        if part == "_class_name" or not isinstance(entry, list):
            continue
        if len(entry) != 2 or not all(name is None or isinstance(name, str) for name in entry):
            raise UserError(f"{path}: {part} must be a library and a class, not {str(entry)[:80]}.")
        library, name = entry
        if name is not None and name not in NETWORKS and library not in LIBRARIES:
            raise UserError(f"{path}: {part} is a {library}.{name}, which is no part of a pipeline; do not trust it.")


def check_network(folder: Path, name: str) -> None:
    """Look through the folder of one of our networks.

    Args:
        folder: With ``config.json`` and, for each variant, one safetensors file or shards with their index.
        name: Of its class.

    Raises:
        UserError: If the config does not make such a network, or weights are missing, left over, of another shape, or
            not finite.
    """
    path, cls = folder / "config.json", NETWORKS[name]
    settings = check_settings(path, cls)
    try:
        with torch.device("meta"):
            shapes = {key: list(value.shape) for key, value in cls(**settings).state_dict().items()}
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{path} makes no {name}: {' '.join(str(error).split())[:200]}") from None
    for files in weight_files(folder):
        check_weights(files, shapes)


def check_settings(path: Path, cls: type) -> dict:
    """The arguments of a network in a config file; raises `UserError` if one is unknown or cannot be."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold settings by name, not a {type(config).__name__}.")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    _check_size(path, settings)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    fields = {p.name: (list[Level] | None if p.name == "levels" else p.annotation, p.default) for p in parameters}
    model = pydantic.create_model(cls.__name__, __config__=STRICT, **fields)
    try:
        model.model_validate_json(json.dumps(settings))  # in JSON, a dict may stand for a level
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
    return settings


def _check_size(path: Path, value, place: str = "") -> None:
    """Raise `UserError` for numbers and lists that no network has."""
    if isinstance(value, dict | list):
        if len(value) > LONGEST:
            raise UserError(f"{path}: {place or 'it'} has {len(value)} entries, where {LONGEST} are the most.")
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_size(path, inner, f"{place}.{key}".removeprefix("."))
    if isinstance(value, int | float) and not -MOST <= value <= MOST:
        raise UserError(f"{path}: {place} is {value}, where {MOST} is the most.")


def weight_files(folder: Path) -> list[list[Path]]:
    """The files of each variant of a component's weights: one file, or all shards of an index.

    Raises:
        UserError: If an index is none, or shards are not those that it names.
    """
    sharded = [_check_shards(index) for index in shard_indexes(folder)]
    named = {file for files in sharded for file in files}
    whole = [file for file in sorted(folder.glob("*.safetensors")) if file not in named]
    for file in whole:
        if SHARD_FILE.fullmatch(file.name):
            raise UserError(f"{file} is a shard that no index names; remove it, or copy or download the folder again.")
    return [*sharded, *([file] for file in whole)]


def _check_shards(index: Path) -> list[Path]:
    """The shards of an index; raises `UserError` unless together they hold what it says, each tensor once."""
    places = shards_of(read_json(index))
    if places is None:
        raise UserError(f"{index} must name a safetensors file beside it for each tensor; copy or download it again.")
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, and {index.name} names it; copy or download it again.")
    found: dict[str, Path] = {}
    for file in files:
        for key in stored_shapes(file):
            if key in found:
                raise UserError(f"{file}: {key} is in {found[key].name}, too; copy or download both again.")
            found[key] = file
    for key in sorted(places.keys() | found.keys()):
        named, stored = places.get(key, "no file"), found[key].name if key in found else "none"
        if named != stored:
            raise UserError(f"{index}: {key} should be in {named} and is in {stored}; copy or download all again.")
    return files


def check_weights(files: list[Path], shapes: dict[str, list[int]]) -> None:
    """Raise `UserError` unless files together hold these tensors and no others, all finite."""
    stored = {key: (file, shape) for file in files for key, shape in stored_shapes(file).items()}
    for key in sorted(shapes.keys() | stored.keys()):
        file, shape = stored.get(key, (files[0] if len(files) == 1 else files[0].parent, None))
        if shapes.get(key) != shape:
            what = f"{shape or 'absent'}, where the config asks for {shapes.get(key, 'nothing')}"
            raise UserError(f"{file}: {key} is {what}; copy or download it again.")
    for file in files:
        _check_finite(file)


def stored_shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of a safetensors file's tensors; raises `UserError` unless its header is sound and all data are there."""
    try:
        with safe_open(file, framework="np") as weights:
            return {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); copy or download it again.") from None


def _check_finite(file: Path) -> None:
    """Raise `UserError` unless all numbers of a sound file are finite."""
    with safe_open(file, framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118 - no dict
            if not weights.get_tensor(key).isfinite().all():
                raise UserError(f"{file}: {key} holds numbers that are not finite; take an earlier version of it.")


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no valid JSON; copy or download it again.") from error
