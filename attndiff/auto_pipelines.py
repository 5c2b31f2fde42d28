"""Has diffusers' ``AutoPipelineForImage2Image.from_pipe`` and its kind find the pipelines of attndiff.

They look a class up by its name in tables of their own module, whose import costs seconds: the tables are added to when
somebody imports that module, and by nobody else.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

MODULE = "diffusers.pipelines.auto_pipeline"
FAMILY = "attndiff"
TABLES = {
    "AUTO_TEXT2IMAGE_PIPELINES_MAPPING": "AttnDiffPipeline",
    "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING": "AttnDiffImg2ImgPipeline",
    "AUTO_INPAINT_PIPELINES_MAPPING": "AttnDiffInpaintPipeline",
}


def register() -> None:
    """Add to the tables, now if they are there and else when they come to be."""
    if MODULE in sys.modules:
        add_to_tables(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, Once())


def add_to_tables(module: ModuleType) -> None:
    """Enter the pipelines of attndiff as a family of their own."""
    classes = importlib.import_module("attndiff")
    for table, name in TABLES.items():
        getattr(module, table)[FAMILY] = getattr(classes, name)


class Once(MetaPathFinder):
    """Finds the module as all others do, and adds to its tables after it was run."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        """The module's spec; None of every other."""
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        run = spec.loader.exec_module

        def run_and_add(module: ModuleType) -> None:
            run(module)
            add_to_tables(module)

        spec.loader.exec_module = run_and_add
        return spec
