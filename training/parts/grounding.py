"""The condition encoder learns what words look like before the network learns to draw them.

A small image tower and the condition encoder are trained to agree on which image and which text belong together
(arXiv 2103.00020, section 2.3), on the images of the run itself; the encoder then keeps these weights. An image costs
the two towers a tenth of what it costs the network, and a contrast needs no noise.

Shapes: B images, C channels, H rows, W columns, D dimensions of the common space.
"""

import copy
import time
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import nn

from attndiff.data.columns import CAPTION, IMAGE
from attndiff.data.rows import Row, Rows
from attndiff.data.subset import shrink
from attndiff.errors import UserError
from attndiff.metrics.extractors.classifier import ConvTrunk, jitter
from attndiff.metrics.retrieval import contrastive_loss
from attndiff.nn.encoder import ConditionEncoder
from attndiff.progress import progress
from attndiff.training.conditioning import Conditioning, word_dropout
from attndiff.training.config import OptimConfig, TrainConfig
from attndiff.training.optim import make_optimizers, set_lr
from attndiff.training.parallel.processes import resolve_precision

THINGS = 100  # different captions from which on it is worth its time
SHARE = 0.2  # of a run's time that it may take
CHEAPER = 11  # of its images cost what one costs the network of preset xs
VISITS = 30  # of an image at most
LEAST, MOST = 20, 1200  # steps
BATCH = 256
WIDTH = 48  # of the image tower
DIM = 128
SIDE = 64  # pixels a side that it sees at most
WARMUP = 20  # steps


def check_grounding(config: TrainConfig) -> None:
    """Raise `UserError` where ``condition.grounding_steps`` is asked of a run that cannot have it."""
    reason = reason_against(config)
    if config.condition.grounding_steps and reason:
        raise UserError(f"condition.grounding_steps: this run {reason}; leave it out.")


