"""scripts/bench.py: its arithmetic on known numbers, its peers, and each measurement on the smallest of networks."""

import json
import sys

import pytest
import torch
import typer
from bench import campaign, quality, speed
from bench.arms import Arm, nearest_width
from bench.command import compare
from bench.comparison import RATIOS, Comparison
from bench.partial_import import network_module
from bench.peers import PEERS, RATES, Peer
from bench.tables import chosen_curves, draw, markdown
from PIL import Image
from places import ROOT

from attndiff.apps.bench import speed as alone
from attndiff.apps.cli import run
from attndiff.diffusion.objectives import FlowMatching
from attndiff.errors import UserError

DIFFUSERS = "diffusers UNet2DModel"
SMALL_DATA = ("data.size=16", "data.where={style: [noto], group: [Food & Drink]}", "data.exclude=null")


def test_compiled_is_compared_with_compiled():
    ratios = {"attndiff xs": {"median": 2.0}, "attndiff xs, compiled": {"median": 3.0}}
    assert speed.like_with_like({"ratio": ratios}, "peer")["median"] == 2.0
    assert speed.like_with_like({"ratio": ratios}, "peer, channels_last")["median"] == 2.0
    assert speed.like_with_like({"ratio": ratios}, "peer, compiled")["median"] == 3.0
    assert speed.like_with_like({"failed": "why"}, "peer") is None


def test_ratios_are_attndiff_over_the_peer():
    results = {
        "attndiff xs": {"peak_memory_bytes": 300},
        "peer": {
            "training_float32": {"ratio": {"attndiff xs": {"low": 2.0, "median": 2.5, "high": 3.0}}},
            "sampling_float32": {"ratio": {"attndiff xs": {"low": 0.3, "median": 0.4, "high": 0.5}}},
            "peak_memory_bytes": 600,
        },
        "absent": {"skipped": "No module named 'absent'"},
    }
    ratios = speed.speed_ratios(speed.SpeedSettings(), results)
    assert ratios == {
        "train_throughput": {"peer": 2.5},
        "sampling_latency": {"peer": 0.4},
        "peak_memory": {"peer": 0.5},
    }
    assert speed._ratio("training", [1.0], [2.5])["median"] == 2.5
    assert speed._ratio("sampling", [1.0], [2.5])["median"] == 0.4


@pytest.mark.parametrize("goal, width", [(64.0**2, 64), (70.0**2, 72), (3.0, 8), (250.0**2, 248)])
def test_the_nearest_width_is_found(goal, width):
    assert nearest_width(lambda w: w**2 + 10, goal + 10, step=8) == width


def test_time_to_quality_of_known_curves():
    own, other = [(10, 0.5), (20, 0.3), (40, 0.1)], [(10, 0.9), (20, 0.6), (40, 0.4)]
    assert campaign.time_to_reach(own, 0.4) == pytest.approx(15)
    assert campaign.time_to_reach(own, 0.5) == 10
    assert campaign.time_to_reach(own, 0.05) is None
    assert campaign.time_ratio(own, other) == pytest.approx(40 / 15)
    assert campaign.time_ratio(other, own) == pytest.approx(15 / 40)


def test_checks_end_with_the_run():
    times = quality.check_times(1200, 11)
    assert times[-1] == 1200 and times[0] == pytest.approx(1200 / 32) and len(times) == 11
    assert quality.check_times(240, 1) == [240]


@pytest.mark.parametrize("name", PEERS)
def test_peers_objectives_recover_the_image(name):
    """What a perfect prediction implies is the clean image, at every level that training draws."""
    objective = PEERS[name].objective(sigma_data=0.5)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 64, 3, 4, 4, generator=generator)
    normal = torch.randn(64, generator=generator)
    # float32 loses the image in noise a thousand times as large
    level = objective.draw_levels(normal.clamp(-1.5, 1.5))
    x, target = objective.add_noise(x0, noise, level), objective.target(x0, noise, level)
    assert torch.allclose(objective.denoised(x, target, level), x0, atol=1e-3)
    assert (objective.weight(level) > 0).all()


@pytest.mark.parametrize("name", [name for name in PEERS if hasattr(PEERS[name].objective, "table")])
def test_timesteps_are_found_again(name):
    objective = PEERS[name].objective()
    steps = torch.tensor([0, 1, 500, 999])
    assert torch.allclose(objective.coordinate(objective.table[steps]), steps.float(), atol=1e-2)
    assert objective.table[0] < 0.1 and objective.table[-1] > 10 and (objective.table.diff() > 0).all()


def test_all_are_judged_at_the_same_noise():
    """Whatever a model trains on, the held-out levels have the ratios of the reference."""
    normal, reference = torch.tensor([-1.0, 0.0, 1.5]), FlowMatching()
    model = Arm("tiny").build()
    for name in PEERS:
        model.objective = own = PEERS[name].objective()
        with quality.at_levels_of(model, reference):
            ratios = model.objective.log_ratio(model.objective.draw_levels(normal))
        assert torch.allclose(ratios, reference.log_ratio(reference.draw_levels(normal)), atol=1e-4)
        assert model.objective is own


