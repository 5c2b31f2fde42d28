"""Stateless randomness: every random number of training is a function of (seed, visit, sample id).

Augmentation, noise, noise level, condition dropout and choice of caption come from a counter-based generator
(Philox, Salmon et al. 2011) keyed by these three numbers alone, so that neither the number of loader workers nor of
processes, nor a restart, changes what a sample meets.
"""

from dataclasses import dataclass

import numpy as np


def sample_generator(seed: int, visit: int, sample_id: int) -> np.random.Generator:
    """The generator of one visit to one sample."""
    key, counter = np.array([seed, visit], dtype=np.uint64), np.array([0, 0, 0, sample_id], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass
class Draws:
    """The random numbers of one visit to one sample.

    Args:
        noise: Standard normal ``(C, H, W)`` float32.
        normal: One standard normal number, from which the objective makes the noise level.
        drop: Whether the condition is dropped.
        flip: Whether the image is mirrored.
        choice: Uniform in [0, 1), picks the caption where a sample has several.
        rest: The generator that these came from, for what a task draws after them.
    """

    noise: np.ndarray
    normal: float
    drop: bool
    flip: bool
    choice: float
    rest: np.random.Generator


def draw(
    seed: int, visit: int, sample_id: int, shape: tuple[int, int, int], drop_probability: float, flip_probability: float
) -> Draws:
    """Draw what one visit to one sample needs, always in the same order."""
    generator = sample_generator(seed, visit, sample_id)
    drop, flip, choice = generator.random(3)
    normal = float(generator.standard_normal(dtype=np.float32))
    noise = generator.standard_normal(shape, dtype=np.float32)
    return Draws(noise, normal, bool(drop < drop_probability), bool(flip < flip_probability), float(choice), generator)
