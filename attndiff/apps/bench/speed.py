"""Speed and memory of one preset: training, a call of the network, guided sampling, the training loop, growth."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

from attndiff.apps.bench.growth import measure_growth
from attndiff.apps.bench.loop import measure_loop
from attndiff.apps.bench.memory import peak_memory
from attndiff.apps.bench.network import SIZE, Network
from attndiff.apps.bench.report import Report
from attndiff.apps.bench.steps import (
    Step,
    forward_pass,
    matmul_rate,
    network_batch,
    sampling,
    training_step,
)
from attndiff.apps.bench.timing import interleave, quartiles
from attndiff.device import cpu_computes_in_bfloat16

Say = Callable[[str], None]


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured, and how long.

    Args:
        preset: Of attndiff.
        device: ``"cpu"`` or ``"cuda"``.
        precisions: Of training; sampling, memory and growth are measured in the first.
        count: Images of a training step and of a network call; half as many are sampled, since guidance doubles them.
        rounds: Counted turns of every form.
        warmup: Turns before them.
        sampling_steps: Euler steps.
        growth_sizes: Pixels per side.
        forms: Of the network.
        loop_steps: Steps of the real training loop, 0 to leave it out.
    """

    preset: str = "xs"
    device: str = "cpu"
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    count: int = 16
    rounds: int = 7
    warmup: int = 1
    sampling_steps: int = 10
    growth_sizes: tuple[int, ...] = (32, 64, 128, 256)
    forms: tuple[str, ...] = ("default", "compiled")
    loop_steps: int = 0

    @property
    def precision(self) -> str:
        """The one that all is measured in."""
        return self.precisions[0]

    @property
    def measures(self) -> list[tuple[str, str]]:
        """What is timed, and in which precision, what matters most first."""
        first = [(measure, self.precision) for measure in ("training", "sampling", "forward")]
        return first + [("training", precision) for precision in self.precisions[1:]]


def full_settings(device: str) -> SpeedSettings:
    """The whole measurement."""
    if device == "cpu":
        precisions = ("float32", "bfloat16") if cpu_computes_in_bfloat16() else ("float32",)
        return SpeedSettings(precisions=precisions, loop_steps=20)
    return SpeedSettings(
        preset="s",
        device=device,
        precisions=("bfloat16", "float32"),
        count=256,
        rounds=20,
        warmup=3,
        sampling_steps=18,
        loop_steps=300,
    )


def quick_settings(device: str) -> SpeedSettings:
    """Few rounds of small batches, nothing compiled."""
    full = full_settings(device)
    return replace(
        full,
        precisions=full.precisions[:1],
        count=8 if device == "cpu" else 128,
        rounds=3 if device == "cpu" else 10,
        warmup=1,
        sampling_steps=4,
        growth_sizes=(32, 64),
        forms=("default",),
        loop_steps=0,
    )


def measure_speed(settings: SpeedSettings, report: Report, say: Say = print) -> None:
    """Add what is missing to a report, saving after every measurement."""
    forms = [Network(settings.preset, form) for form in settings.forms]
    add_costs(settings, forms, report)
    for measure, precision in settings.measures:
        key = f"{measure}_{precision}"
        if key not in report.arm(forms[0].name):
            work = {network.name: make_step(settings, measure, precision, network) for network in forms}
            times, failures = interleave(work, settings.rounds, settings.warmup, settings.device)
            for network in forms:
                entry = {"failed": failures.get(network.name)}
                if network.name in times:
                    entry = figures(times[network.name], settings, measure, precision, network, report)
                report.arm(network.name)[key] = entry
            report.save()
            say(f"{key}: {told(report.arm(forms[0].name)[key])}")
    add_loop(settings, report, say)
    add_memory(settings, [forms[0].plain], report, say)
    add_growth(settings, [forms[0].plain], report, say)
    report.save()


def add_costs(settings: SpeedSettings, networks: list[Network], report: Report) -> None:
    """Parameters and operations of every network, and what a matrix product reaches here."""
    for network in networks:
        report.arm(network.name).update(network.cost())
    peaks = report.hardware.setdefault("matmul_flop_per_second", {})
    for precision in settings.precisions:
        if precision not in peaks:
            peaks[precision] = matmul_rate(settings.device, precision)


def add_loop(settings: SpeedSettings, report: Report, say: Say) -> None:
    """The real training loop's share of the matrix product's operations a second."""
    own = report.arm(Network(settings.preset).name)
    if settings.loop_steps and "training_loop" not in own:
        own["training_loop"] = loop = measure_loop(
            settings.preset, settings.count, settings.loop_steps, settings.precision, settings.device
        )
        report.save()
        say(f"training loop: {loop['share_of_matmul']:.0%} of the matrix product's FLOP/s")


def add_memory(settings: SpeedSettings, networks: list[Network], report: Report, say: Say) -> None:
    """Peak memory of a training step of every network."""
    for network in networks:
        result = report.arm(network.name)
        if "peak_memory_bytes" not in result:
            peak = peak_memory(network, settings.count, settings.device, settings.precision)
            result["peak_memory_bytes"] = peak
            report.save()
            say(f"peak memory: {peak / 2**20:.0f} MiB of {network.name}")


def add_growth(settings: SpeedSettings, networks: list[Network], report: Report, say: Say) -> None:
    """What an image costs every network at several sizes."""
    for network in networks:
        result = report.arm(network.name)
        if "growth" not in result:
            result["growth"] = measure_growth(
                network, settings.growth_sizes, settings.count, settings.device, settings.precision, settings.rounds
            )
            report.save()
            say(f"growth to {max(map(int, result['growth']))} px: {network.name}")


def make_step(settings: SpeedSettings, measure: str, precision: str, network: Network) -> Step:
    """The piece of work that a measure times."""
    model, device = network.prepared(settings.device), settings.device
    if measure == "sampling":
        batch = network_batch(network, max(1, settings.count // 2), SIZE, device)
        return sampling(model, batch, device, precision, settings.sampling_steps)
    batch = network_batch(network, settings.count, SIZE, device)
    return {"training": training_step, "forward": forward_pass}[measure](model, batch, device, precision)


def figures(
    seconds: list[float], settings: SpeedSettings, measure: str, precision: str, network: Network, report: Report
) -> dict:
    """What a network's times say, with what the report knows of its cost and of the matrix product.

    Args:
        seconds: Of each round.
        settings: Batch sizes.
        measure: ``"training"``, ``"forward"`` or ``"sampling"``.
        precision: That was measured in.
        network: That was measured.
        report: With the results of `add_costs`.
    """
    entry = {"seconds": [round(s, 6) for s in seconds], "latency": quartiles(seconds)}
    if measure == "sampling":
        return entry
    flops, peak = report.arm(network.name)["forward_gflop"] * 1e9, report.hardware["matmul_flop_per_second"][precision]
    work = settings.count * flops * (3 if measure == "training" else 1)
    entry["images_per_second"] = settings.count / statistics.median(seconds)
    entry["flop_per_second"] = work / statistics.median(seconds)
    entry["share_of_matmul"] = quartiles([work / s / peak for s in seconds])
    return entry


def told(entry: dict) -> str:
    """An entry in words."""
    if "failed" in entry:
        return f"failed ({entry['failed']})"
    if "images_per_second" not in entry:
        return f"{entry['latency']['median']:.2f} s"
    share = entry["share_of_matmul"]["median"]
    return f"{entry['images_per_second']:.1f} images/s, {share:.0%} of the matrix product's FLOP/s"
