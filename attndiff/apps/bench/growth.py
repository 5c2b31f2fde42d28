"""How time and memory of an image grow with its size."""

from attndiff.apps.bench.network import SIZE, Network
from attndiff.apps.bench.steps import autocast, network_batch
from attndiff.apps.bench.timing import Step, interleave, quartiles, seconds_of
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.run.plan import saved_bytes

TOO_LONG = 60.0  # seconds of one pass after which larger images are left out


def measure_growth(
    network: Network, sizes: tuple[int, ...], count: int, device: str, precision: str, rounds: int
) -> dict[str, dict]:
    """Seconds and bytes of an image in a forward and backward pass, by size, the sizes taking turns.

    The batch has ``count`` images at 32 px and fewer at larger sizes, one at least, so that it has about the same
    number of pixels. Bytes are the activations kept for the backward pass.

    Returns:
        ``{"32": {"seconds": ..., "spread": quartiles of seconds, "bytes": ..., "images": ...}, ...}``; a size that
        failed has ``{"failed": why}``, and sizes after it are left out.
    """
    model, results, steps = network.prepared(device, max(sizes)), {}, {}
    for size in sizes:
        images = max(1, count * SIZE**2 // size**2)
        batch = network_batch(network, images, size, device)
        step = _forward_backward(model, batch, device, precision)
        try:
            with autocast(device, precision):
                kept = saved_bytes(model, batch) / images
            first = seconds_of(step, device)
        except RuntimeError as error:  # memory
            results[str(size)] = {"failed": str(error).splitlines()[0]}
            break
        results[str(size)] = {"seconds": first / images, "bytes": kept, "images": images}
        if first > TOO_LONG:
            break
        steps[str(size)] = step
    times, _ = interleave(steps, rounds, 0, device)
    for size, seconds in times.items():
        spread = quartiles([s / results[size]["images"] for s in seconds])
        results[size] |= {"seconds": spread["median"], "spread": spread}
    return results


def _forward_backward(model: DenoisingModel, batch: dict, device: str, precision: str) -> Step:
    def step() -> None:
        with autocast(device, precision):
            loss = model(batch).mean()
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step
