"""attndiff: your own image model from your own images; everything here is imported on first use."""

import importlib

_EXPORTS = {
    "AttentionUNet2DModel": "attndiff.unet",
    "AttnDiffPipeline": "attndiff.pipelines.pipeline_attndiff",
    "ConditionEncoder": "attndiff.encoder",
    "load": "attndiff.hub",
    "push": "attndiff.hub",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
