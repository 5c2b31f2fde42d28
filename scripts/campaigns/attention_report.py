"""The runs of `attention_choice` as a table, a picture, and what is chosen of them."""

from pathlib import Path
from statistics import mean

from equal_time import Trial

from attndiff.apps.bench.report import write_json

AS_PRESET = "as the preset"
Runs = list[tuple[Trial, dict]]


def write_report(found: dict, out: Path, command: str, data: dict[str, str], batches: dict[str, int]) -> None:
    """Write ``out``, and a page ``.md`` and a picture ``.png`` beside it; of the sizes whose preset has been run.

    Args:
        found: What a `Campaign` has measured.
        out: JSON file.
        command: That measured it.
        data: The size of each kind of data.
        batches: Images a step of it.
    """
    runs = [(Trial.of_key(key), result) for key, result in found["runs"].items()]
    arms = {}
    for size in dict.fromkeys(data[trial.data] for trial, _ in runs if trial.arm == AS_PRESET):
        for arm in dict.fromkeys(trial.arm for trial, _ in runs if data[trial.data] == size):
            by_data = {
                name: measured
                for name in data
                if data[name] == size
                and (measured := of_arm([(t, r) for t, r in runs if (t.arm, t.data) == (arm, name)]))
            }
            first = next(iter(by_data))
            seconds = found["step_seconds"][f"{arm} | {first}"]
            arms[f"{size}: {arm}"] = {
                "size": size,
                **by_data[first],
                "images_per_second": batches[first] / seconds,
                "by_data": by_data,
            }
    sizes = dict.fromkeys(arm["size"] for arm in arms.values())
    chosen = {size: winner({k: v for k, v in arms.items() if v["size"] == size}) for size in sizes}
    report = found | {"hardware": found["hardware"] | {"command": command}, "arms": arms, "chosen": chosen}
    write_json(out, report)
    if not arms:
        return
    out.with_suffix(".md").write_text(page(report, out.stem), encoding="utf-8")
    draw(report, out.with_suffix(".png"))


def of_arm(runs: Runs) -> dict:
    """What an arm has reached on some data: in its longest runs, at the best rate of them; empty without runs."""
    if not runs:
        return {}
    longest, shortest = max(t.minutes for t, _ in runs), min(t.minutes for t, _ in runs)
    by_rate: dict[float, list[dict]] = {}
    for trial, result in runs:
        if trial.minutes == longest:
            by_rate.setdefault(trial.lr, []).append(result)
    first = {lr: results[0]["error"] for lr, results in by_rate.items()}  # the first seed chooses the rate
    best = min(first, key=first.get)
    errors = [result["error"] for result in by_rate[best]]
    screened = [result["error"] for trial, result in runs if trial.minutes == shortest < longest]
    return {
        "error": mean(errors),
        "errors": errors,
        "spread": max(errors) - min(errors) if len(errors) > 1 else None,
        "memory": mean(result["memory"] for result in by_rate[best]),
        "minutes": longest,
        "lr": best,
        "rates": first,
        "steps": by_rate[best][0]["steps"],
        "parameters": by_rate[best][0]["parameters"],
        "screened": screened[0] if screened else errors[0],
    }


def winner(arms: dict[str, dict]) -> str:
    """The arm of one size that beats the preset on all data by more than the seeds differ; else the preset.

    Only arms with two seeds can win.
    """
    preset = next(arm for name, arm in arms.items() if name.endswith(AS_PRESET))
    ahead = [name for name, arm in arms.items() if arm is not preset and beats(arm["by_data"], preset["by_data"])]
    best = min(ahead, key=lambda name: arms[name]["error"], default=None)
    return best.partition(": ")[2] if best else AS_PRESET


def beats(ours: dict[str, dict], theirs: dict[str, dict]) -> bool:
    """Whether all errors of one are below all of the other, on all data, after equal time."""
    settled = [
        ours.get(name, {}).get("spread") is not None and them["spread"] is not None for name, them in theirs.items()
    ]
    return all(settled) and all(
        ours[name]["minutes"] == them["minutes"] and max(ours[name]["errors"]) < min(them["errors"])
        for name, them in theirs.items()
    )