def test_an_absent_package_is_an_import_error_and_leaves_nothing():
    before = set(sys.modules)
    with pytest.raises(ImportError, match="absent_package"):
        network_module("absent_package.network")
    assert set(sys.modules) == before


@pytest.fixture
def absent(monkeypatch):
    """A peer whose package is not installed."""
    make = lambda width, dim: network_module("absent_package.network")  # noqa: E731
    monkeypatch.setitem(PEERS, "absent", Peer(make, 8, "", FlowMatching, 1e-3, "pip install absent"))
    return "absent"


@pytest.fixture
def memory(monkeypatch):
    """A process for each network would take longer than all tests together."""
    monkeypatch.setattr(alone, "peak_memory", lambda arm, *rest: 100 if arm.peer is None else 400)


def minuscule(peers: tuple[str, ...]) -> speed.SpeedSettings:
    return speed.SpeedSettings(
        preset="tiny",
        peers=peers,
        precisions=("float32",),
        count=2,
        rounds=2,
        warmup=1,
        sampling_steps=1,
        growth_sizes=(32, 64),
        forms=("default", "channels_last"),
        matches=("parameters",),
    )


def test_a_run_writes_the_agreed_result(tmp_path, absent, memory, monkeypatch):
    settings, file, told = minuscule((DIFFUSERS, absent)), tmp_path / "bench.json", []
    speed.measure_speed(settings, Comparison(file, "cpu", "speed", {}), told.append)
    result = json.loads(file.read_text())
    assert set(result) == {"hardware", "arms", "ratios"} and set(result["ratios"]) == set(RATIOS)
    assert set(result["arms"]) == {"attndiff tiny", DIFFUSERS, f"{DIFFUSERS}, channels_last", absent}
    for ratio in ("train_throughput", "sampling_latency"):
        assert set(result["ratios"][ratio]) == {DIFFUSERS, f"{DIFFUSERS}, channels_last"}
        assert all(value > 0 for value in result["ratios"][ratio].values())
    assert result["ratios"]["peak_memory"] == {DIFFUSERS: 0.25} and result["ratios"]["time_to_quality"] == {}
    own = result["arms"]["attndiff tiny"]
    assert {"training_float32", "forward_float32", "sampling_float32", "growth", "parameters"} <= set(own)
    assert own["growth"]["64"]["bytes"] == pytest.approx(4 * own["growth"]["32"]["bytes"], rel=0.5)
    parameters = result["arms"][DIFFUSERS]["parameters"] / own["parameters"]
    assert 0.8 < parameters < 1.25

    assert "pip install absent" in result["arms"][absent]["skipped"] and absent in told[0]
    table = markdown(result)
    assert f"| {absent} | not measured" in table and "| a pixel costs | at 32 px | at 64 px |" in table
    draw(result, tmp_path / "bench.png")
    assert Image.open(tmp_path / "bench.png").size[0] > 500

    # A second call finds everything done.
    monkeypatch.setattr(speed, "interleave", lambda *_: pytest.fail("measured again"))
    again = Comparison(file, "cpu", "speed", {})
    speed.measure_speed(settings, again, told.append)
    assert again.to_json() == result
    with pytest.raises(UserError, match="other settings"):
        Comparison(file, "cpu", "speed", {"count": 3})


@pytest.mark.parametrize("peer", [None, DIFFUSERS])
def test_a_run_has_a_curve(peer):
    result = quality.train(quality.Run(peer, 1e-3, 0, 0.01, preset="tiny", overrides=SMALL_DATA, points=2))
    (first, start), (last, end) = result["curve"]
    assert 0 < first < last and 0 < end < start
    assert result["images"] % quality.BATCH == 0 and result["n"] > 0


def test_a_peers_own_loss_learns_with_its_network():
    run = quality.Run("EDM2 U-Net", 1e-2, 0, 0.01, preset="tiny", overrides=SMALL_DATA)
    config, parts = quality.make_run(run)
    assert type(parts.model) is PEERS[run.peer].head
    before = {name: p.detach().clone() for name, p in parts.model.named_parameters()}
    steps = quality.training_loop(config, parts, "cpu")
    for _ in range(3):  # from the output gain to the blocks' gains to the condition
        next(steps)
    after = dict(parts.model.named_parameters())
    for name in ("uncertainty.1.weight", "unet.network.conv_in.weight", "condition_encoder.text_embedding.weight"):
        assert not torch.equal(after[name], before[name]), name


