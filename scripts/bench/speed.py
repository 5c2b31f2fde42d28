"""Speed and memory beside the peers, everything as ratios within one run."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from attndiff.apps.bench import speed as alone
from attndiff.apps.bench.speed import Say, add_costs, add_growth, add_loop, add_memory, figures, make_step
from attndiff.apps.bench.timing import interleave, paired_ratio
from bench.arms import FORMS, MATCHES, Arm
from bench.comparison import Comparison
from bench.peers import PEERS


@dataclass(frozen=True)
class SpeedSettings(alone.SpeedSettings):
    """What is measured, and how long.

    Args:
        forms: Of the networks at equal parameters; at equal FLOPs none is compiled.
        peers: Names in `PEERS`.
        matches: At equal what.
    """

    forms: tuple[str, ...] = FORMS
    peers: tuple[str, ...] = tuple(PEERS)
    matches: tuple[str, ...] = MATCHES


def beside_peers(settings: alone.SpeedSettings) -> SpeedSettings:
    """What is measured of attndiff alone, for all."""
    own = {field.name: getattr(settings, field.name) for field in fields(alone.SpeedSettings)}
    return SpeedSettings(**own | {"forms": FORMS})


def full_settings(device: str) -> SpeedSettings:
    """The whole benchmark: more than an hour on two CPU cores."""
    full = beside_peers(alone.full_settings(device))
    return replace(full, loop_steps=0) if device == "cpu" else full


def quick_settings(device: str) -> SpeedSettings:
    """Under three minutes on two CPU cores: equal parameters only, nothing compiled, few rounds of small batches."""
    return replace(beside_peers(alone.quick_settings(device)), forms=FORMS[:2], matches=MATCHES[:1])


def measure_speed(settings: SpeedSettings, report: Comparison, say: Say = print) -> None:
    """Add what is missing to a report, saving after every measurement.

    Peers whose package is absent are named in the report, with the command that installs it.
    """
    _name_absent(settings, report, say)
    add_costs(settings, list(arms(settings)), report)
    for measure, precision, arm in duels(settings):
        key = f"{measure}_{precision}"
        if key not in report.arm(arm.name):
            _add_duel(settings, measure, precision, arm, report)
            _save(settings, report)
            say(f"{key}: {told(report.arm(arm.name)[key])} of attndiff over {arm.name}")
    add_loop(settings, report, say)
    plain = memory_arms(settings)
    add_memory(settings, plain, report, say)
    add_growth(settings, [arm for arm in plain if arm.match == "parameters"], report, say)
    _save(settings, report)


def _save(settings: SpeedSettings, report: Comparison) -> None:
    report.ratios.update(speed_ratios(settings, report.arms))
    report.save()


def _name_absent(settings: SpeedSettings, report: Comparison, say: Say) -> None:
    """Note which peers cannot be imported, and forget the note of those that can be by now."""
    for name in settings.peers:
        reason = why_absent(settings.preset, name)
        if reason is None:
            report.arm(name).pop("skipped", None)
        else:
            report.arms[name] = {"skipped": f"{reason}; to add it: {PEERS[name].install}"}
            say(f"skipped {name}: {report.arms[name]['skipped']}")


def why_absent(preset: str, peer: str) -> str | None:
    """Why a peer cannot be imported, or None where it can be."""
    try:
        Arm(preset, peer=peer).cost()
    except ImportError as error:
        return str(error)
    return None


def arms(settings: SpeedSettings) -> Iterator[Arm]:
    """attndiff's arms, and those of the peers that are there."""
    yield from ours(settings)
    for match in settings.matches:
        for peer in present(settings):
            yield from theirs(settings, peer, match)


def present(settings: SpeedSettings) -> list[str]:
    """The peers that can be imported."""
    return [peer for peer in settings.peers if why_absent(settings.preset, peer) is None]


def ours(settings: SpeedSettings) -> list[Arm]:
    """attndiff in its forms; its layout is channels_last in each."""
    return [Arm(settings.preset, form=form) for form in settings.forms if form != "channels_last"]


