"""The evaluations that scripts/guidance.py counts are those that the networks see."""

import guidance
import pytest
from commands import make_images
from factories import text_pipeline, tiny_unet

from attndiff.data.config import DataConfig
from attndiff.data.sources import open_images
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
    images = open_images(DataConfig(make_images(tmp_path / "images"), size=16, caption_column="text"))
    guide = {"guide": tiny_unet(conditional=True, seed=5)} if way.kind == "autoguidance" else {}
    extractor = Extractor("channel means", lambda batch: batch.mean((2, 3)))
    curves = guidance.Curves({way.kind: text_pipeline(**guide)}, extractor, len(images))
    point = curves.point(way, 4, Subset(images, range(len(images))))
    assert point["evaluations"] == evaluations
    assert point["frechet_distance"] > 0
