"""The runs of `words` as a table, a picture, and what is chosen of them."""

from pathlib import Path
from statistics import mean

from equal_time import Trial

from attndiff.apps.bench.report import write_json
from of_words.images import Images

TODAY = "today"
OVER_OTHERS = "gain_over_others_set"
GAINS = ("gain_trained", "gain_set", "gain_family", OVER_OTHERS)
SHARES = ("own_caption_set",)
Runs = list[tuple[Trial, dict]]


def write_report(
    found: dict, out: Path, command: str, images: Images, before: dict[str, float], settings: list[str]
) -> None:
    """Write ``out``, and a page ``.md`` and a picture ``.png`` beside it.

    Args:
        found: What a `Campaign` has measured.
        out: JSON file.
        command: That measured it.
        images: What was trained on, as a page says it.
        before: Minutes of every arm's time that went before its first step.
        settings: Arms that training has a setting for, of which one is chosen.
    """
    runs = [(Trial.of_key(key), result) for key, result in found["runs"].items()]
    lengths = sorted({t.minutes + before[t.arm] for t, _ in runs})
    arms = {}
    for arm in dict.fromkeys(trial.arm for trial, _ in runs):
        for minutes in lengths:
            results = [r for t, r in runs if t.arm == arm and t.minutes + before[arm] == minutes]
            if results:
                arms[f"{arm}, {minutes:g} min"] = {"arm": arm, "minutes": minutes, **of_seeds(results)}
    report = found | {
        "hardware": found["hardware"] | {"command": command},
        "arms": arms,
        "chosen": chosen(arms, settings),
    }
    write_json(out, report)
    if not arms:
        return
    out.with_suffix(".md").write_text(page(report, out.stem, images), encoding="utf-8")
    draw(report, out.with_suffix(".png"))


def of_seeds(results: list[dict]) -> dict:
    """Means over seeds, and how far the gains on ``set`` rows lie apart."""
    sets = [result["gain_set"]["value"] for result in results]
    return {
        **{key: mean(result[key]["value"] for result in results) for key in GAINS},
        **{key: mean(result[key] for result in results) for key in SHARES},
        "own_caption_set_real": results[0]["own_caption_set_real"],
        "spread": max(sets) - min(sets) if len(sets) > 1 else None,
        "seeds": len(sets),
        "steps": results[0]["steps"],
        "by_seed": sets,
    }


def chosen(arms: dict[str, dict], settings: list[str]) -> str:
    """The arm that in half of the longest time of today's gains on ``set`` rows no less than that; else today's.

    Only arms that are a setting and have two seeds are chosen, by the lesser of them against the greater of today's.
    """
    longest = max((arm["minutes"] for arm in arms.values()), default=0)
    today = next((a for a in arms.values() if a["arm"] == TODAY and a["minutes"] == longest), None)
    if today is None or today["seeds"] < 2:
        return TODAY
    ahead = [
        arm
        for arm in arms.values()
        if arm["arm"] in settings
        and arm["arm"] != TODAY
        and arm["seeds"] > 1
        and 2 * arm["minutes"] <= longest
        and min(arm["by_seed"]) >= max(today["by_seed"])
    ]
    return max(ahead, key=lambda arm: arm["gain_set"])["arm"] if ahead else TODAY


def page(report: dict, name: str, images: Images) -> str:
    """The table, losers included."""
    hardware, arms = report["hardware"], report["arms"]
    real = next(iter(arms.values()))["own_caption_set_real"]
    lines = [
        "# How fast words are learned",
        "",
        f"    {hardware['command']}",
        "",
        f"Trained on {images.said}; each arm changes one thing of the recipe, and "
        "has as much time of one thread as the others, all that is done before its first step included. The gain is "
        "the squared error of the denoised image without its caption minus that with it, at 2 to 16 times as much "
        "noise as signal: on trained rows, on held-out rows whose thing is known from other sets (`set`), and on rows "
        f"{images.family} (`family`), 200 of each; and over another caption of the "
        "same style, on `set` rows. Own caption: how often a sample of a `set` row is "
        f"told from 49 other captions of its style (real images {real:.0%}, chance 2 %). "
        f"{', '.join(hardware[key] for key in ('machine', 'torch', 'date'))}.",
        "",
        f"![Gain on `set` rows]({name}.png)",
    ]
    for minutes in sorted({arm["minutes"] for arm in arms.values()}):
        lines += ["", f"## {minutes:g} minutes", "", *table([a for a in arms.values() if a["minutes"] == minutes])]
    if all(arm["seeds"] == 1 for arm in arms.values()):
        return "\n".join([*lines, "", "One seed each so far: nothing is chosen yet.", ""])
    return "\n".join([*lines, "", f"Chosen, of what is a setting: {report['chosen']}.", ""])


def table(arms: list[dict]) -> list[str]:
    """Arms of one length, the best first."""
    lines = [
        "| arm | gain, trained | `set` | `family` | over another caption | own caption | steps |",
        "|---" * 7 + "|",
    ]
    for arm in sorted(arms, key=lambda arm: -arm["gain_set"]):
        seeds = f" ({', '.join(f'{gain:.4f}' for gain in arm['by_seed'])})" if arm["seeds"] > 1 else ""
        gains = f"{arm['gain_trained']:.4f} | {arm['gain_set']:.4f}{seeds} | {arm['gain_family']:.4f}"
        gains += f" | {arm[OVER_OTHERS]:.4f}"
        lines.append(f"| {arm['arm']} | {gains} | {arm['own_caption_set']:.1%} | {arm['steps']} |")
    return lines


def draw(report: dict, path: Path) -> None:
    """Gains on ``set`` rows, a panel for each length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = list(report["arms"].values())
    lengths = sorted({arm["minutes"] for arm in arms})
    figure, panels = pyplot.subplots(1, len(lengths), figsize=(5.5 * len(lengths), 4), squeeze=False, sharex=True)
    for panel, minutes in zip(panels[0], lengths, strict=True):
        shown = sorted((arm for arm in arms if arm["minutes"] == minutes), key=lambda arm: arm["gain_set"])
        colours = ["tab:grey" if arm["arm"] == TODAY else "tab:blue" for arm in shown]
        panel.barh([arm["arm"] for arm in shown], [arm["gain_set"] for arm in shown], color=colours, alpha=0.6)
        points = [(gain, arm["arm"]) for arm in shown for gain in arm["by_seed"]]
        panel.plot(*zip(*points), "k.", label="each seed")
        panel.set_title(f"caption gain on set rows, {minutes:g} minutes", fontsize=10)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
