"""Batches whose every random number follows from (seed, visit, sample id)."""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from attndiff.data.columns import IMAGE
from attndiff.data.order.batches import BatchSampler
from attndiff.data.order.bucket_batches import BucketSampler
from attndiff.data.order.draw import draw
from attndiff.data.rows import Row, Rows
from attndiff.tasks.task import nothing
from attndiff.training.conditioning import Conditioning
from attndiff.training.config import TrainConfig
from attndiff.training.stopping import ignore_signals

OPEN_END = 2**40  # the step before which the batches end of a run whose number of steps is not settled
WORKER_TIMEOUT_S = 300  # for a batch; after that a loader worker counts as hung


class Batch(TypedDict, total=False):
    """What a batch of B samples holds. Shapes: C channels, H rows, W columns, S tokens."""

    images: torch.Tensor  # (B, C, H, W) in [-1, 1], or latents
    noise: torch.Tensor  # (B, C, H, W) standard normal
    normal: torch.Tensor  # (B,) standard normal, from which an objective makes the noise level
    drop: torch.Tensor  # (B,) bool: whose condition is dropped
    ids: torch.Tensor  # (B,) int64: numbers of the samples
    # Of the condition, whichever it has
    input_ids: torch.Tensor  # (B, S) int64: tokens of the text
    attention_mask: torch.Tensor  # (B, S): which of them are there
    context: torch.Tensor  # (B, S, C): hidden states of a pretrained encoder
    context_mask: torch.Tensor  # (B, S): which of them are there
    class_labels: torch.Tensor  # (B,) int64
    pixel_values: torch.Tensor  # (B, C, H, W): images that are looked at
    # Of the task, whichever it has
    aligned: torch.Tensor  # (B, A, H, W): channels beside the noisy image
    at_once: torch.Tensor  # (B,) bool: learned without noise at the highest level
    pixel_weight: torch.Tensor  # (B, 1, H, W): what each pixel's error counts, 1 on average


class DrawnDataset(Dataset):
    """Samples with the noise, level, dropout and augmentation that one visit meets.

    Args:
        images: Normalised images (or their latents) with their captions or labels.
        conditioning: Makes the condition's tensors.
        seed: Run seed.
        drop: Probability that the condition is dropped.
        flip: Probability that the image is mirrored.
        left_out: Probability of each word of a caption to be left out.
        make_sample: What a task adds to a row, from a generator.
    """

    def __init__(
        self,
        images: Rows,
        conditioning: Conditioning,
        seed: int,
        drop: float = 0.0,
        flip: float = 0.0,
        make_sample: Callable[[Row, np.random.Generator], dict[str, torch.Tensor]] = nothing,
        left_out: float = 0.0,
    ):
        self.images, self.conditioning, self.make_sample = images, conditioning, make_sample
        self.seed, self.drop, self.flip, self.left_out = seed, drop, flip, left_out

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        index, visit = key
        return self.sample(self.images[index], visit, index)

    def sample(self, row: Row, visit: int, sample_id: int) -> dict[str, torch.Tensor]:
        """A row with what is drawn for (seed, visit, sample id)."""
        drawn = draw(self.seed, visit, sample_id, row[IMAGE.name].shape, self.drop, self.flip)
        shown = row.mirrored() if drawn.flip else row
        return {
            "images": torch.from_numpy(shown[IMAGE.name]),
            "noise": torch.from_numpy(drawn.noise),
            "normal": torch.tensor(drawn.normal),
            "drop": torch.tensor(drawn.drop),
            "ids": torch.tensor(sample_id),
            **self.conditioning.sample(shown, drawn.choice, self.left_out, drawn.rest),
            **self.make_sample(shown, drawn.rest),
        }


def collate_by_shape(samples: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Batches of the samples whose images have the same shape, as few as there are shapes."""
    groups: dict[torch.Size, list] = {}
    for sample in samples:
        groups.setdefault(sample["images"].shape, []).append(sample)
    return [default_collate(group) for group in groups.values()]


def commonest_shape(dataset: DrawnDataset) -> np.ndarray:
    """The samples whose images have the shape that most have."""
    return max(dataset.images.by_shape().values(), key=len)


def training_loader(
    config: TrainConfig, dataset: DrawnDataset, accumulation: int, rank: int, world_size: int, start_step: int
) -> DataLoader:
    """Micro-batches of one rank from ``start_step`` to the end of the run.

    Never handed to Accelerate's ``prepare``: it would shard again and synchronise generators that nothing here uses.
    """
    optim = config.optim
    buckets = list(dataset.images.by_shape().values())
    kind, samples = (BucketSampler, buckets) if config.data.max_aspect else (BatchSampler, len(dataset))
    sampler = kind(
        samples,
        optim.batch_size // (accumulation * world_size),
        accumulation,
        config.seed,
        rank,
        world_size,
        start_step,
        optim.steps or OPEN_END,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=optim.workers,
        persistent_workers=optim.workers > 0,
        timeout=WORKER_TIMEOUT_S if optim.workers else 0,
        worker_init_fn=ignore_signals,
        pin_memory=torch.cuda.is_available(),
    )
