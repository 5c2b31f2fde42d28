"""Time to quality, the campaign: every arm's learning rate, its runs with two seeds, and the ratios of their curves."""

import math
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from attndiff.apps.bench.timing import quartiles
from bench.comparison import Comparison
from bench.peers import PEERS
from bench.quality import HELD_OUT, POINTS, Curve, Run, train

OWN_LRS = (2e-3, 4e-3, 8e-3)  # of Muon, attndiff's optimizer
CHOSEN_LR = 2e-3  # attndiff's own in model_cards/quality.json
FURTHER = 3  # rates beyond the three at most
SEARCH_SHARE = 0.2  # of the full time, for a run that chooses a learning rate
NEAR = 1.1  # rates whose short runs end within this factor of the best are told apart by full runs


@dataclass(frozen=True)
class Plan:
    """How much is trained and looked at.

    Args:
        minutes: Of a run.
        search: Choose every arm's learning rate; without it, that of the full comparison is taken.
        seeds: A run each.
        points: Of a run's curve.
        held_out: Images that a point is measured on.
    """

    minutes: float = 20.0
    search: bool = True
    seeds: tuple[int, ...] = (0, 1)
    points: int = POINTS
    held_out: int = HELD_OUT


QUICK = Plan(minutes=0.25, search=False, seeds=(0,), points=5, held_out=16)  # under three minutes on two cores


def time_to_reach(curve: Curve, error: float) -> float | None:
    """Seconds at which a curve first is at or below an error, straight lines between its points.

    Args:
        curve: ``(seconds, error)`` in order of time.
        error: To reach.

    Returns:
        The time; that of the first point where already that one is low enough, None where none is.
    """
    for i, (seconds, value) in enumerate(curve):
        if value <= error:
            if i == 0:
                return seconds
            before, high = curve[i - 1]
            return before + (seconds - before) * (high - error) / (high - value)
    return None


def time_ratio(own: Curve, other: Curve) -> float | None:
    """The time ``other`` took for its final error over the time ``own`` took to reach that same error.

    Where ``own`` never reaches it, the inverse question is asked, whose answer is below one: the time that ``other``
    needed for the final error of ``own``, over the time of ``own``.
    """
    reached = time_to_reach(own, other[-1][1])
    if reached is not None:
        return other[-1][0] / reached
    needed = time_to_reach(other, own[-1][1])
    return None if needed is None else needed / own[-1][0]


class Campaign:
    """Runs beside each other in processes, each result in the report as soon as it is there.

    Args:
        report: Where results are kept; runs that it has are not repeated.
        preset: Of attndiff.
        workers: Runs side by side.
        say: Told of every run.
    """

    def __init__(self, report: Comparison, preset: str, workers: int, say: Callable[[str], None] = print):
        self.report, self.preset, self.workers, self.say = report, preset, workers, say

    def name(self, peer: str | None) -> str:
        """An arm's name in the report."""
        return peer or f"attndiff {self.preset}"

    def runs_of(self, peer: str | None) -> dict[str, dict]:
        """The stored runs of an arm."""
        return self.report.arm(self.name(peer)).setdefault("quality_runs", {})

    def run(self, wanted: list[Run]) -> list[dict]:
        """The results of some runs, training those that are missing."""
        missing = [run for run in wanted if run.key not in self.runs_of(run.peer)]
        if missing:
            with ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn")) as pool:
                running = {pool.submit(train, run): run for run in missing}
                for future in as_completed(running):
                    self._keep(running[future], future.result())
        return [self.runs_of(run.peer)[run.key] for run in wanted]

    def error(self, run: Run) -> float:
        """The last held-out error of a run; infinite for one that broke off."""
        result = self.run([run])[0]
        return math.inf if "stopped" in result else result["curve"][-1][1]

    def _keep(self, run: Run, result: dict) -> None:
        self.runs_of(run.peer)[run.key] = result
        self.report.save()
        self.say(f"{self.name(run.peer)}, {run.key}: held-out error {self.error(run):.5f}")


