"""`attndiff bench`: its arithmetic on known numbers, and each of its measurements on the smallest of networks."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench.comparison import Comparison

from attndiff.apps.bench import attention, growth, loop, speed
from attndiff.apps.bench import memory as memory_of
from attndiff.apps.bench.network import Network, forward_flops, make_batch
from attndiff.apps.bench.report import Report
from attndiff.apps.bench.tables import speed_markdown
from attndiff.apps.bench.timing import interleave, paired_ratio
from attndiff.errors import UserError
from attndiff.training.run.plan import saved_bytes

SMALL_DATA = ("data.size=16", "data.where={style: [noto], group: [Food & Drink]}", "data.exclude=null")


def test_ratios_are_paired_within_rounds():
    """The second round is slow for both and changes nothing."""
    assert paired_ratio([2.0, 20.0, 2.4], [1.0, 10.0, 1.0]) == {"low": 2.0, "median": 2.0, "high": 2.2}
    assert paired_ratio([3.0], [2.0]) == {"low": 1.5, "median": 1.5, "high": 1.5}


def test_arms_take_turns_and_a_failure_is_told():
    calls = []

    def broken():
        raise RuntimeError("no such kernel\nand more")

    steps = {"a": lambda: calls.append("a"), "b": broken, "c": lambda: calls.append("c")}
    times, failures = interleave(steps, rounds=2, warmup=1)
    assert calls == ["a", "c", "c", "a", "a", "c"]
    assert set(times) == {"a", "c"} and len(times["a"]) == 2
    assert failures == {"b": "RuntimeError: no such kernel"}


def test_shares_count_three_forward_passes_for_training():
    settings, network, report = speed.SpeedSettings(count=10), Network("tiny"), Report(None, "cpu", "speed", {})
    report.arm(network.name)["forward_gflop"] = 4.0
    report.hardware["matmul_flop_per_second"] = {"float32": 1.2e11}
    entry = speed.figures([2.0, 2.0], settings, "training", "float32", network, report)
    assert entry["images_per_second"] == 5 and entry["flop_per_second"] == 6e10
    assert entry["share_of_matmul"]["median"] == pytest.approx(0.5)


def test_a_size_without_memory_ends_the_growth(monkeypatch):
    def kept(model, batch):
        if batch["images"].shape[-1] > 32:
            raise RuntimeError("no memory\nat all")
        return 1e6

    monkeypatch.setattr(growth, "saved_bytes", kept)
    sizes = growth.measure_growth(Network("tiny"), (32, 64, 128), 2, "cpu", "float32", rounds=2)
    assert sizes["64"] == {"failed": "no memory"} and list(sizes) == ["32", "64"]
    assert sizes["32"]["bytes"] == 5e5 and sizes["32"]["spread"]["low"] <= sizes["32"]["seconds"]


def test_activations_grow_with_the_batch_and_exclude_weights():
    model = Network("tiny").build()
    one, four = (saved_bytes(model, make_batch(n)) for n in (1, 4))
    assert 0 < one < four < 4.5 * one


def resident(field: str) -> int:
    """This process's memory by the kernel's account."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_begins_without_the_peak_of_the_one_that_started_it():
    grown = torch.ones((resident("VmHWM") - resident("VmRSS") + 2**27) // 4)
    assert memory_of.peak_resident() >= resident("VmRSS") >= grown.nbytes
    code = inspect.getsource(memory_of.peak_resident)
    script = f"import sys\nfrom pathlib import Path\n{code}\nprint(peak_resident())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**26


def test_the_training_loop_is_measured_whole(monkeypatch):
    """Its operations a second are those of three passes of the network for each of its images a second."""
    monkeypatch.setattr(loop, "matmul_rate", lambda device, precision: 1e12)
    result = loop.measure_loop("tiny", 4, 4, "float32", "cpu", SMALL_DATA)
    flops = 3 * forward_flops(Network("tiny"))
    assert (
        0.2 < result["flop_per_second"] / (result["images_per_second"] * flops) < 1.2
    )  # at 16 px, a quarter, and more
    assert result["share_of_matmul"] == pytest.approx(result["flop_per_second"] / 1e12)


def test_attention_backends_agree_with_the_reference():
    rows = attention.measure_attention("cpu", ("tiny",), (32,), images=2, repeats=1, say=lambda line: None)
    assert {(row["kind"], row["masked"]) for row in rows} == {
        ("global", False),
        ("cross", True),
        ("window", False),
        ("window_coarse", False),
        ("routed", False),
        ("causal", True),
        ("causal, padded", True),
        ("causal, cached", True),
    }
    bound = {"float32": 1e-5, "bfloat16": 3e-2}
    for row in rows:
        if row["backend"] in (attention.REFERENCE, "native", "_native_math"):
            assert row["forward_error"] < bound[row["dtype"]], row
            assert row["backward_error"] < bound[row["dtype"]], row
    assert any("unavailable" in row for row in rows if row["backend"] == "xformers")
    assert sum(row.get("fastest", False) for row in rows) == 16
    assert "| cross" not in attention.attention_markdown(rows).splitlines()[0]


def test_shapes_are_those_of_the_network():
    shapes = list(attention.preset_shapes("xs", 64))
    assert [(s.kind, s.groups, s.queries, s.keys) for s in shapes] == [
        ("global", 1, 256, 256),
        ("cross", 1, 256, 24),
        ("global", 1, 64, 64),
        ("cross", 1, 64, 24),
    ]
    assert next(attention.preset_shapes("s", 256)).kind == "window"
    further = [(s.kind, s.groups, s.queries, s.keys) for s in attention.kind_shapes(32, known={"global"})]
    assert further == [("window", 4, 64, 64), ("window_coarse", 4, 64, 128), ("routed", 4, 64, 128)]


def test_a_preset_is_measured_once_and_shown(tmp_path, monkeypatch):
    settings = speed.SpeedSettings(
        preset="tiny",
        precisions=("float32",),
        count=2,
        rounds=2,
        sampling_steps=1,
        growth_sizes=(32, 64),
        forms=("default",),
    )
    monkeypatch.setattr(speed, "peak_memory", lambda *_: 2**20)  # a process of its own takes longer than all tests here
    file = tmp_path / "bench.json"
    report = Report(file, "cpu", "speed", {})
    speed.measure_speed(settings, report, say=lambda line: None)
    (own,) = json.loads(file.read_text(encoding="utf-8"))["arms"].values()
    assert {"training_float32", "sampling_float32", "forward_float32", "peak_memory_bytes", "growth"} <= set(own)
    table = speed_markdown(report.to_json())
    assert "| attndiff tiny | training, float32 | " in table and "takes 1 MiB" in table and "| at 64 px |" in table

    monkeypatch.setattr(speed, "interleave", lambda *_: pytest.fail("measured again"))
    again = Report(file, "cpu", "speed", {})
    speed.measure_speed(settings, again, say=lambda line: None)
    assert again.to_json() == report.to_json()


def test_a_result_of_something_else_is_not_added_to(tmp_path):
    file = tmp_path / "bench.json"
    Comparison(file, "cpu", "speed", {}).save()
    with pytest.raises(UserError, match="is no result of this benchmark"):
        Report(file, "cpu", "speed", {})


def test_a_failed_form_is_shown():
    result = Report(None, "cpu", "speed", {}).to_json()
    result["arms"]["attndiff xs, compiled"] = {"training_float32": {"failed": "no compiler"}}
    assert "| attndiff xs, compiled | training, float32 | failed: no compiler |" in speed_markdown(result)
