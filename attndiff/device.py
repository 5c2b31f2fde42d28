"""Where to compute when nobody says, and in which precision."""

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def best_device() -> str:
    """``"cuda"``, ``"mps"`` or ``"cpu"``, the first that is there."""
    import torch  # takes a second to import

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def cpu_computes_in_bfloat16() -> bool:
    """Whether the processor has instructions for it; others emulate it."""
    import torch  # takes a second to import

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def cpu_is_faster_in_bfloat16() -> bool:
    """Whether the processor multiplies matrices sooner in bfloat16 than in float32.

    With AMX it does, and by AVX-512 on AMD's. A thread of a Xeon whose virtual machine hides AMX multiplied at 90
    GFLOP/s in bfloat16 and 170 in float32; emulated, by torch's kernel without oneDNN, at 2 (torch 2.13).
    """
    import torch

    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not is_intel())


def describe_slow_bfloat16(device: str) -> str | None:
    """What to say to someone who asks for bfloat16 on a device that is slower in it, as a sentence; else None."""
    if device != "cpu" or cpu_is_faster_in_bfloat16():
        return None
    if cpu_computes_in_bfloat16():
        return "this processor is faster in float32 than in bfloat16: leave the precision out"
    return "this processor emulates bfloat16, which takes many times as long as float32: leave the precision out"


def is_intel() -> bool:
    """Whether the processor is Intel's, as far as the system says so."""
    told = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.is_file() else platform.processor()
    return "GenuineIntel" in told
