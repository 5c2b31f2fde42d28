"""diffusers' AutoPipelines find the pipelines of attndiff, whichever of the two is imported first."""

import sys

import numpy as np
import torch
from factories import text_pipeline
from PIL import Image

import attndiff
from attndiff.auto_pipelines import FAMILY, TABLES, register

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def test_each_task_is_found_on_the_same_weights():
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

    pipeline = text_pipeline()
    anew = AutoPipelineForImage2Image.from_pipe(pipeline)
    fill = AutoPipelineForInpainting.from_pipe(anew)
    plain = AutoPipelineForText2Image.from_pipe(fill)
    for made, name in ((anew, "Img2Img"), (fill, "Inpaint"), (plain, "")):
        assert type(made) is getattr(attndiff, f"AttnDiff{name}Pipeline")
        assert made.unet is pipeline.unet and made.config.data == pipeline.config.data
        made.set_progress_bar_config(disable=True)
    wishes = {"num_inference_steps": 2, "output_type": "pt"}
    drawn = anew("red apple, flat", PICTURE, strength=0.5, generator=torch.Generator().manual_seed(0), **wishes).images
    own = attndiff.AttnDiffImg2ImgPipeline.from_pipe(pipeline)
    own.set_progress_bar_config(disable=True)
    theirs = own("red apple, flat", PICTURE, strength=0.5, generator=torch.Generator().manual_seed(0), **wishes).images
    assert torch.equal(drawn, theirs)


def test_tables_that_are_there_already_are_added_to():
    import diffusers.pipelines.auto_pipeline as auto

    waiting = len(sys.meta_path)
    for table in TABLES:
        del getattr(auto, table)[FAMILY]
    register()
    assert all(getattr(auto, table)[FAMILY] is getattr(attndiff, name) for table, name in TABLES.items())
    assert len(sys.meta_path) == waiting
