"""Times of several pieces of work that take turns, and what may be said of them."""

import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]


def seconds_of(step: Step, device: str = "cpu") -> float:
    """Seconds of one call; on CUDA between two events of its stream."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleave(
    steps: dict[str, Step], rounds: int, warmup: int = 1, device: str = "cpu"
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every call, all taking turns so that a noisy machine hurts all alike.

    Args:
        steps: The work by name; each round begins with another one.
        rounds: Counted rounds.
        warmup: Rounds before them, in which compilation and allocation happen.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Seconds of each counted round by name, and of the steps that failed the first line of why.
    """
    steps, failures = dict(steps), {}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + rounds):
        names = list(steps)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            try:
                seconds = seconds_of(steps[name], device)
            except Exception as error:  # whatever a peer, or its compilation, ends with
                failures[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                del steps[name], times[name]
                continue
            if turn >= warmup:
                times[name].append(seconds)
    return times, failures


def quartiles(values: list[float]) -> dict[str, float]:
    """``low``, ``median`` and ``high`` of some values."""
    if len(values) == 1:
        return dict.fromkeys(("low", "median", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": median, "high": high}


def paired_ratio(numerators: list[float], denominators: list[float]) -> dict[str, float]:
    """Quartiles of the ratios within rounds: what slows a whole round down cancels."""
    return quartiles([a / b for a, b in zip(numerators, denominators, strict=True)])
