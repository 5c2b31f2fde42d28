"""What was measured of a preset, as tables to read."""


def speed_markdown(result: dict) -> str:
    """A row for every form and kind of work, then memory, the training loop and the growth with size."""
    lines = ["| network | work | seconds | images/s | of a matrix product's FLOP/s |", "|---" * 5 + "|"]
    for name, arm in result["arms"].items():
        for key, entry in arm.items():
            if isinstance(entry, dict) and ("latency" in entry or "failed" in entry):
                lines.append(f"| {name} | {key.replace('_', ', ')} | {_cells(entry)} |")
    for name, arm in result["arms"].items():
        lines += _sentences(name, arm)
    lines += growth_table({name: arm["growth"] for name, arm in result["arms"].items() if "growth" in arm})
    hardware = result["hardware"]
    lines += ["", f"{hardware['machine']}, {hardware['torch']}, diffusers {hardware['diffusers']}, {hardware['date']}."]
    return "\n".join(lines)


def _cells(entry: dict) -> str:
    if "failed" in entry:
        return f"failed: {entry['failed']} | | "
    latency = entry["latency"]
    seconds = f"{latency['median']:.3g} [{latency['low']:.3g}, {latency['high']:.3g}]"
    if "images_per_second" not in entry:
        return f"{seconds} | | "
    return f"{seconds} | {entry['images_per_second']:.1f} | {entry['share_of_matmul']['median']:.0%}"


def _sentences(name: str, arm: dict) -> list[str]:
    """What a network is, and what it takes."""
    if "peak_memory_bytes" not in arm:
        return []
    size = f"{arm['parameters'] / 1e6:.1f} M parameters, {arm['forward_gflop']:.2f} GFLOP a forward pass of an image"
    lines = ["", f"{name}: {size}; a training step takes {arm['peak_memory_bytes'] / 2**20:.0f} MiB."]
    if loop := arm.get("training_loop"):
        rate = f"{loop['images_per_second']:.1f} images/s, {loop['share_of_matmul']:.0%} of a matrix product's FLOP/s"
        lines += ["", f"`attndiff train`, data and averages included: {rate}."]
    return lines


def growth_table(grown: dict[str, dict]) -> list[str]:
    """What a pixel costs at every size: microseconds of both passes, kilobytes of activations."""
    if not grown:
        return []
    sizes = sorted({int(size) for entries in grown.values() for size in entries})
    lines = [
        "",
        "| a pixel costs | " + " | ".join(f"at {size} px" for size in sizes) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for name, entries in grown.items():
        cells = [_pixel_cost(entries.get(str(size), {}), size) for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _pixel_cost(entry: dict, size: int) -> str:
    """Time and memory of a pixel, empty where they were not measured."""
    if "seconds" not in entry:
        return entry.get("failed", "")
    return f"{1e6 * entry['seconds'] / size**2:.0f} us, {entry['bytes'] / size**2 / 1e3:.1f} kB"
