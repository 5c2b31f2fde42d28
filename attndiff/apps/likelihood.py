"""How likely a model holds real images to be, in bits per value, beside what a lossless file of them takes."""

import io
import math

from accelerate import Accelerator
from PIL import Image

from attndiff.data.subset import Subset
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.reference import Reference
from attndiff.tasks.prompts import prompt_of
from attndiff.training.batches import DrawnDataset
from attndiff.training.conditioning import Conditioning
from attndiff.training.evaluation.validation import AT_MOST, validate
from attndiff.training.heads.raster import RasterModel


def likelihood(pipeline, reference: Reference, seed: int) -> dict[str, dict]:
    """Bits per value of held-out images with their own conditions, as ``bits_per_value``.

    The floor is what a lossless WebP file of the same images takes, all of them on one sheet; ``training`` is of as
    many training images, where it is known which those are.

    Args:
        pipeline: An `AttnDiffRasterPipeline`.
        reference: Real images.
        seed: Of which are taken.
    """
    n = min(AT_MOST, len(reference.test))
    test, train, _ = reference.choose(n, seed)
    entry = {
        "value": _bits(pipeline, test),
        "n": n,
        "extractor": "the model's own likelihood, beside a lossless WebP file of the same images",
        "floor": webp_bits(test),
        "floor_of": "lossless WebP",
    }
    if not reference.halves:
        entry["training"] = _bits(pipeline, train)
    return {"bits_per_value": entry}


def _bits(pipeline, images: Subset) -> float:
    """Bits per value of images, each with its own condition."""
    conditioning = Conditioning(prompt_of(pipeline), pipeline.tokenizer, pipeline.text_encoder)
    model = RasterModel(pipeline.transformer, pipeline.condition_encoder)
    accelerator = Accelerator(cpu=pipeline.device.type == "cpu")
    return validate(model, DrawnDataset(images, conditioning, seed=0), accelerator, doing="Likelihood").loss


def webp_bits(images: Subset) -> float:
    """Bits per value of a lossless WebP file of images of one size, side by side in about as many rows as columns."""
    pixels, data = images.tensor(), images.describe()
    n, channels, height, width = pixels.shape
    across = max(1, round(n**0.5))
    sheet = Image.new("RGBA" if channels in (2, 4) else "RGB", (across * width, math.ceil(n / across) * height))
    for i, one in enumerate(pixels):
        sheet.paste(as_image(one, data), (i % across * width, i // across * height))
    file = io.BytesIO()
    sheet.save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)
    return 8 * file.getbuffer().nbytes / pixels.numel()
