"""A share of scripts/kill_campaign.py: real runs, really killed."""

import ast
import itertools
import json
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

import kill_campaign
import pytest
from killing.count import Count, earlier
from killing.deaths import CONTROLS, erratic_clock
from killing.runs import TIMED, make_images
from killing.trials import random_trial, reference

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


def test_killed_runs_end_as_if_nothing_had_happened_and_spoilt_ones_are_noticed(tmp_path):
    kept = tmp_path / "kills.json"
    campaign = kill_campaign.KillCampaign(tmp_path / "first", kept=kept, every=4)
    report = asdict(campaign.run(runs=5, pairs=1, timed=1))
    assert json.loads(kept.read_text()) == report
    assert report["problems"] == []
    assert report["identical"] == report["runs"] == 5 + report["operations_of_a_commit"] + 1 + 1 + 1
    assert report["operations_of_learning"] >= 9
    assert report["operations_of_a_commit"] >= 4 and report["kills_inside_save"] >= 3
    assert report["two_process_runs"] == report["timed_runs"] == 1
    assert set(report["negative_controls"].values()) == {"failed as it must"}
    assert set(report["negative_controls"]) == set(CONTROLS)


class Patient(random.Random):
    """Waits for the end of the first run, kills later ones soon, and each once."""

    def __init__(self):
        super().__init__(0)
        self.waits = itertools.chain([3600], itertools.repeat(0.1))

    def randint(self, low: int, high: int) -> int:
        return low

    def uniform(self, low: float, high: float) -> float:
        return next(self.waits)


def test_a_run_that_ends_before_its_kill_is_begun_anew(tmp_path):
    images = make_images(tmp_path / "images")
    expected, _ = reference(tmp_path / "whole", images, "plain")
    trial = random_trial(tmp_path / "trial", images, "plain", 1, expected, 20, Patient())
    assert (trial.kills, trial.problem) == (1, None)


def test_processes_whose_clocks_disagree_plan_the_same_steps(tmp_path):
    how = make_images(tmp_path / "images"), TIMED, erratic_clock, 2
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), kill_campaign.prepare) as pool:
        found, _ = pool.submit(reference, tmp_path / "two", *how).result()
    steps = ast.literal_eval(found["planned steps"])[-1][1]
    assert f"loss of step {steps}" in found and f"loss of step {steps + 1}" not in found
    assert f"checkpoints/step_{steps:08d}/weights.safetensors" in found


def test_a_campaign_goes_on_from_its_result_file(tmp_path):
    """What is there is not run again: only the last of three runs is."""
    kept = tmp_path / "kills.json"
    there = Count(runs=30, identical=30, one_process_runs=2, operations_of_a_commit=28)
    kept.write_text(json.dumps(asdict(there)))
    count = kill_campaign.KillCampaign(tmp_path / "second", earlier(kept), kept).run(runs=3, pairs=0, timed=0)
    assert (count.runs, count.identical, count.one_process_runs) == (31, 31, 3)
    assert json.loads(kept.read_text()) == asdict(count)


@pytest.mark.parametrize("what", ["hardware", "code"])
def test_a_campaign_of_something_else_is_not_added_to(what, tmp_path):
    kept = tmp_path / "kills.json"
    kept.write_text(json.dumps({**asdict(Count()), what: "another"}))
    with pytest.raises(SystemExit, match=f"holds a campaign of other {what}"):
        earlier(kept)
