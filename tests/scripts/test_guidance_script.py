"""The evaluations that scripts/guidance.py counts are those that the networks see."""

import guidance
import pytest
import torch
from commands import make_images
from factories import text_pipeline, tiny_unet

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset
from attndiff.metrics.extractors.base import Extractor


@pytest.mark.parametrize(
    ("way", "evaluations"),
    [
        (guidance.Way("no guidance"), 4),
        (guidance.Way("guidance", 2.0), 8),
        (guidance.Way("guidance in an interval", 2.0, (0.4, 0.8)), 6),  # two of the levels 1, 3/4, 1/2, 1/4
        (guidance.Way("autoguidance", 2.0), 8),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_evaluations_are_counted_by_image(tmp_path, way, evaluations):
    images = ImageSet(DataConfig(path=make_images(tmp_path / "images"), size=16, caption_column="text"))
    guide = {"guide": tiny_unet(conditional=True, seed=5)} if way.kind == "autoguidance" else {}
    extractor = Extractor("channel means", lambda batch: batch.mean((2, 3)))
    curves = guidance.Curves({way.kind: text_pipeline(**guide)}, extractor, len(images))
    point = curves.point(way, 4, Subset(images, range(len(images))))
    assert point["evaluations"] == evaluations
    assert point["frechet_distance"] > 0


def test_the_guide_is_told_the_captions_in_its_own_terms(tmp_path):
    """One Euler step is linear in the prediction, so that guiding mixes what either model gives alone."""
    for name, seed in (("model", 0), ("earlier", 9)):
        text_pipeline(seed=seed).save_pretrained(tmp_path / name)
    pipelines = guidance.open_pipelines(str(tmp_path / "model"), str(tmp_path / "earlier"), None)
    start = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def one_step(pipe, scale):
        settings = {"guidance_scale": scale, "num_inference_steps": 1, "latents": start, "output_type": "latent"}
        return pipe("red apple, flat", **settings).images.cpu()

    good = one_step(pipelines["no guidance"], 1.0)
    bad = one_step(guidance.open_model(str(tmp_path / "earlier")), 1.0)
    torch.testing.assert_close(one_step(pipelines["autoguidance"], 2.0), bad + 2 * (good - bad), atol=1e-4, rtol=1e-4)
