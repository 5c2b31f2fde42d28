"""Peak memory of a training step.

On CUDA what torch had allocated at most. On the CPU the growth of the resident set of a process of its own for each
network, from before the model is made: weights, gradients, moments, activations and workspace.
"""

import gc
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from attndiff.apps.bench.network import SIZE, Network
from attndiff.apps.bench.steps import network_batch, training_step

STEPS = 2  # the second has the moments of the first


def peak_memory(network: Network, count: int, device: str, precision: str) -> int:
    """Bytes at the peak of a training step of ``count`` images."""
    if device == "cuda":
        return _cuda_peak(network, count, precision)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_resident_growth, network, count, precision, torch.get_num_threads()).result()


def _train(network: Network, count: int, device: str, precision: str) -> None:
    model = network.prepared(device)
    step = training_step(model, network_batch(network, count, SIZE, device), device, precision)
    for _ in range(STEPS):
        step()


def _cuda_peak(network: Network, count: int, precision: str) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _train(network, count, "cuda", precision)
    return torch.cuda.max_memory_allocated() - before


def _resident_growth(network: Network, count: int, precision: str, threads: int) -> int:
    torch.set_num_threads(threads)
    network.cost()  # the libraries' own first allocations, and the search for the width
    before = peak_resident()
    _train(network, count, "cpu", precision)
    return peak_resident() - before


def peak_resident() -> int:
    """Largest resident set of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux hands getrusage's figure on to the programs that a process starts; this one begins anew.
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_peak() -> None:
    """Let the peak of this process's memory begin at what it has now; of Linux (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
