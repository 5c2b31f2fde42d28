"""The one form on disk of a pipeline: weights, configs, and the code that opens them where attndiff is not installed.

``model_index.json`` names a code file at the root for the pipeline and one in the folder of each network, with a hash
of its content in its name. `diffusers.DiffusionPipeline` runs them when it is told to trust them; the classmethods
here never do, they take the classes of their own module. (diffusers' ``AutoPipeline`` classes do not read this form.)
"""

import importlib
import json
import os
import sys
import threading
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from attndiff.folder.code_names import CODE_FILE, code_hash


def code_file(cls: type) -> tuple[str, str]:
    """Name and source of the self-contained file that defines a class.

    A class that came out of such a file keeps it; for any other, attndiff bundles one.
    """
    path = Path(sys.modules[cls.__module__].__file__)
    match = CODE_FILE.fullmatch(path.name)
    if match:
        source = path.read_text(encoding="utf-8")
        if code_hash(source) == match[2]:
            return path.name, source
    return importlib.import_module("attndiff").bundle_component(cls)


def write_code(folder: Path, cls: type) -> None:
    """Put the code file of a class into a folder, in place of earlier versions of it."""
    name, source = code_file(cls)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.py"):
        match = CODE_FILE.fullmatch(old.name)
        if match and match[1] == CODE_FILE.fullmatch(name)[1]:
            old.unlink()
    (folder / name).write_text(source, encoding="utf-8", newline="\n")


def forget_origin(config: Path) -> None:
    """Take out of a network's config where it was opened from, which is nobody's business."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class CallLock:
    """A lock that makes calls wait for each other; a copied or pickled pipeline gets a new one."""

    def __init__(self):
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple:
        return CallLock, ()


class SelfContainedPipeline(DiffusionPipeline):
    """A diffusers pipeline that saves its own code beside its weights, and opens a folder without running any.

    Subclasses list their networks, the classes that stock diffusers does not have, in ``_network_classes``.
    """

    _network_classes: list[type] = []

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike, safe_serialization: bool = True, *args, **kwargs):
        """Write the pipeline to a folder, as `diffusers.DiffusionPipeline.save_pretrained` does, and its code.

        Raises:
            ValueError: If ``safe_serialization`` is off, which would write pickle files.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickle files; leave it on to write safetensors.")
        super().save_pretrained(save_directory, True, *args, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        # The last thing that saving does before it uploads anything.
        write_code(Path(save_directory), type(self))
        for name, cls in self._networks().items():
            write_code(Path(save_directory) / name, cls)
            forget_origin(Path(save_directory) / name / "config.json")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        index = json.loads(super().to_json_string())
        index.pop("_name_or_path", None)
        for name, cls in {"_class_name": type(self), **self._networks()}.items():
            index[name] = [code_file(cls)[0].removesuffix(".py"), cls.__name__]
        for name, entry in index.items():
            if entry == ["transformers", "TokenizersBackend"]:  # a name that transformers before 5 does not know
                index[name] = ["transformers", "PreTrainedTokenizerFast"]
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def _networks(self) -> dict[str, type]:
        """The components whose code has to go with them, and their classes."""
        names = {cls.__name__ for cls in self._network_classes}
        components = {name: getattr(part, "_orig_mod", part) for name, part in self.components.items()}
        return {name: type(part) for name, part in components.items() if type(part).__name__ in names}

    # Opening

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Open a folder or a Hub repository without running any code that it holds.

        Takes the arguments of `diffusers.DiffusionPipeline.from_pretrained`; ``trust_remote_code`` changes nothing.

        Raises:
            ValueError: If it holds no pipeline of attndiff's.
        """
        kwargs.pop("trust_remote_code", None)
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """The stored index, with the classes of this module in place of the folder's code."""
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        stored = index.get("_class_name")
        stored = stored[-1] if isinstance(stored, list) else stored
        if not str(stored).startswith("AttnDiff"):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {stored}, not a pipeline of attndiff's; open it with "
                "diffusers.DiffusionPipeline.from_pretrained."
            )
        index["_class_name"] = cls.__name__
        networks = {network.__name__: network for network in cls._network_classes}
        for name, entry in index.items():
            if isinstance(entry, list) and len(entry) == 2 and entry[1] in networks:
                index[name] = [networks[entry[1]].__module__, entry[1]]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Fetch weights and configs of a Hub repository, all at one commit, and none of its code."""
        variant = kwargs.get("variant")
        return snapshot_download(
            pretrained_model_name,
            revision=kwargs.get("revision"),
            cache_dir=kwargs.get("cache_dir"),
            token=kwargs.get("token"),
            force_download=kwargs.get("force_download") or False,
            local_files_only=kwargs.get("local_files_only") or False,
            allow_patterns=["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja"],
            ignore_patterns=None if variant else ["*/*.*.safetensors", "*/*.index.*.json"],
        )

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """A second pipeline on the same weights, each in its precision; threads need one each.

        Args:
            pipeline: Any pipeline that has the components.
            kwargs: Components and settings to replace, and ``dtype`` to cast to.
        """
        # The stock method casts shared weights to float32, and drops networks whose class is a folder's own.
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        components, settings = cls._get_signature_keys(cls)
        parts = {name: part for name, part in pipeline.components.items() if name in components}
        stored = {name: pipeline.config[name] for name in settings if name in pipeline.config}
        made = cls(**{**parts, **stored, **kwargs})
        return made if dtype is None else made.to(dtype=dtype)