def test_stored_runs_are_not_repeated(tmp_path):
    """A finished campaign is only read; a full run is of the rate whose short run ended lowest."""
    report = Comparison(tmp_path / "quality.json", "cpu", "time_to_quality", {})
    runs = campaign.Campaign(report, "xs", 1)
    for peer, rates, times in ((None, campaign.OWN_LRS, (1, 2)), (DIFFUSERS, RATES, (4, 8))):
        for i, lr in enumerate(rates):
            short = quality.Run(peer, lr, 0, campaign.SEARCH_SHARE)
            runs.runs_of(peer)[short.key] = {"curve": [(1, 0.5 + abs(i - 1))]}
        for seed in (0, 1):
            curve = [(times[0], 0.5), (times[1], 0.3)]
            runs.runs_of(peer)[quality.Run(peer, rates[1], seed, 1.0).key] = {"curve": curve}
        earlier = {"curve": [(1, 0.9), (2, 0.8)]}  # before a larger rate was tried
        runs.runs_of(peer)[quality.Run(peer, rates[0], 0, 1.0).key] = earlier
    campaign.measure_quality(report, campaign.Plan(1.0), "cpu", "xs", (DIFFUSERS,))
    result = json.loads((tmp_path / "quality.json").read_text())
    assert result["ratios"]["time_to_quality"] == {DIFFUSERS: 4.0}
    assert chosen_curves(result["arms"][DIFFUSERS]) == [[[4, 0.5], [8, 0.3]]] * 2
    assert result["arms"][DIFFUSERS]["quality"] == {"lr": RATES[1], "final_errors": [0.3, 0.3]}


def test_a_quick_comparison_takes_the_rates_of_the_full_one(tmp_path):
    report = Comparison(tmp_path / "quick.json", "cpu", "time_to_quality", {"minutes": 0.25})
    runs = campaign.Campaign(report, "xs", 1)
    for peer, lr, end in ((None, campaign.CHOSEN_LR, 0.2), (DIFFUSERS, PEERS[DIFFUSERS].lr, 0.4)):
        key = quality.Run(peer, lr, 0, campaign.QUICK.minutes).key
        runs.runs_of(peer)[key] = {"curve": [(1, 0.6), (3, end)]}
    campaign.measure_quality(report, campaign.QUICK, "cpu", "xs", (DIFFUSERS,))
    assert report.ratios["time_to_quality"] == {DIFFUSERS: pytest.approx(3 / 2)}
    assert all(len(arm["quality_runs"]) == 1 for arm in report.arms.values())
    assert "after 0.25 minutes" in markdown(report.to_json())


def test_the_chosen_rates_are_those_of_the_committed_comparison():
    arms = json.loads((ROOT / "model_cards" / "quality.json").read_text())["arms"]
    for name, arm in arms.items():
        assert arm["quality"]["lr"] == (PEERS[name].lr if name in PEERS else campaign.CHOSEN_LR)


def searched(tmp_path, errors: dict, full: dict) -> campaign.Campaign:
    """A campaign that has the short and the full runs of some rates, by arm and rate."""
    runs = campaign.Campaign(Comparison(tmp_path / "quality.json", "cpu", "time_to_quality", {}), "xs", 1)
    for minutes, ends in ((campaign.SEARCH_SHARE, errors), (1.0, full)):
        for peer, by_rate in ends.items():
            for lr, error in by_rate.items():
                runs.runs_of(peer)[quality.Run(peer, lr, 0, minutes).key] = {"curve": [(1, error)]}
    return runs


def test_the_search_goes_on_past_the_largest_rate_and_the_least(tmp_path):
    least, largest = min(campaign.OWN_LRS), max(RATES)
    own = dict.fromkeys(campaign.OWN_LRS, 0.5) | {least: 0.3, least / 2: 0.2, least / 4: 0.25}
    peer = dict.fromkeys(RATES, 0.5) | {largest: 0.3, 2 * largest: 0.4}
    runs = searched(tmp_path, {None: own, DIFFUSERS: peer}, {None: {least / 2: 0.1}, DIFFUSERS: {largest: 0.1}})
    best = campaign.choose_rates(runs, [None, DIFFUSERS], lambda peer, lr, share: quality.Run(peer, lr, 0, share))
    assert best == {None: least / 2, DIFFUSERS: largest}


def test_full_runs_tell_apart_what_short_ones_cannot(tmp_path):
    """The rate that leads after a fifth of the time by less than a tenth loses where its full run ends higher."""
    low, middle, high = RATES
    short = {low: 0.2, middle: 0.1, high: 0.109}
    runs = searched(tmp_path, {DIFFUSERS: short | {2 * high: 0.3}}, {DIFFUSERS: {middle: 0.09, high: 0.08}})
    best = campaign.choose_rates(runs, [DIFFUSERS], lambda peer, lr, share: quality.Run(peer, lr, 0, share))
    assert best == {DIFFUSERS: high}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peer", "dalle"], ["--peer", "dalle", "k-diffusion"]),
        (["--time-to-quality", "--minutes", "0"], ["--minutes"]),
        (["--picture", "bench.txt"], ["--picture", ".png"]),
        (["--minute", "1"], ["--minute", "bench.py --help"]),
    ],
)
def test_a_mistake_in_the_call_is_one_sentence(arguments, words, capsys):
    """As the script calls it; its name is also that of the folder with what it does."""
    program = typer.Typer(add_completion=False)
    program.command()(compare)
    with pytest.raises(SystemExit) as stop:
        run(program, "bench.py", ["--device", "cpu", *arguments])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and all(word in told for word in words)
