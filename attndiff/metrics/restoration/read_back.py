"""How well images that were drawn of maps have the parts of them, as a model reads that tells parts apart.

Shapes: N images, C channels, H rows, W columns.
"""

from collections.abc import Callable

import torch

from attndiff.alpha import premultiplied
from attndiff.data.rows import Rows
from attndiff.metrics.restoration.segmentation import confusion, ious, true_maps
from attndiff.tasks.registry import task_settings_of
from attndiff.tasks.task import as_given

BATCH = 50


def measure_read_back(
    pipeline, reader, test: Rows, tell: Callable[[slice], dict], seed: int, steps: int, guidance: float
) -> tuple[dict[str, dict], dict[str, torch.Tensor]]:
    """Measures by name; and the maps ``(N, H, W)`` that were given, the images drawn of them, and what is read in them.

    Args:
        pipeline: An `AttnDiffMapToImagePipeline`.
        reader: An `AttnDiffSegmentPipeline` of the same parts.
        test: Images with their maps.
        tell: Rows to the arguments of a call that say what they show.
        seed: Of the first image.
        steps: Of sampling.
        guidance: Likewise.

    Raises:
        ValueError: If the reader knows other parts, or images of other channels.
    """
    settings, theirs = task_settings_of(pipeline), task_settings_of(reader)
    if (settings.parts, pipeline.image_channels) != (theirs.parts, reader.image_channels):
        raise ValueError(
            f"it tells {theirs.parts} parts of images of {reader.image_channels} channels apart, and this model draws "
            f"{settings.parts} parts in {pipeline.image_channels}."
        )
    true = true_maps(test, settings)
    drawn = []
    for start in range(0, len(true), BATCH):
        maps, rows = true[start : start + BATCH], slice(start, start + BATCH)
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(maps))]
        wishes = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators}
        drawn.append(pipeline(maps, **tell(rows), **wishes, output_type="pt").images.cpu())
    given = {"drawn": torch.cat(drawn), "real": as_given(test.tensor(), theirs.alpha)}
    read = {name: _read(reader, images) for name, images in given.items()}
    of = {name: float(ious(confusion(maps, true, settings)).nanmean()) for name, maps in read.items()}
    of["of another map"] = float(ious(confusion(read["drawn"], true.roll(1, 0), settings)).nanmean())
    how = "IoU of the map with what a model reads in the image drawn of it, one confusion matrix; with another's map"
    entry = {"value": of["drawn"], "floor": of["of another map"], "n": len(test), "extractor": how, "ways": of}
    seen = given["drawn"].float() * 2 - 1
    made = {"map": true, "drawn": premultiplied(seen) if settings.alpha else seen}
    return {"read_back": entry}, made | {f"read in {name}": maps for name, maps in read.items()}


def _read(reader, images: torch.Tensor) -> torch.Tensor:
    """The maps ``(N, H, W)`` of images ``(N, C, H, W)`` in [0, 1], each in one call."""
    reader.set_progress_bar_config(disable=True)
    parts = [reader(images[i : i + BATCH], output_type="pt").images.cpu() for i in range(0, len(images), BATCH)]
    return torch.cat(parts)