def theirs(settings: SpeedSettings, peer: str, match: str) -> list[Arm]:
    """A peer in its forms."""
    forms = settings.forms if match == "parameters" else [form for form in settings.forms if form != "compiled"]
    return [Arm(settings.preset, form, peer, match) for form in forms]


def memory_arms(settings: SpeedSettings) -> list[Arm]:
    """The networks in their default form."""
    return [arm for arm in arms(settings) if arm == arm.plain]


def duels(settings: SpeedSettings) -> Iterator[tuple[str, str, Arm]]:
    """What is measured with whom beside attndiff, what matters most first: measure, precision, peer."""
    for match in settings.matches:
        for measure, precision in settings.measures:
            for peer in present(settings):
                yield measure, precision, Arm(settings.preset, peer=peer, match=match)


def _add_duel(settings: SpeedSettings, measure: str, precision: str, peer: Arm, report: Comparison) -> None:
    """Let attndiff and a peer, each in all its forms, take turns."""
    torch.compiler.reset()  # networks of earlier pairings count against the limit of recompilations
    rivals = theirs(settings, peer.peer, peer.match)
    work = {arm.name: make_step(settings, measure, precision, arm) for arm in [*ours(settings), *rivals]}
    times, failures = interleave(work, settings.rounds, settings.warmup, settings.device)
    key = f"{measure}_{precision}"
    for name, reason in failures.items():
        report.arm(name)[key] = {"failed": reason}
    own = {arm.name: times[arm.name] for arm in ours(settings) if arm.name in times}
    for arm in [*ours(settings), *rivals]:
        if arm.name not in times:
            continue
        entry = figures(times[arm.name], settings, measure, precision, arm, report)
        if arm.peer is None:
            report.arm(arm.name)[key] = entry  # of the last pairing; ratios are of each pairing's own rounds
        else:
            ratios = {name: _ratio(measure, seconds, times[arm.name]) for name, seconds in own.items()}
            report.arm(arm.name)[key] = entry | {"ratio": ratios}


def _ratio(measure: str, own: list[float], other: list[float]) -> dict[str, float]:
    """attndiff over a peer: of throughputs for training, of latencies otherwise."""
    return paired_ratio(other, own) if measure == "training" else paired_ratio(own, other)


def like_with_like(entry: dict, name: str) -> dict[str, float] | None:
    """The ratio to attndiff's compiled form for a compiled peer where both ran, else to its default form."""
    ratios = entry.get("ratio", {})
    compiled = [quartile for own, quartile in ratios.items() if own.endswith(", compiled")]
    plain = [quartile for own, quartile in ratios.items() if not own.endswith(", compiled")]
    chosen = (compiled or plain) if name.endswith(", compiled") else plain
    return chosen[0] if chosen else None


def speed_ratios(settings: SpeedSettings, results: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Median ratios of attndiff over every arm of a peer, in the precision that counts; each arm gets its spread."""
    keys = {"train_throughput": f"training_{settings.precision}", "sampling_latency": f"sampling_{settings.precision}"}
    own = f"attndiff {settings.preset}"
    ratios: dict[str, dict[str, float]] = {"train_throughput": {}, "sampling_latency": {}, "peak_memory": {}}
    for name, result in results.items():
        if name.startswith("attndiff"):
            continue
        for ratio, key in keys.items():
            chosen = like_with_like(result.get(key, {}), name)
            if chosen:
                ratios[ratio][name] = chosen["median"]
                result.setdefault("spread", {})[ratio] = chosen
        if "peak_memory_bytes" in result and "peak_memory_bytes" in results.get(own, {}):
            ratios["peak_memory"][name] = results[own]["peak_memory_bytes"] / result["peak_memory_bytes"]
    return ratios


def told(entry: dict) -> str:
    """An entry's ratio to attndiff's first form, in words."""
    if "failed" in entry:
        return f"failed ({entry['failed']})"
    quartile = next(iter(entry["ratio"].values()))
    return f"{quartile['median']:.2f} [{quartile['low']:.2f}, {quartile['high']:.2f}]"
