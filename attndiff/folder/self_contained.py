"""The one form on disk of a pipeline: weights, configs, and the code that opens them where attndiff is not installed.

``model_index.json`` names a code file at the root for the pipeline and one in the folder of each network, with a hash
of its content in its name. `diffusers.DiffusionPipeline` runs them when it is told to trust them; the classmethods
here never do, they take the classes of their own module. (diffusers' ``AutoPipeline`` classes do not read this form.)
"""

import json
import os
from pathlib import Path

from diffusers import DiffusionPipeline

from attndiff.folder.code_files import code_file, write_code, written_by
from attndiff.folder.fetch import fetch_without_code
from attndiff.folder.index import FOLDER_FORMAT, FORMAT_KEY, check_format, stored_class
from attndiff.folder.weights import remove_stale_weights


def forget_origin(config: Path) -> None:
    """Take out of a network's config where it was opened from, which is nobody's business."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class SelfContainedPipeline(DiffusionPipeline):
    """A diffusers pipeline that saves its own code beside its weights, and opens a folder without running any.

    Subclasses list their networks, the classes that stock diffusers does not have, in ``_network_classes``.
    """

    _network_classes: list[type] = []

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike, safe_serialization: bool = True, *args, **kwargs):
        """Write the pipeline to a folder, as `diffusers.DiffusionPipeline.save_pretrained` does, and its code.

        Weights that were saved there before, whole or in shards, are replaced; those of other variants stay.

        Raises:
            ValueError: If ``safe_serialization`` is off, which would write pickle files.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickle files; leave it on to write safetensors.")
        super().save_pretrained(save_directory, True, *args, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        # The last thing that saving does before it uploads anything.
        for name in self.components:
            remove_stale_weights(Path(save_directory) / name)
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
        index |= {FORMAT_KEY: FOLDER_FORMAT, **written_by(type(self))}
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
            ValueError: If it holds another pipeline, or one of a later format.
        """
        kwargs.pop("trust_remote_code", None)
        return super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, "use_safetensors": True})

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """The stored index, with the classes of this module in place of the folder's code."""
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        stored = stored_class(index)
        if stored != cls.__name__:
            by = "attndiff.load" if stored.startswith("AttnDiff") else "diffusers.DiffusionPipeline.from_pretrained"
            raise ValueError(f"{pretrained_model_name_or_path} holds {stored}, not {cls.__name__}; open it with {by}.")
        check_format(str(pretrained_model_name_or_path), index)
        index["_class_name"] = cls.__name__
        networks = {network.__name__: network for network in cls._network_classes}
        for name, entry in index.items():
            if isinstance(entry, list) and len(entry) == 2 and entry[1] in networks:
                index[name] = [networks[entry[1]].__module__, entry[1]]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Fetch weights and configs of a Hub repository, all at one commit, and none of its code."""
        return fetch_without_code(pretrained_model_name, **kwargs)
