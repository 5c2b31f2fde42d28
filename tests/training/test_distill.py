"""Few-step students: the loss against paths known in closed form, the pipeline, the run, and what is refused."""

import copy
import json
import shutil

import pytest
import torch
from commands import attndiff, make_images
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from factories import class_pipeline, student_pipeline, text_pipeline, tiny_encoder, tiny_unet, unconditional_pipeline

from attndiff.diffusion.objectives import make_objective
from attndiff.diffusion.paths import expand
from attndiff.errors import UserError
from attndiff.folder.open import load
from attndiff.training.config import DistillConfig, OptimConfig
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.heads.student import StudentModel
from attndiff.training.optim import make_optimizers, set_lr

DEVIATION = 0.3  # of the Gaussian pixels below


def velocity_at(x, t):
    """The flow of pixels of standard deviation `DEVIATION` around 0."""
    t = expand(t, x)
    return x * (t - (1 - t) * DEVIATION**2) / ((1 - t) ** 2 * DEVIATION**2 + t**2)


def prediction_at(x, t):
    """What a perfect student predicts: its path's clean end lies at ``x`` minus ``t`` times this."""
    t = expand(t, x)
    end = x * DEVIATION / ((1 - t) ** 2 * DEVIATION**2 + t**2).sqrt()
    return (x - end) / t


def make_batch(n=64):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, 16, 16, generator=generator) * DEVIATION
    noise = torch.randn(n, 3, 16, 16, generator=generator)
    level, labels = torch.randn(n, generator=generator), torch.arange(n) % 3
    drop = torch.zeros(n, dtype=torch.bool)
    return {"images": images, "noise": noise, "normal": level, "class_labels": labels, "drop": drop}


def make_student(**settings) -> StudentModel:
    source = DenoisingModel(tiny_unet(conditional=True), tiny_encoder(num_classes=3), make_objective({}))
    return StudentModel(source, DistillConfig(**settings))


@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_a_perfect_student_of_a_guided_teacher_has_almost_no_loss(progress):
    student, batch = make_student(guidance_scale=3.0), make_batch()
    seen = []

    def teach(x, level, batch):
        seen.append(batch["drop"].float().mean().item())
        share = 1 / 4 if batch["drop"].all() else 1 / 2  # guided: 1/4 + 3 (1/2 - 1/4) = 1
        return velocity_at(x, level) * share

    student.teacher.predict, student.predict = teach, lambda x, level, batch: prediction_at(x, level)
    student.set_progress(progress)
    gap = student.gap.item()
    assert gap == pytest.approx(0.25 ** (1 - progress) * (1 / 8) ** progress)
    perfect = student.consistency_loss(batch)
    assert sorted(seen) == [0.0, 1.0]
    student.predict = lambda x, level, batch: velocity_at(x, level)  # a denoiser, whose ends are means of many paths
    assert perfect.mean() < 0.5 * gap
    assert perfect.mean() < 0.2 * student.consistency_loss(batch).mean()


def test_without_guidance_the_path_is_that_of_the_image_itself_and_there_is_no_second_network():
    student, batch = make_student(guidance_scale=1.0), make_batch(4)
    assert not hasattr(student, "adversary") or student.adversary is None
    with pytest.raises(IndexError):
        student.teacher  # noqa: B018
    ends = []
    student.end_of_path = lambda x, level, batch: ends.append((x, level)) or x
    student.consistency_loss(batch)
    for x, level in ends:
        torch.testing.assert_close(x, student.objective.add_noise(batch["images"], batch["noise"], level))


def test_the_last_step_reaches_the_image_itself():
    student, batch = make_student(guidance_scale=1.0), make_batch(4)
    torch.testing.assert_close(student.end_of_path(batch["images"], torch.zeros(4), batch), batch["images"])


def test_each_adversarial_loss_reaches_its_own_parameters():
    student, batch = make_student(adversarial_weight=1.0), make_batch(4)
    before = copy.deepcopy(dict(student.teacher.named_parameters()))
    loss = student.adversarial_loss(batch)
    student.adversarial_loss(batch).sum().backward()
    assert loss.shape == (4,)
    generator = student.unet.head.weight.grad.clone()
    heads = [p.grad.clone() for p in student.adversary.parameters()]
    assert generator.abs().sum() > 0 and heads[-2].abs().sum() > 0
    student.zero_grad()
    student.settings.adversarial_weight = 0.0  # no word to the generator: the heads learn the same, it learns nothing
    student.adversarial_loss(batch).sum().backward()
    assert student.unet.head.weight.grad.abs().sum() == 0
    for p, gradient in zip(student.adversary.parameters(), heads, strict=True):
        torch.testing.assert_close(p.grad, gradient)
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in student.teacher.named_parameters())


