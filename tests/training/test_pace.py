"""A run keeps to the time that it was given, by a clock that lies: no test here depends on how fast the machine is."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from runs import losses, settings, weights

from attndiff.clock import Deadline, in_words
from attndiff.errors import UserError
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer
from attndiff.training.run.pace import Pace
from attndiff.training.run.plan import RunPlan
from attndiff.training.run.progress import read_log, read_planned
from attndiff.training.state.length import Length

MINUTES = 4
SECONDS = 60 * MINUTES


@dataclass
class Machine:
    """A clock that work turns: work of one second takes as many as ``slowness`` says, given the time."""

    slowness: Callable[[float], float] = lambda now: 1.0
    now: float = 1000.0
    began: float = field(init=False)

    def __post_init__(self):
        self.began = self.now

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds * self.slowness(self.now - self.began)

    @property
    def passed(self) -> float:
        return self.now - self.began


def tenth_from(when: float) -> Callable[[float], float]:
    """A machine that goes ten times as slow from a moment on."""
    return lambda now: 10.0 if now >= when else 1.0


def simulate(machine: Machine, step: float = 0.2, chore: float = 1.0, planned: float | None = None, **optim):
    """A run of steps, validations and checkpoints that take ``chore`` each: its entries and its number of steps.

    ``planned`` is what a step took before step 1, as a plan has it.
    """
    values = settings("unused", optim__steps=None, optim__minutes=MINUTES, log__validate_every=100, log__every=10)
    values["log"] |= {"sample_every": 500, "checkpoint_every": 200}
    values["optim"] |= optim
    config = make_config(values)
    planned = step if planned is None else planned
    plan, chores = RunPlan(0, (16, 16), 0.0, planned, 0.0, 0), ("validate", "checkpoint", "package")
    pace = Pace(config, plan, dict.fromkeys(chores, planned / step), machine, machine.began, 0)
    length = Length([(0, pace.fitting(0))])
    for index in length.steps_from(0):
        machine.work(step)
        done = index + 1
        pace.stepped(done)
        if pace.due(done, length) and (corrected := pace.corrected(done, length)):
            length.add(done, corrected)
        for name, interval in (("validate", 100), ("checkpoint", 200)):
            if done % interval == 0 or done == length.end(done):
                with pace.timed(name):
                    machine.work(chore)
    machine.work(chore)  # the folder and its card
    return length, done, pace


def test_a_steady_machine_needs_few_corrections():
    machine = Machine()
    length, steps, _ = simulate(machine)
    assert machine.passed == pytest.approx(SECONDS, rel=0.03)
    assert steps * 0.2 == pytest.approx(SECONDS, rel=0.1) and len(length.entries) <= 4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.9])
def test_a_slowdown_to_a_tenth_costs_steps_and_no_time(share):
    machine = Machine(tenth_from(share * SECONDS))
    length, steps, _ = simulate(machine, chore=0.1)
    assert machine.passed == pytest.approx(SECONDS, rel=0.1)
    ideal = share * SECONDS / 0.2 + (1 - share) * SECONDS / 2
    assert steps == pytest.approx(ideal, rel=0.1)
    factors = [length.fall(step, 0.5) for step in range(steps)]
    assert factors == sorted(factors, reverse=True) and length.share(steps) == pytest.approx(1)


@pytest.mark.parametrize("planned", [2.0, 0.02], ids=["measured too slow", "measured too fast"])
def test_a_wrong_measurement_before_step_1_costs_nothing(planned):
    machine = Machine()
    _, steps, _ = simulate(machine, planned=planned)
    assert machine.passed == pytest.approx(SECONDS, rel=0.05)
    assert steps * 0.2 == pytest.approx(SECONDS, rel=0.1)


def test_a_slow_start_is_made_up_for():
    machine = Machine(lambda now: 10.0 if now < 30 else 1.0)
    _, steps, _ = simulate(machine, planned=2.0)
    assert machine.passed == pytest.approx(SECONDS, rel=0.05)
    assert steps == pytest.approx(30 / 2 + (SECONDS - 30) / 0.2, rel=0.1)


def test_a_first_step_that_compiles_is_no_pace():
    machine = Machine(lambda now: 300.0 if now == 0 else 1.0)
    length, steps, _ = simulate(machine)
    assert machine.passed == pytest.approx(SECONDS, rel=0.05)
    assert steps * 0.2 == pytest.approx(SECONDS - 60, rel=0.1) and len(length.entries) <= 5


def test_chores_that_take_longer_than_estimated_are_paid_for_with_steps():
    machine = Machine()
    _, steps, _ = simulate(machine, chore=15.0)
    assert machine.passed == pytest.approx(SECONDS, rel=0.1) and steps < 900


def test_a_machine_whose_speed_swings_is_kept_in_time():
    machine = Machine(lambda now: 3.0 if now % 20 < 10 else 1.0)
    simulate(machine)
    assert machine.passed == pytest.approx(SECONDS, rel=0.05)


def test_the_least_number_of_steps_is_kept_and_said():
    machine = Machine()
    _, steps, pace = simulate(machine, step=20.0, least_steps=30)
    assert steps == 30 and machine.passed > 600
    said = pace.overdue(0, 30)
    assert said.startswith("optim.least_steps=30 makes the run longer than the time it was given: about ")
    assert said.endswith(" min instead of 4.0 min") and pace.overdue(0, 31) is None


def test_a_deadline_says_what_is_left():
    machine = Machine()
    deadline = Deadline.after(30, machine)
    machine.work(40)
    assert deadline.left == -10
    assert [in_words(seconds) for seconds in (-1, 5.4, 240)] == ["0 s", "5 s", "4.0 min"]


# The same with the trainer


def turned(trainer: Trainer, machine: Machine, step: float = 1.0) -> Trainer:
    """Have each step of a trainer turn its clock."""
    inner = trainer._step

    def timed(state, now):
        machine.work(step)
        return inner(state, now)

    trainer._step = timed
    return trainer


def minutes(out, seconds: float = 30.0, **changes) -> dict:
    values = settings(out, optim__steps=None, **changes)
    values["optim"] |= {"minutes": seconds / 60, "least_steps": 5}
    values["log"] |= {"sample_every": 1000, "validate_every": 1000, "checkpoint_every": 4}
    return values


def run_by(machine: Machine, values: dict, kept: float = 0.0, settled: bool = False) -> Trainer:
    """A run by a clock.

    Args:
        machine: The clock, which a step turns by a second.
        values: The settings.
        kept: As of `Trainer`.
        settled: Correct nothing.
    """
    trainer = turned(Trainer(make_config(values), clock=machine, kept=kept), machine)
    make_plan = trainer.plan

    def measured() -> RunPlan:
        plan = make_plan()
        trainer.pace.step_seconds, trainer.pace.worth = 1.0, dict.fromkeys(trainer.pace.worth, 0.0)
        plan.steps = trainer.pace.fitting(0)
        if settled:
            trainer.pace.corrected = lambda *_: None
        return plan

    trainer.plan = measured
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def slowed(tmp_path_factory):
    """A run of 30 seconds on a machine that goes at a third after 10."""
    out = tmp_path_factory.mktemp("pace") / "run"
    machine = Machine(lambda now: 3.0 if now >= 10 else 1.0)
    run_by(machine, minutes(out))
    return out, machine


def test_a_run_is_corrected_while_it_goes_and_its_log_tells_of_it(slowed):
    out, machine = slowed
    assert machine.passed == pytest.approx(30, rel=0.1)
    entries = read_planned(out / "log.jsonl")
    assert entries[0] == (0, 30) and len(entries) > 1
    steps, validations = read_log(out / "log.jsonl")
    assert steps[-1]["step"] == validations[-1]["step"] == entries[-1][1] == pytest.approx(10 + 20 / 3, abs=1)
    newest = max((out / "checkpoints").glob("step_*"))
    progress = json.loads((newest / "progress.json").read_text())
    assert [tuple(entry) for entry in progress["planned"]] == entries and progress["step"] == entries[-1][1]
    rates = [step["lr"] for step in steps[2:]]
    assert rates == sorted(rates, reverse=True)
    stored = json.loads((out / "config.json").read_text())["optim"]
    assert stored["steps"] is None and stored["minutes"] == 0.5


def cut_short(out, copy, checkpoint: str | None):
    """A run as it was when it was killed: with a log that is further than its checkpoint."""
    shutil.copytree(out, copy)
    for folder in (copy / "checkpoints").iterdir():
        if folder.name != checkpoint:
            shutil.rmtree(folder)
    shutil.rmtree(copy / "pipeline")
    log = (copy / "log.jsonl").read_text()
    (copy / "log.jsonl").write_text(log.replace("checkpoint_seconds", "skipped") if checkpoint is None else log)
    stored = json.loads((copy / "config.json").read_text()) | {"out": str(copy)}
    (copy / "config.json").write_text(json.dumps(stored))
    return copy


@pytest.mark.parametrize("checkpoint", [None, "step_00000012"])
def test_a_run_that_goes_on_repeats_its_corrections_and_ends_bit_for_bit_the_same(slowed, tmp_path, checkpoint):
    out, _ = slowed
    cut = cut_short(out, tmp_path / "cut", checkpoint)
    run_by(Machine(lambda now: 0.1), minutes(cut), settled=True)
    assert read_planned(cut / "log.jsonl") == read_planned(out / "log.jsonl")
    whole, again = losses(out), losses(cut)
    assert again[-4:] == whole[-4:]
    mine, theirs = weights(cut), weights(out)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_run_that_goes_on_has_the_time_that_was_left(slowed, tmp_path):
    """Nothing had been corrected by its checkpoint, and its log is gone."""
    out, _ = slowed
    cut = cut_short(out, tmp_path / "cut", "step_00000012")
    file = cut / "checkpoints/step_00000012/progress.json"
    progress = json.loads(file.read_text())
    file.write_text(json.dumps(progress | {"planned": [[0, 30]], "seconds": 15.0}))
    manifest = cut / "checkpoints/step_00000012/manifest.json"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {file.name: digest}))
    (cut / "log.jsonl").unlink()
    machine = Machine(lambda now: 3.0)
    run_by(machine, minutes(cut))
    assert machine.passed == pytest.approx(15, abs=3)
    assert read_log(cut / "log.jsonl")[0][-1]["step"] == pytest.approx(12 + 5, abs=1)


def test_the_time_kept_for_what_follows_is_not_trained_through(tmp_path):
    machine = Machine()
    trainer = run_by(machine, minutes(tmp_path / "run"), kept=10.0)
    assert machine.passed == pytest.approx(20, abs=1) and trainer.seconds_left == pytest.approx(10, abs=1)


def test_a_run_of_an_earlier_version_goes_on_with_the_steps_that_it_settled(slowed, tmp_path):
    out, _ = slowed
    cut = cut_short(out, tmp_path / "cut", None)
    stored = json.loads((cut / "config.json").read_text())
    stored["optim"] |= {"steps": 6, "minutes": None}
    del stored["optim"]["least_steps"]
    (cut / "config.json").write_text(json.dumps(stored))
    (cut / "log.jsonl").unlink()
    values = minutes(cut)
    del values["optim"]["least_steps"]
    trainer = Trainer(make_config(values))
    trainer.run()
    assert trainer.config.optim.steps == 6 and len(losses(cut)) == 6 and trainer.seconds_left is None


def test_other_minutes_are_refused(slowed, tmp_path):
    cut = cut_short(slowed[0], tmp_path / "cut", "step_00000012")
    with pytest.raises(UserError, match=r"optim.minutes: 0.5 then, 1.0 now"):
        Trainer(make_config(minutes(cut, seconds=60.0))).run()


def test_a_run_that_its_least_number_of_steps_makes_longer_says_so_once(tmp_path, capsys):
    machine = Machine(lambda now: 20.0)
    run_by(machine, minutes(tmp_path / "run"))
    said = capsys.readouterr()
    assert (said.out + said.err).count("optim.least_steps=5 makes the run longer") == 1
    assert len(losses(tmp_path / "run")) == 5


@pytest.mark.parametrize(("start", "seconds"), [(40, 12), (55, 20), (150, 12)])
def test_a_stall_that_passes_does_not_end_a_run(start, seconds):
    machine = Machine(lambda now: 40.0 if start <= now < start + seconds else 1.0)
    _, steps, _ = simulate(machine, chore=2.0)
    assert machine.passed == pytest.approx(SECONDS, rel=0.1)
    assert steps > 0.6 * (SECONDS - seconds) / 0.2
