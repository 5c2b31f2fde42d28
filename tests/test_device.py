"""In which precision a processor computes sooner, and what follows from it."""

import pytest
import torch
from commands import attndiff
from runs import settings, train

from attndiff import device
from attndiff.training import muon
from attndiff.training.config import make_config
from attndiff.training.parallel.processes import resolve_precision


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Makes this machine's processor another one."""

    def make(vendor: str, amx: bool, avx512: bool) -> None:
        info = tmp_path / "cpuinfo"
        info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: a processor\n")
        monkeypatch.setattr(device, "CPU_INFO", info)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    return make


@pytest.mark.parametrize(
    ("vendor", "amx", "avx512", "faster"),
    [
        ("GenuineIntel", True, True, True),
        ("GenuineIntel", False, True, False),
        ("AuthenticAMD", False, True, True),
        ("GenuineIntel", False, False, False),
        ("AuthenticAMD", False, False, False),
    ],
)
def test_training_takes_the_faster_precision(processor, vendor, amx, avx512, faster):
    processor(vendor, amx, avx512)
    assert device.cpu_is_faster_in_bfloat16() is faster
    assert resolve_precision(make_config(settings("x", optim__precision="auto"))) == ("bf16" if faster else "no")
    assert muon.working_precision(torch.device("cpu")) == (torch.bfloat16 if faster else torch.float32)
    assert muon.working_precision(torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize(
    ("vendor", "avx512", "said"),
    [("AuthenticAMD", True, None), ("GenuineIntel", True, "faster in float32"), ("AuthenticAMD", False, "emulates")],
)
def test_who_asks_for_the_slower_precision_is_told(processor, tmp_path, capsys, vendor, avx512, said):
    processor(vendor, False, avx512)
    train(tmp_path / "run", optim__precision="bf16", optim__steps=1)
    result = attndiff(
        "sample", tmp_path / "run/pipeline", "pizza", "--precision", "bf16", "--out", tmp_path / "grid.png"
    )
    assert result.code == 0
    for text, name in ((capsys.readouterr().out, "optim.precision=bf16"), (result.out, "--precision bf16")):
        found = [line for line in text.splitlines() if line.startswith(f"{name}: this processor")]
        assert [said in line and line.endswith("leave the precision out") for line in found] == [True] * bool(said)
    assert device.describe_slow_bfloat16("cuda") is None


def test_a_processor_is_known_where_no_file_tells_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(device.platform, "processor", lambda: "Intel64 Family 6 Model 143, GenuineIntel")
    assert device.is_intel()
    monkeypatch.setattr(device.platform, "processor", lambda: "arm")
    assert not device.is_intel()


def test_muon_computes_in_the_faster_precision(processor, monkeypatch):
    """Emulated bfloat16 takes many times as long as float32."""
    seen = []
    found = muon.orthogonalised
    monkeypatch.setattr(muon, "orthogonalised", lambda x, *rest: seen.append(x.dtype) or found(x, *rest))
    for avx512 in (True, False):
        processor("AuthenticAMD", False, avx512)
        weight = torch.nn.Parameter(torch.eye(8))
        weight.grad = torch.ones(8, 8) + torch.eye(8)
        muon.Muon([weight], lr=0.1).step()
        assert weight.dtype == torch.float32 and not torch.equal(weight, torch.eye(8))
    assert seen == [torch.bfloat16, torch.float32]
