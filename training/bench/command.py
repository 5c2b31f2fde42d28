"""``attndiff bench``: from its options to a measurement, a result file, a table and a picture."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from attndiff.errors import UserError
from attndiff.training.bench.peers import PEERS
from attndiff.training.bench.report import Report, describe_hardware, write_json
from attndiff.training.bench.speed import full_settings, measure_speed, quick_settings, why_absent
from attndiff.training.bench.tables import draw, markdown


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Args:
        kind: ``"speed"``, ``"quality"`` or ``"attention"``.
        quick: A small version.
        minutes: Of a training run.
        device: ``"cpu"``, ``"cuda"`` or None for the best one.
        peers: Parts of names; all peers where there is none.
        json_file: Result file.
        picture: Picture to draw.
    """

    kind: str
    quick: bool = False
    minutes: float = 20.0
    device: str | None = None
    peers: list[str] | tuple[str, ...] = ()
    json_file: Path | None = None
    picture: Path | None = None


def run(request: Request) -> None:
    """Measure, print the table, and write what was asked for.

    Raises:
        UserError: If the device or a peer is unknown, or the result file does not fit.
    """
    device = choose_device(request.device)
    if request.kind == "attention":
        return run_attention(request, device)
    # k-diffusion compiles its small functions by default, which takes longer than a quick run has.
    if request.quick:
        os.environ["K_DIFFUSION_USE_COMPILE"] = "0"
    report = (run_speed if request.kind == "speed" else run_quality)(request, device)
    print("\n" + markdown(report.to_json()))
    if request.picture is not None:
        draw(report.to_json(), request.picture)
    return None


def run_speed(request: Request, device: str) -> Report:
    """Throughput, latency, memory and growth."""
    settings = (quick_settings if request.quick else full_settings)(device)
    settings = replace(settings, peers=choose_peers(request.peers))
    report = Report(request.json_file, device, "speed", asdict(settings) | {"peers": None})
    measure_speed(settings, report)
    return report


def run_quality(request: Request, device: str) -> Report:
    """Time to quality."""
    from attndiff.training.bench.campaign import QUICK, Plan, measure_quality
    from attndiff.training.bench.quality import PRECISION

    plan, preset = (QUICK if request.quick else Plan(request.minutes)), full_settings(device).preset
    settings = {"minutes": plan.minutes, "preset": preset, "precision": PRECISION[device]}
    report = Report(request.json_file, device, "time_to_quality", settings)
    peers = choose_peers(request.peers)
    for peer in peers:
        if reason := why_absent(preset, peer):
            report.arms[peer] = {"skipped": f"{reason}; to add it: {PEERS[peer].install}"}
            print(f"skipped {peer}: {report.arms[peer]['skipped']}")
    there = tuple(peer for peer in peers if "skipped" not in report.arms.get(peer, {}))
    measure_quality(report, plan, device, preset, there)
    return report


def run_attention(request: Request, device: str) -> None:
    """The table of attention backends."""
    from attndiff.training.bench.attention import attention_markdown, measure_attention

    rows = measure_attention(device, presets=("xs",) if request.quick else ("xs", "s", "b"))
    print("\n" + attention_markdown(rows))
    if request.json_file is not None:
        request.json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(request.json_file, {"hardware": describe_hardware(device), "attention": rows})


def choose_device(device: str | None) -> str:
    """The device asked for, or CUDA where there is one.

    Raises:
        UserError: If it is neither cpu nor cuda, or not there.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} is unknown: it is cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to measure on the CPU.")
    return device


def choose_peers(parts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """The peers whose names contain one of ``parts``, or all where there is none.

    Raises:
        UserError: If a part is in no name.
    """
    for part in parts:
        if not any(part.lower() in name.lower() for name in PEERS):
            raise UserError(f"--peer {part} is in no peer's name; they are: {'; '.join(PEERS)}.")
    return tuple(name for name in PEERS if not parts or any(part.lower() in name.lower() for part in parts))
