"""The diffusers pipelines, imported on first use."""

import importlib

_EXPORTS = {"AttnDiffPipeline": "pipeline_attndiff", "AttnDiffPipelineOutput": "base"}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
