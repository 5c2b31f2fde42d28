"""The options of scripts/bench.py: to a measurement, a result file, a table and a picture."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from attndiff.apps.bench.command import choose_device
from attndiff.apps.option_checks import check_json_file, check_output_file
from attndiff.errors import UserError
from bench.campaign import QUICK, Plan, measure_quality
from bench.comparison import Comparison
from bench.peers import PEERS
from bench.quality import PRECISION
from bench.speed import full_settings, measure_speed, quick_settings, why_absent
from bench.tables import draw, markdown


def compare(
    quick: Annotated[bool, typer.Option("--quick", help="A small version, under three minutes on two cores.")] = False,
    time_to_quality: Annotated[
        bool, typer.Option("--time-to-quality", help="Train every network and compare how soon each is how good.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(help="Training time of a run of --time-to-quality; a quarter of one with --quick.")
    ] = 20.0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one by default.")] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Only peers with this in their name; may be given several times.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Result file; what it already holds is not measured again.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Picture of the ratios and of the growth with size.")] = None,
) -> None:
    """Measure speed, memory and quality beside other diffusion networks."""
    check_json_file(json_file)
    if picture is not None:
        check_output_file("--picture", picture)
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes} must be a time above zero.")
    # k-diffusion compiles its small functions by default, which takes longer than a quick run has.
    if quick:
        os.environ["K_DIFFUSION_USE_COMPILE"] = "0"
    device, peers = choose_device(device), choose_peers(peer or [])
    if time_to_quality:
        report = compare_quality(QUICK if quick else Plan(minutes), device, peers, json_file)
    else:
        report = compare_speed(quick, device, peers, json_file)
    print("\n" + markdown(report.to_json()))
    if picture is not None:
        draw(report.to_json(), picture)


def compare_speed(quick: bool, device: str, peers: tuple[str, ...], json_file: Path | None) -> Comparison:
    """Throughput, latency, memory and growth."""
    settings = replace((quick_settings if quick else full_settings)(device), peers=peers)
    report = Comparison(json_file, device, "speed", asdict(settings) | {"peers": None})
    measure_speed(settings, report)
    return report


def compare_quality(plan: Plan, device: str, peers: tuple[str, ...], json_file: Path | None) -> Comparison:
    """Time to quality."""
    preset = full_settings(device).preset
    settings = {"minutes": plan.minutes, "preset": preset, "precision": PRECISION[device]}
    report = Comparison(json_file, device, "time_to_quality", settings)
    for peer in peers:
        if reason := why_absent(preset, peer):
            report.arms[peer] = {"skipped": f"{reason}; to add it: {PEERS[peer].install}"}
            print(f"skipped {peer}: {report.arms[peer]['skipped']}")
    there = tuple(peer for peer in peers if "skipped" not in report.arms.get(peer, {}))
    measure_quality(report, plan, device, preset, there)
    return report


def choose_peers(parts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The peers whose names contain one of ``parts``, or all where there is none.

    Raises:
        UserError: If a part is in no name.
    """
    for part in parts:
        if not any(part.lower() in name.lower() for name in PEERS):
            raise UserError(f"--peer {part} is in no peer's name; they are: {'; '.join(PEERS)}.")
    return tuple(name for name in PEERS if not parts or any(part.lower() in name.lower() for part in parts))