def measure_quality(
    report: Comparison,
    plan: Plan,
    device: str,
    preset: str,
    peers: tuple[str, ...],
    overrides: tuple[str, ...] = (),
    workers: int = 2,
    say: Callable[[str], None] = print,
) -> None:
    """Choose every arm's learning rate, train it with every seed, and add curves and ratios to a report."""
    campaign = Campaign(report, preset, workers if device == "cpu" else 1, say)
    arms: list[str | None] = [None, *peers]

    def make(peer: str | None, lr: float, seed: int, share: float = 1.0) -> Run:
        points = plan.points if share == 1 else 1
        return Run(peer, lr, seed, share * plan.minutes, device, preset, overrides, points, plan.held_out)

    best = {peer: PEERS[peer].lr if peer else CHOSEN_LR for peer in arms}
    if plan.search:
        best = choose_rates(campaign, arms, lambda peer, lr, share: make(peer, lr, plan.seeds[0], share))
    final = {peer: [make(peer, best[peer], seed) for seed in plan.seeds] for peer in arms}
    campaign.run([final[peer][i] for i in range(len(plan.seeds)) for peer in arms])  # all arms' first seed first
    curves = {peer: [r["curve"] for r in campaign.run(runs) if "stopped" not in r] for peer, runs in final.items()}
    for peer in arms:
        result = report.arm(campaign.name(peer))
        result["quality"] = {"lr": best[peer], "final_errors": [curve[-1][1] for curve in curves[peer]]}
    for peer in peers:
        add_time_ratio(report, peer, curves[None], curves[peer])
    report.save()


def choose_rates(
    campaign: Campaign, arms: list[str | None], make: Callable[[str | None, float, float], Run]
) -> dict[str | None, float]:
    """Every arm's learning rate of the least error after a full run, among those that short runs cannot tell apart.

    Args:
        campaign: Trains.
        arms: Peers, and None for attndiff.
        make: The run of an arm at a rate for a share of the full time.
    """
    close = close_rates(campaign, arms, lambda peer, lr: make(peer, lr, SEARCH_SHARE))
    campaign.run([make(peer, lr, 1.0) for peer in arms for lr in close[peer]])
    return {peer: min(close[peer], key=lambda lr: campaign.error(make(peer, lr, 1.0))) for peer in arms}


def close_rates(
    campaign: Campaign, arms: list[str | None], short: Callable[[str | None, float], Run]
) -> dict[str | None, list[float]]:
    """Every arm's rates whose short runs end `NEAR` the best, with one tried on either side of the best.

    Args:
        campaign: Trains.
        arms: Peers, and None for attndiff.
        short: The short run of an arm at a rate.
    """
    rates = {peer: list(PEERS[peer].rates if peer else OWN_LRS) for peer in arms}
    for _ in range(FURTHER + 1):
        campaign.run([short(peer, lr) for peer in arms for lr in rates[peer]])
        errors = {peer: {lr: campaign.error(short(peer, lr)) for lr in rates[peer]} for peer in arms}
        for peer in arms:
            best = min(rates[peer], key=errors[peer].get)
            if best == max(rates[peer]):
                rates[peer].append(2 * best)
            elif best == min(rates[peer]):
                rates[peer].append(best / 2)
    return {peer: [lr for lr in errors[peer] if errors[peer][lr] <= NEAR * min(errors[peer].values())] for peer in arms}


def add_time_ratio(report: Comparison, peer: str, own: list[Curve], other: list[Curve]) -> None:
    """The median over all pairs of seeds, and their quartiles."""
    ratios = [time_ratio(a, b) for a in own for b in other]
    ratios = [ratio for ratio in ratios if ratio is not None]
    if ratios:
        spread = quartiles(ratios)
        report.ratios["time_to_quality"][peer] = statistics.median(ratios)
        report.arm(peer).setdefault("spread", {})["time_to_quality"] = spread
