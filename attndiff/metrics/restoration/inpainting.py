"""How well a model fills holes: beside what the given pixels alone reach on the same images, by the same code.

Shapes: N images, C channels, H rows, W columns; values in [-1, 1].
"""

from collections.abc import Callable

import numpy as np
import torch

from attndiff.alpha import ALPHA_PEAK, has_alpha, premultiplied
from attndiff.metrics.grounds import views
from attndiff.metrics.restoration.fills import harmonic_fill, mean_fill
from attndiff.metrics.restoration.psnr import hole_psnr
from attndiff.tasks.masks import draw_box, draw_strokes
from attndiff.tasks.task import as_given

BATCH = 50
KINDS = {"boxes": draw_box, "strokes": draw_strokes}
DRAWN = 8  # samples of a hole whose mean is the model's best guess


def measure_inpainting(
    pipeline, real: torch.Tensor, tell: Callable[[slice], dict], seed: int, steps: int
) -> tuple[dict[str, dict], dict[str, torch.Tensor]]:
    """Measures by name, and the images they are of by the way they were made.

    Args:
        pipeline: An `AttnDiffInpaintPipeline`.
        real: ``(N, C, H, W)``.
        tell: Rows to the arguments of a call that say what they show.
        seed: Of the masks and the noise.
        steps: Of sampling.
    """
    report, made, alpha = {}, {}, has_alpha(pipeline.config.data)
    for kind, draw in KINDS.items():
        generator = np.random.default_rng(seed)
        mask = torch.stack([draw(*real.shape[-2:], generator) for _ in range(len(real))])
        filled, kept = _filled(pipeline, real, mask, tell, seed, steps)  # (DRAWN, N, C, H, W)
        guess = torch.where(mask > 0.5, filled.mean(0), real)
        fills = {"harmonic": harmonic_fill(real, mask), "mean colour": mean_fill(real, mask)}
        fills |= {"one sample": filled[0], f"mean of {DRAWN} samples": guess}
        for end, view in views(pipeline.config.data).items():
            of = {name: float(hole_psnr(view(images), view(real), mask).mean()) for name, images in fills.items()}
            entry = {"floor": of["harmonic"], "n": len(real), "ways": of, "given_pixels_kept": kept}
            how = "dB in the hole; harmonic fill"
            report[f"hole_psnr_{kind}{end}"] = {"value": of[f"mean of {DRAWN} samples"], "extractor": how, **entry}
            report[f"hole_psnr_{kind}_one_sample{end}"] = {"value": of["one sample"], "extractor": how, **entry}
        made |= {f"{kind}, given": _without(real, mask, alpha), f"{kind}, drawn": filled[0], f"{kind}, guess": guess}
        made |= {f"{kind}, harmonic": fills["harmonic"]}
    return report, made


def _without(real: torch.Tensor, mask: torch.Tensor, alpha: bool) -> torch.Tensor:
    """Images without what is in the hole: grey there, and opaque."""
    given = real * (mask < 0.5)
    return torch.cat([given[:, :-1], torch.where(mask < 0.5, real[:, -1:], ALPHA_PEAK)], dim=1) if alpha else given


def _filled(
    pipeline, real: torch.Tensor, mask: torch.Tensor, tell: Callable[[slice], dict], seed: int, steps: int
) -> tuple[torch.Tensor, bool]:
    """Samples ``(DRAWN, N, C, H, W)`` in [-1, 1], and whether every given pixel came back as it was."""
    pipeline.set_progress_bar_config(disable=True)
    samples, kept, alpha = [], True, has_alpha(pipeline.config.data)
    for turn in range(DRAWN):
        parts = []
        for start in range(0, len(real), BATCH):
            rows = slice(start, start + BATCH)
            image, hole = as_given(real[rows], alpha), mask[rows]
            first = seed + turn * len(real) + start
            generator = [torch.Generator().manual_seed(first + i) for i in range(len(image))]
            wishes = {"num_inference_steps": steps, "generator": generator, "output_type": "pt"}
            drawn = pipeline(image, hole, **tell(rows), **wishes).images.cpu()
            kept &= torch.equal(drawn * (1 - hole), image * (1 - hole))
            drawn = drawn.float() * 2 - 1
            parts.append(premultiplied(drawn) if alpha else drawn)
        samples.append(torch.cat(parts))
    return torch.stack(samples), kept
