"""Speed and memory beside the peers, everything as ratios within one run."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from attndiff.training.bench.arms import FORMS, MATCHES, SIZE, Arm
from attndiff.training.bench.growth import measure_growth
from attndiff.training.bench.loop import measure_loop
from attndiff.training.bench.memory import peak_memory
from attndiff.training.bench.peers import PEERS
from attndiff.training.bench.report import Report
from attndiff.training.bench.steps import (
    Step,
    arm_batch,
    cpu_has_bfloat16,
    forward_pass,
    matmul_rate,
    sampling,
    training_step,
)
from attndiff.training.bench.timing import interleave, paired_ratio, quartiles

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long.

    Args:
        preset: Of attndiff.
        device: ``"cpu"`` or ``"cuda"``.
        peers: Names in `PEERS`.
        precisions: Of training; the first is the one that the ratios tell.
        count: Images of a training step and of a network call; half as many are sampled, since guidance doubles them.
        rounds: Counted turns of every arm.
        warmup: Turns before them.
        sampling_steps: Euler steps.
        growth_sizes: Pixels per side.
        forms: Of the networks at equal parameters; at equal FLOPs none is compiled.
        matches: At equal what.
        loop_steps: Steps of the real training loop, 0 to leave it out.
    """

    preset: str = "xs"
    device: str = "cpu"
    peers: tuple[str, ...] = tuple(PEERS)
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    count: int = 16
    rounds: int = 7
    warmup: int = 1
    sampling_steps: int = 10
    growth_sizes: tuple[int, ...] = (32, 64, 128, 256)
    forms: tuple[str, ...] = FORMS
    matches: tuple[str, ...] = MATCHES
    loop_steps: int = 0

    @property
    def precision(self) -> str:
        """The one that sampling, memory and growth use, and the ratios tell."""
        return self.precisions[0]


def full_settings(device: str) -> Settings:
    """The whole benchmark: more than an hour on two CPU cores."""
    if device == "cpu":
        return Settings(precisions=("float32", "bfloat16") if cpu_has_bfloat16() else ("float32",))
    return Settings(
        preset="s",
        device=device,
        precisions=("bfloat16", "float32"),
        count=256,
        rounds=20,
        warmup=3,
        sampling_steps=18,
        loop_steps=300,
    )


def quick_settings(device: str) -> Settings:
    """Under three minutes on two CPU cores: equal parameters only, nothing compiled, few rounds of small batches."""
    full = full_settings(device)
    return replace(
        full,
        precisions=full.precisions[:1],
        count=8 if device == "cpu" else 128,
        rounds=3 if device == "cpu" else 10,
        warmup=1,
        sampling_steps=4,
        growth_sizes=(32, 64),
        forms=FORMS[:2],
        matches=MATCHES[:1],
        loop_steps=0,
    )


def measure_speed(settings: Settings, report: Report, say: Say = print) -> None:
    """Add what is missing to a report, saving after every measurement.

    Peers whose package is absent are named in the report, with the command that installs it.
    """
    _name_absent(settings, report, say)
    for arm in arms(settings):
        report.arm(arm.name).update(arm.cost())
    peaks = report.hardware.setdefault("matmul_flop_per_second", {})
    for precision in settings.precisions:
        if precision not in peaks:
            peaks[precision] = matmul_rate(settings.device, precision)
    for measure, precision, arm in duels(settings):
        key = f"{measure}_{precision}"
        if key not in report.arm(arm.name):
            _add_duel(settings, measure, precision, arm, report)
            _save(settings, report)
            say(f"{key}: {told(report.arm(arm.name)[key])} of attndiff over {arm.name}")
    if settings.loop_steps and "training_loop" not in report.arm(Arm(settings.preset).name):
        loop = measure_loop(settings.preset, settings.count, settings.loop_steps, settings.precision, settings.device)
        report.arm(Arm(settings.preset).name)["training_loop"] = loop
        _save(settings, report)
        say(f"training loop: {loop['share_of_matmul']:.0%} of the matrix product's FLOP/s")
    for arm in memory_arms(settings):
        result = report.arm(arm.name)
        if "peak_memory_bytes" not in result:
            result["peak_memory_bytes"] = peak_memory(arm, settings.count, settings.device, settings.precision)
            _save(settings, report)
            say(f"peak memory: {result['peak_memory_bytes'] / 2**20:.0f} MiB of {arm.name}")
        if "growth" not in result and arm.match == "parameters":
            result["growth"] = measure_growth(
                arm, settings.growth_sizes, settings.count, settings.device, settings.precision, settings.rounds
            )
            _save(settings, report)
            say(f"growth to {max(map(int, result['growth']))} px: {arm.name}")
    _save(settings, report)


