"""What this machine offers: versions, devices, precisions."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

from attndiff.device import cpu_is_faster_in_bfloat16

PACKAGES = (
    "attndiff",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "xformers",
)


def describe_environment() -> dict:
    """Versions, devices with their memory, and whether they compute in bfloat16; imports torch and nothing larger."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "devices": _devices(),
        "free_disk_gib": round(shutil.disk_usage(".").free / 2**30, 1),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> dict:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "threads": torch.get_num_threads(), "bf16": cpu_is_faster_in_bfloat16()}


def _devices() -> list[dict]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = round(properties.total_memory / 2**30, 1)
        bf16 = properties.major >= 8 or torch.version.hip is not None
        devices.append({"name": properties.name, "kind": "cuda", "memory_gib": memory, "bf16": bf16})
    if torch.backends.mps.is_available():
        devices.append({"name": "Apple GPU", "kind": "mps", "memory_gib": None, "bf16": True})
    return devices


def environment_text(found: dict) -> str:
    """`describe_environment`'s answer as lines to read."""
    cpu = found["cpu"]
    lines = [f"python           {found['python']} on {found['platform']}"]
    lines += [f"{name:<16} {found_version or 'not installed'}" for name, found_version in found["packages"].items()]
    lines.append(f"cpu              {cpu['cores']} cores, {_precision(cpu['bf16'])}")
    for device in found["devices"]:
        memory = f", {device['memory_gib']} GiB" if device["memory_gib"] else ""
        lines.append(f"{device['kind']:<16} {device['name']}{memory}, {_precision(device['bf16'])}")
    if not found["devices"]:
        lines.append("gpu              none; training and sampling run on the cpu")
    lines.append(f"free disk        {found['free_disk_gib']} GiB")
    return "\n".join(lines)


def _precision(bf16: bool) -> str:
    return "bfloat16 is faster, and used" if bf16 else "float32 is used"
