"""Fréchet and kernel distance of the averaged weights while training, drawn by all processes together."""

import torch
from accelerate import Accelerator

from attndiff.errors import UserError
from attndiff.metrics.extractors.base import Extractor
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.extractors.trained import FEATURES
from attndiff.metrics.frechet import frechet_needs
from attndiff.metrics.measure import distances, measure
from attndiff.metrics.reference import Reference
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import PROMPTS
from attndiff.training.build import Parts
from attndiff.training.config import TrainConfig
from attndiff.training.evaluation.samples import make_pipeline, swapped
from attndiff.training.latents import images_of
from attndiff.training.state.checkpoint import RunState

AT_MOST = 256  # samples


class Distances:
    """Measures a run at intervals, by the classifier of `attndiff.metrics.extractors.trained`.

    Real images, noise and conditions are the same every time, so that two measurements differ by the weights alone.

    Args:
        config: The run's settings.
        parts: Its modules and data.
        accelerator: For the device and the gathering of samples.

    Raises:
        UserError: If there are too few held-out or training images.
    """

    def __init__(self, config: TrainConfig, parts: Parts, accelerator: Accelerator):
        self.config, self.parts, self.accelerator = config, parts, accelerator
        for key in ("stream", "max_aspect"):
            if getattr(config.data, key):
                raise UserError(f"log.evaluate_every does not go together with data.{key}: leave one of them out.")
        held_out = 0 if parts.validation is parts.images else len(parts.validation)
        n, needed = min(AT_MOST, held_out, len(parts.images)), frechet_needs(FEATURES)
        if n < needed:
            raise UserError(
                f"log.evaluate_every needs at least {needed} held-out and as many training images, and the data has "
                f"{held_out} and {len(parts.images)}; set data.validation, give more data, or leave it out."
            )
        images, validation = images_of(parts.images), images_of(parts.validation)
        reference = Reference(images.table.origin, images, validation, halves=False)
        self.test, self.others, self.rest = reference.choose(n, config.seed)
        self._extractor: Extractor | None = None

    def measure(self, state: RunState) -> dict:
        """A log entry: the distances of the longest average, the numbers on the main process only."""
        longest, model = max(state.ema.averages), self.parts.model
        was_training = model.training
        model.eval()
        with swapped(model, state.ema, longest):
            samples = self._sample()
        model.train(was_training)
        entry = {"step": state.step, "images": state.step * self.config.optim.batch_size}
        if self.accelerator.is_main_process:
            extractor = self._extractor or self._make_extractor()
            metrics = measure(self.test.tensor(), samples, self.others.tensor(), extractor, distances)
            entry["distances"] = {"weights": f"ema_{longest:.3f}", **metrics}
        return entry

    def _make_extractor(self) -> Extractor:
        device = self.accelerator.device
        self._extractor = choose_extractor("classifier", self.test, self.others, self.rest, self.config.seed, device)
        return self._extractor

    def _sample(self) -> torch.Tensor:
        """All samples ``(n, C, H, W)`` on every process, each drawn by one of them from a seed of its own."""
        rank, world, n = self.accelerator.process_index, self.accelerator.num_processes, len(self.test)
        every = PROMPTS[self.parts.conditioning.kind].of_all(self.test)
        padded = -(-n // world) * world  # gathering takes equal shares; the last ones wrap around
        mine = [i % n for i in range(rank, padded, world)]
        how = self.parts.model.preview_steps, self.config.log.guidance_scale
        drawn = sample_pixels(make_pipeline(self.parts), [every[i] for i in mine], mine, *how)
        shares = self.accelerator.gather(drawn.to(self.accelerator.device)).cpu().unflatten(0, (world, -1))
        return shares.transpose(0, 1).flatten(0, 1)[:n]


def in_words(entry: dict) -> str:
    """An entry with its distances as one line."""
    found = {name: value for name, value in entry["distances"].items() if isinstance(value, dict)}
    shown = [f"{name.replace('_', ' ')} {m['value']:.4g} (real images {m['floor']:.4g})" for name, m in found.items()]
    n = next(iter(found.values()))["n"]
    return f"step {entry['step']}: {', '.join(shown)}, n={n}, {entry['distances']['weights']}"
