"""Models that make pictures of pictures give the same by every door: as made, opened, and opened without attndiff."""

import json

import numpy as np
from doors import elsewhere
from factories import inpaint_pipeline, map_pipeline, segment_pipeline, upscale_pipeline

# What each is called with; two steps, so that chance has its part.
CODE = """
import numpy as np, torch
pipe.set_progress_bar_config(disable=True)
generator = np.random.default_rng(0)
seen, numbers = generator.random((1, 16, 16, 3), np.float32), generator.integers(0, 4, (1, 16, 16))
given = {"AttnDiffMapToImagePipeline": {"image": numbers}}.get(type(pipe).__name__, {"image": seen})
if type(pipe).__name__ == "AttnDiffInpaintPipeline":
    given["mask_image"] = (numbers[0] > 1).astype(np.float32)
wishes = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
print(json.dumps(pipe(**given, **wishes).images.tolist()))
"""


def test_every_door_gives_the_same(tmp_path, capsys):
    made = [make() for make in (upscale_pipeline, inpaint_pipeline, segment_pipeline, map_pipeline)]
    folders = [tmp_path / type(pipeline).__name__ for pipeline in made]
    ours = []
    for pipeline, folder in zip(made, folders, strict=True):
        pipeline.save_pretrained(folder)
        exec(CODE, {"pipe": pipeline, "json": json})
        ours.append(np.array(json.loads(capsys.readouterr().out)))
    theirs = [np.array(images) for images in elsewhere(CODE, *folders)]
    assert len(theirs) == 8 and len({images.shape for images in ours}) == 3
    for mine, yours in zip(ours * 2, theirs, strict=True):
        assert np.abs(mine - yours).max() < 1e-6
