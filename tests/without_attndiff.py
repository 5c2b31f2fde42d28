"""Opens pipelines with stock diffusers where attndiff cannot be imported; run by test_doors.py and test_hub.py.

Takes one JSON argument: ``folders`` (name to folder or Hub id), ``calls`` (name to arguments), ``out``. Writes
``out/NAME.npz`` with the pixels of every way it opened a pipeline, and saves each again as ``out/NAME-again``.
"""

import importlib.abc
import json
import sys

import numpy as np
import torch


class Absent(importlib.abc.MetaPathFinder):
    """Makes importing attndiff impossible."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "attndiff":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())

from diffusers import DiffusionPipeline  # noqa: E402


def sample(pipeline: DiffusionPipeline, call: dict) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(3)}
    return pipeline(**call, **settings).images


def main(folders: dict[str, str], calls: dict[str, dict], out: str) -> None:
    for name, folder in folders.items():
        call, again = calls[name], f"{out}/{name}-again"
        first = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        pixels = {"opened": sample(first, call)}
        first.save_pretrained(again)
        second = DiffusionPipeline.from_pretrained(again, trust_remote_code=True)
        pixels["saved and opened"] = sample(second, call)
        pixels["after its code was run again"] = sample(first, call)
        pixels["by its own class"] = sample(type(first).from_pretrained(again), call)
        pixels["from_pipe"] = sample(type(second).from_pipe(first), call)
        np.savez(f"{out}/{name}.npz", **pixels)
    assert not [module for module in sys.modules if module.partition(".")[0] == "attndiff"]


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
