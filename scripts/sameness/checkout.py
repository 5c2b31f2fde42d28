"""Within a process of a checkout: what it is, and what it prints."""

import importlib
import importlib.abc
import importlib.util
import json
import multiprocessing
import runpy
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path

from sameness.figures import hash_of

PROMPTS = ["pizza, noto", "red apple, noto", "cat face, fluent 3d", "rocket, noto"]


class Checkout(importlib.abc.MetaPathFinder):
    """Finds attndiff in one checkout, where its pyproject.toml says, whatever is installed."""

    def __init__(self, root: Path):
        self.project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
        folders = self.project["tool"]["setuptools"].get("package-dir", {})
        self.root, self.places = root, {"attndiff": root / folders.get("", ".") / "attndiff"}
        self.places |= {package: root / folder for package, folder in folders.items() if package}

    def find_spec(self, name: str, path=None, target=None):
        if name.partition(".")[0] != "attndiff":
            return None
        if place := self.places.get(name):
            where = [str(place)]
            return importlib.util.spec_from_file_location(name, place / "__init__.py", submodule_search_locations=where)
        spec = PathFinder.find_spec(name, path)
        if spec is None:  # finders further down may know another checkout
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec

    def check(self) -> None:
        """Refuse to have run with modules of anywhere else."""
        loaded = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "attndiff"}
        places = {name: Path(module.__file__ or module.__path__[0]) for name, module in loaded.items()}
        elsewhere = {name: str(p) for name, p in places.items() if not p.resolve().is_relative_to(self.root)}
        if elsewhere or not loaded:
            raise SystemExit(f"attndiff is not that of {self.root}: {elsewhere or 'not imported'}")


class Absent(importlib.abc.MetaPathFinder):
    """Makes importing attndiff impossible."""

    def find_spec(self, name: str, path=None, target=None):
        if name.partition(".")[0] == "attndiff":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def within(root: Path, role: str, words: list[str]) -> None:
    """Be a process of a checkout."""
    sys.path.pop(0)  # this script's folder
    # Of loader workers: one that is spawned would look for attndiff elsewhere.
    multiprocessing.set_start_method("fork", force=True)
    if role == "stock diffusers":
        sys.meta_path.insert(0, Absent())
        return ROLES[role](root, words)
    checkout = Checkout(root)
    sys.meta_path.insert(0, checkout)
    ROLES[role](root, words)
    checkout.check()


def command_line(root: Path, words: list[str]) -> None:
    """The ``attndiff`` command that pyproject.toml names."""
    module, _, function = Checkout(root).project["project"]["scripts"]["attndiff"].partition(":")
    getattr(importlib.import_module(module), function)(words)


def launched(root: Path, words: list[str]) -> None:
    """The file that launchers of several processes start."""
    sys.argv = [str(root / "training/train.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def load(root: Path, words: list[str]) -> None:
    """The first door."""
    import attndiff

    report({name: sampled(attndiff.load(place)) for name, place in json.loads(words[0]).items()})


def stock_diffusers(root: Path, words: list[str]) -> None:
    """The second door."""
    from diffusers import DiffusionPipeline

    folders = {name: folder_of(root, place) for name, place in json.loads(words[0]).items()}
    report({n: sampled(DiffusionPipeline.from_pretrained(f, trust_remote_code=True)) for n, f in folders.items()})


def network_alone(root: Path, words: list[str]) -> None:
    """The third door: the network's answer to fixed noise."""
    import torch

    from attndiff import AttentionUNet2DModel

    hashes = {}
    for name, place in json.loads(words[0]).items():
        unet = AttentionUNet2DModel.from_pretrained(folder_of(root, place), subfolder="unet")
        random, config = torch.Generator().manual_seed(1), unet.config
        side = config.sample_size
        x = torch.randn(2, config.in_channels, side, side, generator=random)
        tokens = torch.randn(2, 4, config.cross_attention_dim, generator=random)
        with torch.no_grad():
            hashes[name] = hash_of(unet(x, torch.tensor([0.0, 0.5]), tokens).sample.numpy())
    report(hashes)


ROLES = {
    "command line": command_line,
    "launched": launched,
    "load": load,
    "stock diffusers": stock_diffusers,
    "network alone": network_alone,
}


def folder_of(root: Path, place: str) -> Path:
    """A model's folder, that of a bundled one wherever a checkout keeps it."""
    return Path(place) if "/" in place else next(root.glob(f"attndiff/**/{place}/model_index.json")).parent


def sampled(pipeline) -> str:
    """Hash of four samples in four steps."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return hash_of(pipeline(PROMPTS, num_inference_steps=4, generator=generators, output_type="np").images)


def report(hashes: dict[str, str]) -> None:
    """Print hashes for `Side.figures` to read, on a line of their own."""
    print("\n" + json.dumps(hashes))
