"""attndiff: your own image model from your own images.

Everything here is imported on first use, or when diffusers' AutoPipelines are. Nothing else in the package imports by
name: this is how a lower floor reaches what is built on it (`attndiff.folder` the pipelines) without importing it.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

from attndiff.auto_pipelines import register

_PIPELINES = {
    "AttnDiffPipeline": "attndiff.pipelines.pipeline_attndiff",
    "AttnDiffImg2ImgPipeline": "attndiff.pipelines.pipeline_img2img",
    "AttnDiffInpaintPipeline": "attndiff.pipelines.pipeline_inpaint",
    "AttnDiffUpscalePipeline": "attndiff.pipelines.pipeline_upscale",
    "AttnDiffSegmentPipeline": "attndiff.pipelines.pipeline_segment",
    "AttnDiffMapToImagePipeline": "attndiff.pipelines.pipeline_map_to_image",
    "AttnDiffRasterPipeline": "attndiff.pipelines.pipeline_raster",
    "AttnDiffCaptionPipeline": "attndiff.pipelines.pipeline_caption",
}
PIPELINES = tuple(_PIPELINES)  # classes that a folder can name
_PUBLIC = {
    **_PIPELINES,
    "AttentionUNet2DModel": "attndiff.nn.unet",
    "ConditionEncoder": "attndiff.nn.encoder",
    "TextDecoderModel": "attndiff.nn.decoder",
    "PixelTransformerModel": "attndiff.nn.raster.model",
    "load": "attndiff.folder.open",
    "push": "attndiff.folder.hub",
}
_INTERNAL = {"bundle_component": "attndiff.folder.code_bundle"}

__all__ = ["__version__", *_PUBLIC]

try:
    __version__ = version("attndiff")
except PackageNotFoundError:  # run from its sources
    __version__ = "0+unknown"


register()


def __getattr__(name: str):
    module = _PUBLIC.get(name) or _INTERNAL.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
