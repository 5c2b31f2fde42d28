"""The quickstart from end to end, with a tiny model and runs of two steps in place of the bundled ones."""

import json

import pytest
from commands import WORDS, attndiff, make_config, make_images, tree
from factories import student_pipeline, text_pipeline
from PIL import Image

from attndiff.apps.quickstart import Quickstart, Tour, check_folder, claim_folder, run_quickstart
from attndiff.apps.timetable import Timetable
from attndiff.clock import Deadline

STAGES = 6
PICTURES = (
    *("samples", "student_samples", "attention"),
    *("trained_samples", "class_samples", "loss_curve", "class_loss_curve"),
)


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """A tour that takes seconds."""
    root = tmp_path_factory.mktemp("tour")
    text_pipeline().save_pretrained(root / "model")
    student_pipeline(text_pipeline).save_pretrained(root / "student")
    images = make_images(root / "images")
    style = make_config(root / "style.yaml", images, root / "unused", model={"init_from": str(root / "model")})
    classes = make_config(
        root / "classes.yaml",
        images,
        root / "unused",
        data={"caption_column": None, "label_column": "label"},
        condition={"kind": "class"},
        log={"prompts": []},
    )
    return Tour(
        model=str(root / "model"),
        student=str(root / "student"),
        concepts=("red apple", "blue heart"),
        styles=("flat", "3d"),
        looked_inside=("red apple, flat",),
        style_recipe=str(style),
        class_recipe=str(classes),
        overrides={str(style): ["optim.steps=3"]},
        steps=2,
    )


@pytest.fixture(scope="module")
def finished(tour, tmp_path_factory):
    """The folder of a quickstart, and what it returned.

    Its two openers run at once, so that each must bring a cache of code of its own: the shared one is no folder here.
    """
    out = tmp_path_factory.mktemp("quickstart")
    no_folder = tmp_path_factory.mktemp("cache") / "modules"
    no_folder.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(no_folder))
        return out, run_quickstart(out, tour)


def test_the_report_names_everything_and_all_of_it_exists(finished):
    out, report = finished
    assert json.loads((out / "report.json").read_text()) == report
    for key in ("bundled_model", "trained_model", "class_model"):
        assert (out / report[key] / "model_index.json").is_file()
    for key in PICTURES:
        assert Image.open(out / report[key]).width > 100, key
    assert report["student"]["images"] == 16 and report["student"]["steps"] == 2
    assert len(report["seconds"]) == STAGES and all(seconds > 0 for seconds in report["seconds"].values())


def test_the_markdown_shows_every_picture_and_the_next_command(finished):
    out, report = finished
    text = (out / "report.md").read_text()
    for key in PICTURES:
        assert f"]({report[key]})" in text, key
    assert report["next"][0] in text and f"sample {out / 'style/pipeline'}" in report["next"][0]


def test_recipes_take_the_settings_of_the_tour(finished):
    out, report = finished
    assert report["training"]["style"]["steps"] == 3 and report["training"]["classes"]["steps"] == 2
    assert json.loads((out / "style/config.json").read_text())["out"] == str(out / "style")


def test_both_trained_folders_were_opened_elsewhere(finished):
    out, report = finished
    assert len(list((out / "style/opened").glob("*.png"))) == len(WORDS[:2])
    assert len(list((out / "classes/opened").glob("*.png"))) == len(report["prompts"]["classes"]) == 8


def test_the_trained_model_can_be_sampled(finished, tmp_path):
    out, report = finished
    result = attndiff("sample", out / report["trained_model"], "red apple", "--steps", 1, "--out", tmp_path / "g.png")
    assert result.code == 0, result.err


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    before = tree(tmp_path)
    result = attndiff("quickstart", "--out", tmp_path)
    assert result.code == 2 and str(tmp_path) in result.err and result.err.count("\n") == 1
    assert tree(tmp_path) == before


def test_an_earlier_quickstart_is_redone_and_what_was_added_kept(tmp_path):
    claim_folder(tmp_path / "out")
    (tmp_path / "out/style").mkdir()
    (tmp_path / "out/style/log.jsonl").write_text("old")
    (tmp_path / "out/mine.png").write_text("added by hand")
    check_folder(tmp_path / "out")
    claim_folder(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".attndiff-quickstart", "mine.png"]


class Simulated(Quickstart):
    """The stages of a real quickstart with nothing in them but time: sampling turns the clock, training keeps to it."""

    def __init__(self, slowness):
        self.out, self.tour, self.now, self.slowness = "unused", Tour(), 0.0, slowness
        self.trained: list[float] = []

    def work(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += self.slowness(self.now)

    def train(self, seconds: float) -> None:
        self.trained.append(seconds)
        self.now += seconds

    def sample(self) -> None:
        self.work(15)

    def sample_student(self) -> None:
        self.work(5)

    def look_inside(self) -> None:
        self.work(15)

    def open_elsewhere(self) -> None:
        self.work(40)

    train_style = train_classes = train


def simulated(slowness) -> tuple[Simulated, list[float]]:
    """A quickstart by a clock, and the seconds that it said were left before each stage."""
    tour = Simulated(slowness)
    timetable = Timetable(tour.stages(), Deadline.after(60 * tour.tour.minutes, lambda: tour.now))
    return tour, [left for _, left in timetable.run()]


def test_an_idle_machine_needs_less_than_the_ten_minutes():
    tour, left = simulated(lambda now: 1.0)
    assert tour.trained == [240, 120] and tour.now == left[0] == 435


@pytest.mark.parametrize("lost", [(0, 300), (300, 600), (0, 600), (150, 450)], ids=str)
@pytest.mark.parametrize("times", [2.0, 4.0])
def test_ten_minutes_are_kept_on_a_machine_that_slows_down_in_them(lost, times):
    tour, left = simulated(lambda now: times if lost[0] <= now < lost[1] else 1.0)
    assert tour.now <= 660 and len(left) == STAGES
    assert tour.trained[0] >= 1.5 * tour.trained[1] > 60


def test_a_machine_far_too_slow_still_trains():
    tour, _ = simulated(lambda now: 30.0)
    assert tour.trained == [1, 1]  # the runs' least number of steps is what they take


def test_a_recipe_gets_the_minutes_that_there_are_for_it(tmp_path):
    tour = Tour(overrides={"faces": ["optim.minutes=null", "optim.steps=9"]})
    assert tour.config("emoji-style", tmp_path, 90).optim.minutes == 1.5
    assert tour.config("emoji-style", tmp_path).optim.minutes == 4
    optim = tour.config("faces", tmp_path, 90).optim
    assert optim.minutes is None and optim.steps == 9
