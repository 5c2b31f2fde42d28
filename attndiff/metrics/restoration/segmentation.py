"""How well a model reads the parts of images: beside what is known of them without looking, by the same code.

Shapes: N images, C channels, H rows, W columns, K parts.
"""

from collections.abc import Callable

import torch
from torchmetrics.functional.classification import binary_auroc, multiclass_confusion_matrix

from attndiff.data.rows import Rows
from attndiff.tasks.part_maps import as_channels
from attndiff.tasks.registry import task_settings_of
from attndiff.tasks.segment import SegmentSettings, map_of
from attndiff.tasks.task import as_given

BATCH = 50
DRAWN = 8  # maps of an image that are drawn, to see where they differ


def true_maps(rows: Rows, settings: SegmentSettings) -> torch.Tensor:
    """The maps ``(N, H, W)`` int64 of some rows."""
    return torch.stack([map_of(row, settings) for row in rows])


def confusion(found: torch.Tensor, true: torch.Tensor, settings: SegmentSettings) -> torch.Tensor:
    """How many pixels ``(K, K)`` of each true part were found to be each, over all of a set, void left out."""
    known = true != (-1 if settings.void is None else settings.void)
    return multiclass_confusion_matrix(found[known], true[known], settings.parts)


def ious(matrix: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each part ``(K,)``; not a number where a part neither is nor was found."""
    both = matrix.diagonal().double()
    return both / (matrix.sum(0) + matrix.sum(1) - both)


def prior_map(train: Rows, settings: SegmentSettings) -> torch.Tensor:
    """The part that is the commonest at each place of the training images, ``(H, W)``."""
    counts = sum((as_channels(map_of(row, settings), settings.parts) + 1) / 2 for row in train)
    return counts.argmax(0)


def measure_segmentation(
    pipeline, test: Rows, train: Rows, tell: Callable[[slice], dict], seed: int, steps: int
) -> tuple[dict[str, dict], dict[str, torch.Tensor]]:
    """Measures by name, and the maps ``(N, H, W)`` they are of by the way they were made.

    Args:
        pipeline: An `AttnDiffSegmentPipeline`.
        test: Images with their maps.
        train: Others, of which the prior is made.
        tell: Rows to the arguments of a call that say what they show.
        seed: Of the first map that is drawn.
        steps: Of sampling.
    """
    settings, true = task_settings_of(pipeline), true_maps(test, task_settings_of(pipeline))
    once, entropy = _read(pipeline, test, tell, settings)
    drawn, differs = _read(pipeline, test, tell, settings, seed, steps)
    prior = prior_map(train, settings).expand_as(true)
    maps = {"prior": prior, "commonest": torch.full_like(true, int(prior.mode().values.mode().values[0]))}
    maps |= {"one call": once, "sampled": drawn}
    matrices = {name: confusion(found, true, settings) for name, found in maps.items()}
    means = {name: float(ious(matrix).nanmean()) for name, matrix in matrices.items()}
    right = {name: float(matrix.diagonal().sum() / matrix.sum()) for name, matrix in matrices.items()}
    named = settings.names or [str(part) for part in range(settings.parts)]
    each = {name: float(iou) for name, iou in zip(named, ious(matrices["one call"]), strict=True) if iou == iou}

    def entry(value: float, floor: float, how: str) -> dict:
        return {"value": value, "floor": floor, "n": len(test), "extractor": how}

    report = {"mean_iou": entry(means["one call"], means["prior"], "one confusion matrix; the commonest part by place")}
    report["mean_iou"] |= {"ways": means, "of_parts": each}
    report["mean_iou_sampled"] = entry(means["sampled"], means["prior"], f"the mean of {DRAWN} maps; the same")
    report["pixel_accuracy"] = entry(right["one call"], right["prior"], "one call; the commonest part by place")
    known = true != (-1 if settings.void is None else settings.void)
    wrong = (once != true)[known].long()
    if 0 < wrong.sum() < len(wrong):
        ranks = [float(binary_auroc(said[known], wrong)) for said in (differs, entropy)]
        report["uncertainty"] = entry(
            *ranks, f"AUROC of the one call's errors by the entropy of {DRAWN} maps; by its own"
        )
    return report, {"true": true, **maps}


def _read(
    pipeline, test: Rows, tell: Callable[[slice], dict], settings: SegmentSettings, seed: int = 0, steps: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers and uncertainty ``(N, H, W)`` of some images, in one call or of `DRAWN` maps of several steps each."""
    pipeline.set_progress_bar_config(disable=True)
    real, drawn = as_given(test.tensor(), settings.alpha), 1 if steps == 1 else DRAWN
    numbers, uncertain = [], []
    for start in range(0, len(real), BATCH):
        part = real[start : start + BATCH]
        first = seed + start * drawn
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(part) * drawn)]
        wishes = {"num_inference_steps": steps, "ensemble_size": drawn, "generator": generators, "output_type": "pt"}
        read = pipeline(part, **tell(slice(start, start + BATCH)), **wishes)
        numbers.append(read.images.cpu())
        uncertain.append(read.uncertainty.float().cpu())
    return torch.cat(numbers), torch.cat(uncertain)
