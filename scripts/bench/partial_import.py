"""A network's file out of another's package, without what only the package's trainers and metrics need."""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# What the files with the peers' networks import for their trainers and metrics, and the networks never touch.
UNNEEDED = (
    "dctorch",
    "ema_pytorch",
    "pytorch_fid",
    "scipy",
    "torchdiffeq",
    "torchsde",
    "torchvision",
)


class Blank(ModuleType):
    """In the place of a package that is not needed."""

    def __getattr__(self, name: str) -> "Blank":
        if name.startswith("__"):
            raise AttributeError(name)
        return Blank(name)


class BlankFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a `Blank` for each of `UNNEEDED` and their parts."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in UNNEEDED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return Blank(spec.name)

    def exec_module(self, module):
        pass


def network_module(name: str) -> ModuleType:
    """A module with a peer's network, without its package's ``__init__`` and without `UNNEEDED` packages.

    Raises:
        ImportError: If the package is not installed, or is a release without this module.
    """
    if name in sys.modules:
        return sys.modules[name]
    with _alone(name):
        return importlib.import_module(name)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Parents of a module that only know where their parts are, and blanks; all taken away again."""
    before, finder = dict(sys.modules), BlankFinder()
    for unneeded in [key for key in sys.modules if key.split(".")[0] in UNNEEDED]:
        del sys.modules[unneeded]
    parents = name.split(".")[:-1]
    for i in range(len(parents)):
        _bare_package(".".join(parents[: i + 1]))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for key in [k for k in sys.modules if k.split(".")[0] in UNNEEDED]:
            del sys.modules[key]
        sys.modules.update({key: module for key, module in before.items() if key.split(".")[0] in UNNEEDED})


def _bare_package(name: str) -> None:
    """Put a package into ``sys.modules`` without running its ``__init__``."""
    if name in sys.modules:
        return
    parent, _, _ = name.rpartition(".")
    path = sys.modules[parent].__path__ if parent else None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    package = ModuleType(name)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules[name] = package
