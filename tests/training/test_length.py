"""The schedule of a run is a function of the step and of the entries by which its length is corrected."""

import json

import pytest

from attndiff.training.config import OptimConfig
from attndiff.training.optim import lr_factor
from attndiff.training.run.pace import kept_entries
from attndiff.training.run.progress import read_planned
from attndiff.training.state.length import Length

CORRECTED = [(0, 100), (30, 60), (35, 400), (200, 230)]


@pytest.mark.parametrize("steps", [1, 7, 300, 9001])
@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0])
def test_without_corrections_every_number_is_that_of_the_step_count(steps, decay):
    config, length = OptimConfig(steps=steps, decay=decay, warmup=3), Length([(0, steps)], fixed=True)
    for step in range(steps):
        falling = decay * steps
        expected = min(1.0, (step + 1) / 4) * (min(1.0, (steps - step) / falling) if falling else 1.0)
        assert lr_factor(step, length, config) == expected
        assert length.share(step) == step / steps
    assert list(length.steps_from(steps // 2)) == list(range(steps // 2, steps))


def test_corrections_change_the_slope_and_nothing_jumps():
    length = Length(CORRECTED)
    shares = [length.share(step) for step in range(231)]
    assert shares[0] == 0 and shares[230] == pytest.approx(1) and shares == sorted(shares)
    assert shares[30] == pytest.approx(0.3) and shares[35] == pytest.approx(0.3 + 5 / 30 * 0.7)
    factors = [length.fall(step, 0.9) for step in range(231)]
    assert factors == sorted(factors, reverse=True) and factors[230] == 0
    for step, _ in CORRECTED[1:]:  # the entry changes what comes after its step, not what is at it
        before = Length([entry for entry in CORRECTED if entry[0] < step])
        assert length.share(step) == pytest.approx(before.share(step))
        assert length.fall(step, 0.9) == pytest.approx(before.fall(step, 0.9))


def test_entries_that_lie_ahead_change_nothing_yet():
    one_by_one, at_once = Length(CORRECTED[:1]), Length(CORRECTED)
    seen = []
    for step in one_by_one.steps_from(0):
        seen.append((one_by_one.share(step), one_by_one.fall(step, 0.5), one_by_one.end(step)))
        if step + 1 in dict(CORRECTED):
            one_by_one.add(step + 1, dict(CORRECTED)[step + 1])
    again = [(at_once.share(step), at_once.fall(step, 0.5), at_once.end(step)) for step in at_once.steps_from(0)]
    assert seen == again and len(seen) == 230 and at_once.entries == CORRECTED


@pytest.mark.parametrize("entry", [(30, 500), (10, 500), (60, 70), (40, 40)], ids=str)
def test_an_entry_that_does_not_follow_is_refused(entry):
    with pytest.raises(ValueError, match="do not follow"):
        Length(CORRECTED[:2]).add(*entry)


def test_a_run_does_not_begin_later():
    with pytest.raises(ValueError, match="no beginning"):
        Length([(3, 10)])


def test_entries_are_read_from_whole_lines_and_joined_to_those_of_the_checkpoint(tmp_path):
    log, checkpoint = tmp_path / "log.jsonl", tmp_path / "step_00000040"
    assert read_planned(log) == []
    lines = [json.dumps({"step": step, "planned_steps": planned}) for step, planned in CORRECTED]
    log.write_text("\n".join([*lines[:2], '{"step": 31, "loss": 1.0}', lines[2], lines[3][:-3]]))
    assert read_planned(log) == CORRECTED[:3]
    checkpoint.mkdir()
    progress = {"format_version": 1, "step": 40, "seconds": 1.0, "planned": CORRECTED[:2]}
    (checkpoint / "progress.json").write_text(json.dumps(progress))
    assert kept_entries(checkpoint, log) == kept_entries(None, log) == CORRECTED[:3]
    log.unlink()
    assert kept_entries(checkpoint, log) == CORRECTED[:2]
