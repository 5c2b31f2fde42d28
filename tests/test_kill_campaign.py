"""A share of scripts/kill_campaign.py: real runs, really killed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import kill_campaign

pytestmark = pytest.mark.skipif(not hasattr(kill_campaign.os, "fork"), reason="runs are forked")


def test_killed_runs_end_as_if_nothing_had_happened_and_spoilt_ones_are_noticed(tmp_path):
    report = kill_campaign.campaign(runs=4, pairs=1, folder=tmp_path)
    assert report["problems"] == []
    assert report["identical"] == report["runs"] == 4 + report["operations_of_a_commit"] + 1
    assert report["kills"] >= 18 and report["kills_inside_save"] >= 10 and report["two_process_runs"] == 1
    assert set(report["negative_controls"].values()) == {"failed as it must"}
    assert set(report["negative_controls"]) == set(kill_campaign.CONTROLS)