def reason_against(config: TrainConfig) -> str | None:
    """Why a run cannot have a contrast, None if it can."""
    reasons = {
        "has a condition that is no text (condition.kind)": config.condition.kind != "text",
        "reads no captions, but writes them (task.name)": config.task.name == "caption",
        "goes on from another model (model.init_from)": config.model.init_from is not None,
        "learns from a stream (data.stream), which gives an image only once": config.data.stream,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class Grounding(nn.Module):
    """Two towers whose unit vectors agree where image and condition do.

    Args:
        encoder: The condition's tower.
        channels: Channels of the images.
    """

    def __init__(self, encoder: ConditionEncoder, channels: int):
        super().__init__()
        self.encoder, self.trunk = encoder, ConvTrunk(channels, WIDTH)
        self.of_image = nn.Linear(self.trunk.out_features, DIM)
        self.of_condition = nn.Linear(encoder.config.hidden_size, DIM)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def image(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors ``(B, D)`` of images ``(B, C, H, W)`` in [-1, 1]."""
        return F.normalize(self.of_image(self.trunk(images)).float(), dim=1)

    def condition(self, streams: dict[str, torch.Tensor]) -> torch.Tensor:
        """Unit vectors ``(B, D)`` of what a `ConditionEncoder` takes."""
        return F.normalize(self.of_condition(self.encoder(**streams).pooled).float(), dim=1)

    def forward(self, images: torch.Tensor, streams: dict[str, torch.Tensor], same: torch.Tensor) -> torch.Tensor:
        """The contrastive loss of a batch whose rows ``same (B, B)`` have one condition."""
        scale = self.log_scale.exp().clamp(max=100)
        return contrastive_loss(scale * self.image(images) @ self.condition(streams).T, same)


class GroundingLoop:
    """The training of a `Grounding`, a step at a time; the global generator stays as it was.

    Args:
        encoder: Trained in place.
        images: With their captions.
        conditioning: Makes what the encoder takes.
        optim: Rates and optimizer.
        seed: Of weights, order and augmentation.
        device: Where it is computed.
        half: Whether in bfloat16.
        left_out: Probability of each word of a caption to be left out.
    """

    def __init__(
        self,
        encoder: ConditionEncoder,
        images: Rows,
        conditioning: Conditioning,
        optim: OptimConfig,
        seed: int,
        device: torch.device | str = "cpu",
        half: bool = False,
        left_out: float = 0.0,
    ):
        self.images, self.conditioning, self.seed = images, conditioning, seed
        self.device, self.half, self.left_out = torch.device(device), half, left_out
        self.shapes = list(images.by_shape().values())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.grounding = Grounding(encoder, images[0][IMAGE.name].shape[0]).train().to(device)
        self.optimizers = make_optimizers(self.grounding, optim)
        self.rng, self.generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

    def run(self, steps: int) -> Grounding:
        """All steps, the rates falling to zero; the trained towers."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)  # of the encoder's dropout
            for step in progress(range(steps), "Learning what words look like", steps, "step"):
                set_lr(self.optimizers, min(1, (step + 1) / WARMUP) * (1 - step / steps))
                self.step()
        return self.grounding.eval()

    def step(self) -> float:
        """One step; its loss."""
        rows = [self.images[int(i)] for i in self._chosen()]
        images = shrink(torch.stack([torch.from_numpy(row[IMAGE.name]) for row in rows]), SIDE)
        streams, same = self._conditions(rows)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            loss = self.grounding(jitter(images, self.generator).to(self.device), streams, same)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def step_seconds(self) -> float:
        """Seconds of a step, the least of three; the towers learn by them."""
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        return min(times[2:])  # the first ones warm up

    def _chosen(self) -> np.ndarray:
        """Numbers of up to `BATCH` images of one shape, all images being equally likely."""
        sizes = np.array([len(rows) for rows in self.shapes])
        rows = self.shapes[self.rng.choice(len(sizes), p=sizes / sizes.sum())]
        return self.rng.choice(rows, min(BATCH, len(rows)), replace=False)

    def _conditions(self, rows: list[Row]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What the encoder takes of rows, and which of them ``(B, B)`` it cannot tell apart."""
        draws = self.rng.random(len(rows))
        each = [
            self.conditioning.sample(row, choice, self.left_out, self.rng)
            for row, choice in zip(rows, draws, strict=True)
        ]
        streams = {key: torch.stack([one[key] for one in each]).to(self.device) for key in each[0]}
        ids = streams["input_ids"]
        return self.conditioning.embed(streams), (ids[:, None] == ids[None]).all(2)


class Contrast:
    """What a run does before step 1 so that its encoder knows words: as much as is worth it, or nothing.

    Args:
        config: The run's settings.
        encoder: Of the condition, which stays as it is; None without one.
        images: Training images.
        conditioning: Makes what the encoder takes.
    """

    def __init__(self, config: TrainConfig, encoder: ConditionEncoder | None, images: Rows, conditioning: Conditioning):
        self.config, self.encoder, self.images, self.conditioning = config, encoder, images, conditioning

    def begin(self) -> GroundingLoop:
        """The contrast at its first step."""
        device, half = PartialState().device, resolve_precision(self.config) == "bf16"
        optim, seed = self.config.optim, self.config.seed
        left_out = word_dropout(self.config.condition, True, len(self.images))
        encoder = copy.deepcopy(self.encoder)
        return GroundingLoop(encoder, self.images, self.conditioning, optim, seed, device, half, left_out)

    @cached_property
    def step_seconds(self) -> float:
        """Seconds of a step, measured."""
        return self.begin().step_seconds()

    @cached_property
    def steps(self) -> int:
        """Those that were asked for, else as many as are worth it."""
        asked, optim = self.config.condition.grounding_steps, self.config.optim
        if asked is not None or reason_against(self.config) or self.config.condition.pretrained:
            return asked or 0
        if len({caption for row in self.images for caption in row[CAPTION.name]}) < THINGS:
            return 0
        if optim.minutes:
            within = SHARE * 60 * optim.minutes / self.step_seconds
        else:
            within = SHARE * CHEAPER * optim.steps * optim.batch_size / BATCH
        steps = min(MOST, VISITS * len(self.images) // BATCH, int(within))
        return steps if steps >= LEAST else 0

    @property
    def seconds(self) -> float:
        """That all of it takes."""
        return self.steps * self.step_seconds if self.steps else 0.0

    def weights(self) -> dict[str, torch.Tensor] | None:
        """What the encoder's weights become, on the CPU; None where nothing is done."""
        if not self.steps:
            return None
        trained = self.begin().run(self.steps).encoder
        return {name: value.detach().cpu().contiguous() for name, value in trained.state_dict().items()}