def page(report: dict, name: str) -> str:
    """The table, losers included."""
    hardware = report["hardware"]
    lines = [
        "# Attention: kinds and places",
        "",
        f"    {hardware['command']}",
        "",
        "Each arm changes the preset `xs` in one thing, named by the grid of the level where it does. Held-out error: "
        "mean squared error of the denoised image in [-1, 1] over eight noise levels, after equal time on one thread. "
        f"{lengths_of(report['runs'])} "
        f"{', '.join(hardware[key] for key in ('machine', 'torch', 'date'))}.",
        "",
        f"![Held-out error of every arm]({name}.png)",
    ]
    for size in dict.fromkeys(arm["size"] for arm in report["arms"].values()):
        arms = {k.partition(": ")[2]: v for k, v in report["arms"].items() if v["size"] == size}
        lines += ["", f"## {size}", "", *table(arms), "", f"Chosen: {report['chosen'][size]}."]
    return "\n".join([*lines, ""])


def lengths_of(runs: dict) -> str:
    """What the runs were, in a sentence or two."""
    lengths = sorted({Trial.of_key(key).minutes for key in runs})
    short = f"Short runs: {lengths[0]:g} minutes at one learning rate on one seed."
    if len(lengths) == 1:
        return f"{short} No arm has had a long run yet, so that nothing is settled by more than one seed."
    return f"{short} Long runs: {lengths[-1]:g} minutes at the best of three rates on the first data, on two seeds."


def table(arms: dict[str, dict]) -> list[str]:
    """Arms of one size, the best first."""
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm["by_data"]))
    titles = [f"{name}, short run | {name}, long runs" for name in names]
    lines = [f"| arm | {' | '.join(titles)} | images/s | memory |", "|---" * (3 + 2 * len(names)) + "|"]
    for name, arm in sorted(arms.items(), key=lambda item: item[1]["screened"]):
        cells = [cell for of in names for cell in cells_of(arm["by_data"].get(of), arm["by_data"])]
        memory = f"{arm['memory'] / 2**20:.0f} MB"
        lines.append(f"| {name} | {' | '.join(cells)} | {arm['images_per_second']:.1f} | {memory} |")
    return lines


def cells_of(measured: dict | None, by_data: dict) -> tuple[str, str]:
    """Errors of the short and of the long runs."""
    if measured is None:
        return "", ""
    if measured["spread"] is None and len(measured["rates"]) == 1:
        return f"{measured['screened']:.4f}", ""
    errors = ", ".join(f"{error:.4f}" for error in measured["errors"])
    first = next(iter(by_data.values())) is measured
    return f"{measured['screened']:.4f}" if first else "", f"{errors} (rate {measured['lr']:g})"


def draw(report: dict, path: Path) -> None:
    """Errors relative to the preset's, a panel for each size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(arm["size"] for arm in report["arms"].values()))
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(6.5 * len(sizes), 4.5), squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        arms = {k.partition(": ")[2]: v for k, v in report["arms"].items() if v["size"] == size}
        base = arms[AS_PRESET]
        names = sorted(arms, key=lambda name: -arms[name]["screened"])
        ratios = [100 * (arms[name]["screened"] / base["screened"] - 1) for name in names]
        colours = ["tab:grey" if name == AS_PRESET else "tab:blue" for name in names]
        panel.barh(names, ratios, color=colours, alpha=0.5, label="short run, one seed")
        for of in base["by_data"]:
            if base["by_data"][of]["spread"] is None:
                continue
            long = mean(base["by_data"][of]["errors"])
            points = [
                (100 * (error / long - 1), name)
                for name in names
                if (measured := arms[name]["by_data"].get(of)) and measured["minutes"] == base["by_data"][of]["minutes"]
                for error in measured["errors"]
            ]
            panel.plot(*zip(*points), "o", markersize=5, label=f"long runs on {of}")
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(size, fontsize=10)
        panel.set_xlabel("held-out error beside the preset's, percent; less is better", fontsize=9)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
