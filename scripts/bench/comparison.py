"""The result file of a comparison: that of one network, and `ratios` of attndiff over each peer."""

from pathlib import Path

from attndiff.apps.bench.report import Report

RATIOS = ("train_throughput", "sampling_latency", "peak_memory", "time_to_quality")


class Comparison(Report):
    """Results so far; arguments and errors as of `Report`."""

    parts = (*Report.parts, "ratios")

    def __init__(self, path: Path | None, device: str, section: str, settings: dict):
        self.ratios: dict[str, dict[str, float]] = {name: {} for name in RATIOS}
        super().__init__(path, device, section, settings)