def test_a_discriminator_keeps_its_rate_while_that_of_the_student_falls():
    student = make_student(adversarial_weight=1.0)
    optimizers = make_optimizers(student, OptimConfig(steps=10))
    before = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    set_lr(optimizers, 0.5)
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [before[0] / 2, before[1] / 2, before[2]]
    owned = [p for optimizer in optimizers for p in optimizer.param_groups[0]["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, student.parameters()))
    assert [id(p) for p in optimizers[2].param_groups[0]["params"]] == [id(p) for p in student.adversary.parameters()]


@pytest.mark.parametrize("settings", [{"guidance_scale": 1.0}, {"adversarial_weight": 0.5}], ids=str)
def test_the_loss_compiles_without_a_break_once_for_all_steps(settings):
    student, batch = make_student(**settings), make_batch(4)
    shares = (0.0, 0.2, 0.4, 0.6, 0.8)
    plain = []
    for share in shares:
        student.set_progress(share)
        plain.append(student(batch))
    frames = []

    def count(graph, inputs):
        frames.append(graph)
        return graph

    student.compile(fullgraph=True, dynamic=False, backend=count)
    for share, expected in zip(shares, plain, strict=True):
        student.set_progress(share)
        torch.testing.assert_close(student(batch), expected)
    assert len(frames) == (2 if student.adversary else 1)  # without and with the discriminator


def test_the_teacher_is_no_part_of_what_is_trained_and_stored():
    plain = DenoisingModel(tiny_unet(conditional=True), tiny_encoder(num_classes=3), make_objective({}))
    assert set(make_student().state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sampling_draws_new_noise_at_every_step_from_the_generator(steps):
    """Of a perfect student, samples have the data's spread at any number of steps, whatever the levels."""
    pipe = student_pipeline(unconditional_pipeline)

    def perfect(x, coordinate, **_):
        t = torch.sigmoid(4 * coordinate)
        scale = expand(((1 - t) ** 2 * 0.25 + t**2).sqrt(), x)  # the objective's input scaling
        return type("Out", (), {"sample": prediction_at(x * scale, t)})

    pipe.unet.forward = perfect
    arguments = {"num_images_per_prompt": 64, "num_inference_steps": steps, "output_type": "latent"}

    def make():
        return pipe(**arguments, generator=torch.Generator().manual_seed(1)).images

    first = make()
    assert first.std().item() == pytest.approx(DEVIATION, rel=0.02)
    assert torch.equal(first, make())


def test_a_student_samples_as_it_was_made_to_by_default(tmp_path):
    pipe = student_pipeline(text_pipeline)
    seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    plain = pipe("red apple", generator=seed(), output_type="np").images
    told = pipe("red apple", sigmas=[1.0, 0.4], guidance_scale=1.0, generator=seed(), output_type="np").images
    assert (plain == told).all()
    pipe.save_pretrained(tmp_path)
    for opened in (load(tmp_path), DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)):
        assert (opened("red apple", generator=seed(), output_type="np").images == plain).all()


def test_a_student_refuses_guidance_twice_and_schedulers_that_follow_velocities():
    pipe = student_pipeline(text_pipeline)
    with pytest.raises(ValueError, match=r"guidance_scale 2: .* guidance of 3 built in; leave guidance_scale out"):
        pipe("red apple", guidance_scale=2.0)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    for scheduler in (FlowMatchEulerDiscreteScheduler(), UniPCMultistepScheduler(**flow)):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=r"scheduler: .*few-step student.*stochastic_sampling=True"):
            pipe("red apple")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("distill")
    make_images(root / "images")
    for name, make in {"text": text_pipeline, "class": class_pipeline, "none": unconditional_pipeline}.items():
        make().save_pretrained(root / name)
    student_pipeline(text_pipeline).save_pretrained(root / "student")
    unconditional_pipeline(objective={"name": "edm"}).save_pretrained(root / "edm")
    return root


TINY = ["optim.batch_size=4", "optim.precision=fp32", "log.tracker=null", "log.checkpoint_every=2", "log.every=1"]


def distil(place, out, *more):
    arguments = ["--data", place / "images", "--out", out, "--steps", 4, *TINY]
    return attndiff("distill", place / "text", *arguments, *more)


def test_the_command_ends_with_a_student_and_a_picture_of_both(place, tmp_path):
    result = distil(place, tmp_path / "run", "--adversarial", 0.5)
    assert result.code == 0, result.err
    assert (tmp_path / "run/distill.png").stat().st_size > 0
    report = json.loads((tmp_path / "run/distill.json").read_text())
    assert {name: way["calls"] for name, way in report.items()} == {
        "teacher, its own, 17 steps": 34,
        "teacher, Euler, 17 steps": 34,
        "teacher, Heun, 9 steps": 34,
        "teacher, DPM-Solver++, 17 steps": 34,
        "teacher, 4 steps": 8,
        "student, 4 steps": 4,
        "student, 2 steps": 2,
        "student, 1 step": 1,
    }
    card = (tmp_path / "run/pipeline/README.md").read_text()
    assert "few-step student of `text`" in card and "guidance of 3 built in" in card
    pipe = load(tmp_path / "run/pipeline")
    assert pipe.config.student["sigmas"]["4"] == [1.0, 0.75**0.75, 0.5**0.75, 0.25**0.75]
    assert not any("adversary" in name for name in dict(pipe.unet.named_parameters()))
    assert attndiff("sample", tmp_path / "run/pipeline", "red apple", "--out", tmp_path / "g.png").code == 0


def test_minutes_are_for_the_comparison_too(place, tmp_path):
    arguments = ["--data", place / "images", "--out", tmp_path / "run", "--minutes", 0.01, "optim.least_steps=4"]
    result = attndiff("distill", place / "text", *arguments, *TINY)
    assert result.code == 0, result.err
    assert "of 0.01 min are kept to compare the student with its teacher" in result.out
    assert "optim.least_steps=4 makes the run longer than the time it was given" in result.err
    assert {"student, 1 step", "teacher, 4 steps"} < set(json.loads((tmp_path / "run/distill.json").read_text()))
    assert (tmp_path / "run/distill.png").stat().st_size > 0


def test_a_run_cut_short_goes_on_to_the_same_student(place, tmp_path):
    assert distil(place, tmp_path / "whole", "--adversarial", 0.5).code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000004")
    shutil.rmtree(tmp_path / "cut/pipeline")
    result = distil(place, tmp_path / "cut", "--adversarial", 0.5)
    assert result.code == 0 and "at step 2" in result.out, (result.out, result.err)
    weights = [(tmp_path / run / "pipeline/unet").glob("*.safetensors") for run in ("whole", "cut")]
    for whole, cut in zip(*map(sorted, weights), strict=True):
        assert whole.read_bytes() == cut.read_bytes()
    result = distil(place, tmp_path / "cut", "--guidance", 2)
    assert result.code == 2 and "distill.guidance_scale: 3.0 then, 2.0 now" in result.err


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("student", [], ["student", "already"]),
        ("edm", [], ["edm", "flow"]),
        ("none", ["--guidance", 3], ["unconditional", "guidance_scale"]),
        ("text", ["--n", 50], ["--n 50", "6"]),
        ("text", ["--minutes", 1], ["--minutes", "--steps"]),
        ("text", ["distill.first_gap=2"], ["distill.first_gap"]),
        ("text", ["log.guidance_scale=3"], ["log.guidance_scale", "1"]),
        ("text", ["data.size=17"], ["17"]),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_written(place, tmp_path, model, more, words):
    arguments = ["--data", place / "images", "--out", tmp_path / "run", "--steps", 2]
    result = attndiff("distill", place / model, *arguments, *more)
    assert result.code == 2 and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in words), result.err
    assert not (tmp_path / "run").exists()


def test_a_student_of_an_absent_model_is_refused():
    with pytest.raises(UserError, match=r"model.init_from"):
        from attndiff.training.config import make_config

        make_config({"out": "x", "data": {"path": "y"}, "optim": {"steps": 1}, "distill": {}})
