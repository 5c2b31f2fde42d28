"""How time and memory of an image grow with its size."""

import statistics

from attndiff.training.bench.arms import SIZE, Arm
from attndiff.training.bench.steps import arm_batch, autocast
from attndiff.training.bench.timing import Step, seconds_of
from attndiff.training.model import DenoisingModel
from attndiff.training.plan import saved_bytes

TOO_LONG = 60.0  # seconds of one pass after which larger images are left out
REPEATS = 3


def measure_growth(arm: Arm, sizes: tuple[int, ...], count: int, device: str, precision: str) -> dict[str, dict]:
    """Seconds and bytes of an image in a forward and backward pass, by size.

    The batch has ``count`` images at 32 px and fewer at larger sizes, one at least, so that it has about the same
    number of pixels. Bytes are the activations kept for the backward pass.

    Returns:
        ``{"32": {"seconds": ..., "bytes": ..., "images": ...}, ...}``; a size that failed has ``{"failed": why}``, and
        sizes after it are left out.
    """
    model, results = arm.prepared(device, max(sizes)), {}
    for size in sizes:
        images = max(1, count * SIZE**2 // size**2)
        batch = arm_batch(arm, images, size, device)
        try:
            with autocast(device, precision):
                kept = saved_bytes(model, batch) / images
            seconds = _passes(model, batch, device, precision)
        except RuntimeError as error:  # memory
            results[str(size)] = {"failed": str(error).splitlines()[0]}
            break
        results[str(size)] = {"seconds": seconds / images, "bytes": kept, "images": images}
        if seconds > TOO_LONG:
            break
    return results


def _passes(model: DenoisingModel, batch: dict, device: str, precision: str) -> float:
    """Median seconds of forward and backward pass."""
    step = _forward_backward(model, batch, device, precision)
    first = seconds_of(step, device)
    return first if first > TOO_LONG else statistics.median(seconds_of(step, device) for _ in range(REPEATS))


def _forward_backward(model: DenoisingModel, batch: dict, device: str, precision: str) -> Step:
    def step() -> None:
        with autocast(device, precision):
            loss = model(batch).mean()
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step
