"""Fréchet and kernel distance of the averaged weights while training, drawn by all processes together."""

import torch
from accelerate import Accelerator

from attndiff.errors import UserError
from attndiff.metrics.extractors.base import NothingLearned
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.extractors.trained import FEATURES
from attndiff.metrics.frechet import frechet_needs
from attndiff.metrics.measure import Yardsticks, distances
from attndiff.metrics.reference import Reference
from attndiff.metrics.samples import sample_pixels
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
        reference = Reference(images.origin, images, validation, halves=False)
        self.test, self.others, self.rest = reference.choose(n, config.seed)
        self._yardstick: Yardsticks | None = None
        self._refusal: str | None = None

    def measure(self, state: RunState) -> dict:
        """A log entry: the distances of the longest average, the numbers on the main process only."""
        longest, model = max(state.ema.averages), self.parts.model
        was_training = model.training
        model.eval()
        with swapped(model, state.ema.state_dict(longest)):
            samples = self._sample()
        model.train(was_training)
        entry = {"step": state.step, "images": state.step * self.config.optim.batch_size}
        if self.accelerator.is_main_process:
            entry["distances"] = {"weights": f"ema_{longest:.3f}", **self._measured(samples)}
        return entry

    def _measured(self, samples: torch.Tensor) -> dict:
        """The distances of samples, or in ``refused`` why there can be none."""
        if self._yardstick is None and self._refusal is None:
            sets, device = (self.test, self.others, self.rest), self.accelerator.device
            try:
                extractor = choose_extractor("classifier", *sets, self.config.seed, device)
                real, others = self.test.tensor(), self.others.tensor()
                self._yardstick = Yardsticks(self.parts.learned.data, real, others, extractor, distances)
            except NothingLearned as refusal:  # a run goes on without
                self._refusal = str(refusal)
        return {"refused": self._refusal} if self._yardstick is None else self._yardstick.measure(samples)

    def _sample(self) -> torch.Tensor:
        """All samples ``(n, C, H, W)`` on every process, each drawn by one of them from a seed of its own."""
        rank, world, n = self.accelerator.process_index, self.accelerator.num_processes, len(self.test)
        every = self.parts.conditioning.prompt.of_all(self.test)
        padded = -(-n // world) * world  # gathering takes equal shares; the last ones wrap around
        mine = [i % n for i in range(rank, padded, world)]
        steps = self.parts.model.preview_steps
        guidance = self.config.log.guidance_scale if self.parts.conditioning.prompt.is_given else None
        drawn = sample_pixels(make_pipeline(self.parts), [every[i] for i in mine], mine, steps, guidance)
        shares = self.accelerator.gather(drawn.to(self.accelerator.device)).cpu().unflatten(0, (world, -1))
        return shares.transpose(0, 1).flatten(0, 1)[:n]


def in_words(entry: dict) -> str:
    """An entry with its distances as one line."""
    found = {name: value for name, value in entry["distances"].items() if isinstance(value, dict)}
    if not found:
        return f"step {entry['step']}: {entry['distances']['refused']}"
    shown = [
        f"{name.replace('_', ' ')} {m['value']:.4g} (real images {m['floor']:.4g}"
        f"{'' if m['judges'] else '; not a judgement: ' + m['why_not']})"
        for name, m in found.items()
    ]
    n = next(iter(found.values()))["n"]
    return f"step {entry['step']}: {', '.join(shown)}, n={n}, {entry['distances']['weights']}"
