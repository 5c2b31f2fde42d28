"""A comparison as a table and as a picture."""

from pathlib import Path

from attndiff.apps.bench.tables import growth_table
from attndiff.drawn import SOFTWARE

RATIO_TITLES = {
    "train_throughput": "training images/s",
    "sampling_latency": "guided sampling latency",
    "peak_memory": "peak training memory",
    "time_to_quality": "time to quality",
}
HIGHER_IS_BETTER = ("train_throughput", "time_to_quality")


def markdown(result: dict) -> str:
    """attndiff over every peer, a row each; the README's table is this."""
    ratios, results = result["ratios"], result["arms"]
    lines = [
        "| attndiff over | parameters | forward GFLOP | " + " | ".join(RATIO_TITLES.values()) + " |",
        "|---" * (3 + len(RATIO_TITLES)) + "|",
    ]
    for name, arm in results.items():
        if "skipped" in arm:
            lines.append(f"| {name} | not measured: {arm['skipped']} |" + " |" * (1 + len(RATIO_TITLES)))
        elif any(name in ratios[key] for key in RATIO_TITLES):
            cells = [
                f"{ratios[key][name]:.2f}{_spread(arm, key, name)}" if name in ratios[key] else ""
                for key in RATIO_TITLES
            ]
            size = f"{arm['parameters'] / 1e6:.1f} M" if "parameters" in arm else ""
            flops = f"{arm['forward_gflop']:.2f}" if "forward_gflop" in arm else ""
            lines.append(f"| {name} | {size} | {flops} | " + " | ".join(cells) + " |")
    lines += growth_table({name: arm["growth"] for name, arm in results.items() if "growth" in arm})
    hardware = result["hardware"]
    lines += _shares(results, hardware.get("matmul_flop_per_second", {}))
    if trained := hardware.get("time_to_quality"):
        lines += ["", f"Time to quality after {trained['minutes']:g} minutes of training an arm."]
    lines += ["", f"{hardware['machine']}, {hardware['torch']}, diffusers {hardware['diffusers']}, {hardware['date']}."]
    return "\n".join(lines)


def _shares(results: dict, peaks: dict[str, float]) -> list[str]:
    """A paragraph for each precision: what share of a matrix product's FLOP/s every network trains at."""
    lines = []
    for precision, peak in peaks.items():
        trained = {name: arm.get(f"training_{precision}", {}).get("share_of_matmul") for name, arm in results.items()}
        shares = [f"{name} {share['median']:.0%}" for name, share in trained.items() if share]
        if shares:
            lines += ["", f"Of a {precision} matrix product's {peak / 1e9:.0f} GFLOP/s, training: {'; '.join(shares)}."]
    return lines


def _spread(arm: dict, key: str, name: str) -> str:
    """Quartiles of a ratio, where it has any."""
    quartile = arm.get("spread", {}).get(key)
    return f" [{quartile['low']:.2f}, {quartile['high']:.2f}]" if quartile else ""


def draw(result: dict, path: Path) -> None:
    """Bars of the ratios, the growth of time and memory with the image size, and held-out errors over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {key: values for key, values in result["ratios"].items() if values}
    grown = {name: arm["growth"] for name, arm in result["arms"].items() if "growth" in arm}
    trained = {name: chosen_curves(arm) for name, arm in result["arms"].items() if "quality_runs" in arm}
    panels = len(shown) + 2 * bool(grown) + bool(trained)
    tallest = max([len(values) for values in shown.values()] + [6])
    figure, axes = pyplot.subplots(
        max(panels, 1), 1, figsize=(9, max(4.5, panels * (1 + 0.28 * tallest))), layout="constrained", squeeze=False
    )
    axes = list(axes[:, 0])
    for key in shown:
        _bars(axes.pop(0), key, shown[key], result["arms"])
    for quantity, label in (("seconds", "seconds an image"), ("bytes", "bytes of activations an image")):
        if grown:
            _lines(axes.pop(0), quantity, label, grown)
    if trained:
        _curves(axes.pop(0), trained)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": SOFTWARE})
    pyplot.close(figure)


def _bars(axis, key: str, values: dict[str, float], results: dict) -> None:
    names = list(values)
    spreads = [results.get(name, {}).get("spread", {}).get(key) for name in names]
    errors = [
        [values[n] - s["low"] if s else 0 for n, s in zip(names, spreads)],
        [s["high"] - values[n] if s else 0 for n, s in zip(names, spreads)],
    ]
    axis.barh(names, list(values.values()), xerr=errors, color="0.6", ecolor="black", capsize=2)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.invert_yaxis()
    better = "more" if key in HIGHER_IS_BETTER else "less"
    axis.set(title=f"{RATIO_TITLES[key]}: attndiff over the peer ({better} is better)", xlim=(0, None))
    axis.tick_params(labelsize=8)


def chosen_curves(arm: dict) -> list[list]:
    """Of the runs at full length, at the learning rate chosen; the short runs, which choose it, have one point."""
    chosen = f"lr {arm['quality']['lr']:g}, " if "quality" in arm else ""
    curves = [run["curve"] for key, run in arm["quality_runs"].items() if key.startswith(chosen)]
    return [curve for curve in curves if len(curve) > 1]


def _curves(axis, trained: dict[str, list[list]]) -> None:
    for i, (name, curves) in enumerate(trained.items()):
        for j, curve in enumerate(curves):
            axis.plot(*zip(*curve), marker=".", color=f"C{i}", label=name if j == 0 else None)
    axis.set(xlabel="seconds of training", ylabel="held-out error of the clean image", xscale="log", yscale="log")
    axis.legend(fontsize=7)


def _lines(axis, quantity: str, label: str, grown: dict[str, dict]) -> None:
    for name, sizes in grown.items():
        points = {int(size): entry[quantity] for size, entry in sizes.items() if quantity in entry}
        axis.plot(list(points), list(points.values()), marker="o", label=name)
    sizes = sorted({int(size) for entries in grown.values() for size in entries})
    own = next((entries for name, entries in grown.items() if name.startswith("attndiff")), next(iter(grown.values())))
    first = own[str(sizes[0])].get(quantity, 1.0)
    axis.plot(sizes, [first * (s / sizes[0]) ** 2 for s in sizes], "k:", linewidth=0.8, label="as the pixels grow")
    axis.set(xlabel="pixels per side", ylabel=label, xscale="log", yscale="log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.legend(fontsize=7)