def _save(settings: Settings, report: Report) -> None:
    report.ratios.update(speed_ratios(settings, report.arms))
    report.save()


def _name_absent(settings: Settings, report: Report, say: Say) -> None:
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
        Arm(preset, peer).cost()
    except ImportError as error:
        return str(error)
    return None


def arms(settings: Settings) -> Iterator[Arm]:
    """attndiff's arms, and those of the peers that are there."""
    yield from ours(settings)
    for match in settings.matches:
        for peer in present(settings):
            yield from theirs(settings, peer, match)


def present(settings: Settings) -> list[str]:
    """The peers that can be imported."""
    return [peer for peer in settings.peers if why_absent(settings.preset, peer) is None]


def ours(settings: Settings) -> list[Arm]:
    """attndiff in its forms; its layout is channels_last in each."""
    return [Arm(settings.preset, form=form) for form in settings.forms if form != "channels_last"]


def theirs(settings: Settings, peer: str, match: str) -> list[Arm]:
    """A peer in its forms."""
    forms = settings.forms if match == "parameters" else [form for form in settings.forms if form != "compiled"]
    return [Arm(settings.preset, peer, match, form) for form in forms]


def memory_arms(settings: Settings) -> list[Arm]:
    """The networks in their default form."""
    return [arm for arm in arms(settings) if arm == arm.plain]


def duels(settings: Settings) -> Iterator[tuple[str, str, Arm]]:
    """What is measured with whom beside attndiff, what matters most first: measure, precision, peer."""
    measures = [("training", settings.precision), ("sampling", settings.precision), ("forward", settings.precision)]
    measures += [("training", precision) for precision in settings.precisions[1:]]
    for match in settings.matches:
        for measure, precision in measures:
            for peer in present(settings):
                yield measure, precision, Arm(settings.preset, peer, match)


def _add_duel(settings: Settings, measure: str, precision: str, peer: Arm, report: Report) -> None:
    """Let attndiff and a peer, each in all its forms, take turns."""
    torch.compiler.reset()  # networks of earlier pairings count against the limit of recompilations
    rivals = theirs(settings, peer.peer, peer.match)
    work = {arm.name: _step(settings, measure, precision, arm) for arm in [*ours(settings), *rivals]}
    times, failures = interleave(work, settings.rounds, settings.warmup, settings.device)
    key = f"{measure}_{precision}"
    for name, reason in failures.items():
        report.arm(name)[key] = {"failed": reason}
    peak = report.hardware["matmul_flop_per_second"][precision]
    own = {arm.name: times[arm.name] for arm in ours(settings) if arm.name in times}
    for arm in [*ours(settings), *rivals]:
        if arm.name not in times:
            continue
        entry = figures(times[arm.name], settings, measure, report.arm(arm.name)["forward_gflop"] * 1e9, peak)
        if arm.peer is None:
            report.arm(arm.name)[key] = entry  # of the last pairing; ratios are of each pairing's own rounds
        else:
            ratios = {name: _ratio(measure, seconds, times[arm.name]) for name, seconds in own.items()}
            report.arm(arm.name)[key] = entry | {"ratio": ratios}


def _step(settings: Settings, measure: str, precision: str, arm: Arm) -> Step:
    model, device = arm.prepared(settings.device), settings.device
    if measure == "sampling":
        batch = arm_batch(arm, max(1, settings.count // 2), SIZE, device)
        return sampling(model, batch, device, precision, settings.sampling_steps)
    batch = arm_batch(arm, settings.count, SIZE, device)
    return {"training": training_step, "forward": forward_pass}[measure](model, batch, device, precision)


def figures(seconds: list[float], settings: Settings, measure: str, flops: float, peak: float) -> dict:
    """What an arm's times say.

    Args:
        seconds: Of each round.
        settings: Batch sizes.
        measure: ``"training"``, ``"forward"`` or ``"sampling"``.
        flops: Of one image's forward pass.
        peak: FLOP/s of a matrix product, at its best in this run.
    """
    entry = {"seconds": [round(s, 6) for s in seconds], "latency": quartiles(seconds)}
    if measure == "sampling":
        return entry
    work = settings.count * flops * (3 if measure == "training" else 1)
    entry["images_per_second"] = settings.count / statistics.median(seconds)
    entry["flop_per_second"] = work / statistics.median(seconds)
    entry["share_of_matmul"] = quartiles([work / s / peak for s in seconds])
    return entry


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


def speed_ratios(settings: Settings, results: dict[str, dict]) -> dict[str, dict[str, float]]:
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
