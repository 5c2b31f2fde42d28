"""Every metric on sets whose answer is known, and the networks that images are measured by."""

import math

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from attndiff.data.columns import IMAGE
from attndiff.data.rows import Rows
from attndiff.data.subset import Subset
from attndiff.errors import UserError
from attndiff.metrics.controls import CONTROLS, blurred, composed, exchanged_quarters, noised
from attndiff.metrics.extractors import choose, inception
from attndiff.metrics.extractors.base import Extractor, NothingLearned, rgb_levels
from attndiff.metrics.extractors.choose import choose_extractor
from attndiff.metrics.extractors.pretext import Material
from attndiff.metrics.extractors.trained import FEATURES, trained_extractor
from attndiff.metrics.frechet import frechet_distance
from attndiff.metrics.kernel import kernel_distance
from attndiff.metrics.manifold import density_coverage, precision_recall
from attndiff.metrics.measure import all_metrics, measure


def normal(n: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n: int, features: int, seed: int = 0) -> torch.Tensor:
    """Points with exactly zero mean and unit covariance."""
    x = normal(n, features, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T


# Distances


def test_equal_sets_are_at_no_distance():
    x = normal(300, 16)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    unrelated = kernel_distance(normal(2000, 4), normal(2000, 4, seed=1))
    assert abs(unrelated) < 0.05


def test_frechet_distance_of_gaussians_is_the_closed_form():
    """For covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2 over standard deviations."""
    scale = torch.linspace(0.5, 3, 12, dtype=torch.float64)
    shift = torch.arange(12, dtype=torch.float64) / 4
    basis = torch.linalg.qr(normal(12, 12, seed=3)).Q
    x = whitened(400, 12) @ basis
    y = (whitened(500, 12, seed=1) * scale + shift) @ basis
    expected = (shift.square().sum() + (scale - 1).square().sum()).item()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_where_covariances_do_not_commute():
    """Against the root of the unsymmetric product, from its complex eigenvalues."""
    x, y = (normal(200, 6, seed) @ normal(6, 6, seed + 10) for seed in (1, 2))
    c1, c2 = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    root = np.sqrt(np.linalg.eigvals(c1 @ c2).astype(complex)).real.sum()
    mean = np.square((x.mean(0) - y.mean(0)).numpy()).sum()
    assert frechet_distance(x, y) == pytest.approx(mean + np.trace(c1) + np.trace(c2) - 2 * root, rel=1e-8)


def test_frechet_distance_with_features_that_never_change():
    x = torch.cat([whitened(100, 3), torch.ones(100, 2)], 1)
    assert frechet_distance(x, x + 2) == pytest.approx(20, rel=1e-9)


def test_frechet_distance_says_what_it_needs():
    with pytest.raises(ValueError, match="at least 17"):
        frechet_distance(normal(16, 16), normal(50, 16))


def test_kernel_distance_of_two_points_by_hand():
    """k(x, y) = (x y + 1)^3 of {0, 1} and {2, 3}: k(0, 1) = 1, k(2, 3) = 343, mean k(x, y) = (1 + 1 + 27 + 64) / 4."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    assert kernel_distance(x, y) == pytest.approx(1 + 343 - 2 * 93 / 4, rel=1e-12)


def test_kernel_distance_of_shifted_gaussians_is_the_closed_form():
    """With one feature, 3 dm1^2 + 3 dm2^2 + dm3^2 of the differences of the first three moments; and no bias."""
    shift = 0.7
    moments = (3 * shift**2, 3 * shift**4, (shift**3 + 3 * shift) ** 2)
    estimates = [kernel_distance(normal(60, 1, s), normal(60, 1, 1000 + s) + shift) for s in range(400)]
    spread = np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(sum(moments), abs=3 * spread)
    assert spread < 0.1 * sum(moments)


# Precision, recall, density, coverage


def test_equal_and_distant_sets():
    x = normal(200, 8)
    assert precision_recall(x, x) == (1, 1)
    density, coverage = density_coverage(x, x)
    assert coverage == 1
    # Every ball holds its own point and its five nearest.
    assert density == pytest.approx(6 / 5)
    assert precision_recall(x, x + 100) == (0, 0)
    assert density_coverage(x, x + 100) == (0, 0)


def test_samples_of_the_same_kind_score_as_real_images_do():
    scores = [
        *precision_recall(normal(800, 4), normal(800, 4, 1)),
        *density_coverage(normal(800, 4), normal(800, 4, 1)),
    ]
    assert scores == pytest.approx([0.85, 0.85, 1, 0.96], abs=0.12)


def modes(n: int, present: int, seed: int) -> torch.Tensor:
    """Points of ten well-separated clusters, of the first few of them only."""
    centres = torch.arange(n) % present
    return normal(n, 3, seed) + 100 * torch.stack([centres, 0 * centres, 0 * centres], 1)


def test_dropped_modes_lower_recall_and_coverage_alone():
    real, generated = modes(500, 10, 0), modes(500, 4, 1)
    precision, recall = precision_recall(real, generated)
    density, coverage = density_coverage(real, generated)
    assert precision > 0.7 and density > 0.7
    assert recall < 0.4 and coverage <= 0.4


def test_one_sample_over_and_over_is_precise_and_covers_nothing():
    real = normal(200, 3)
    collapsed = real[:1].expand(200, 3)
    precision, recall = precision_recall(real, collapsed)
    assert (precision, recall) == (1, 1 / 200)
    assert density_coverage(real, collapsed)[1] < 0.15


def test_duplicated_sets_have_balls_of_no_size():
    """With k + 1 copies of each point every radius is zero, and only copies lie inside."""
    real = normal(30, 3).repeat(6, 1)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1e-3) == (0, 0)
    assert density_coverage(real, real)[1] == 1


def test_too_few_neighbours_are_refused():
    with pytest.raises(ValueError, match="4 are needed"):
        precision_recall(normal(3, 2), normal(9, 2))
    with pytest.raises(ValueError, match="6 are needed"):
        density_coverage(normal(5, 2), normal(9, 2))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(normal(1, 2), normal(9, 2))


# What measures


def pictures(n: int, seed: int = 0, channels: int = 3) -> torch.Tensor:
    """Images with a bright upper half, in random colours: which way is up can be told."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, 16, 16, generator=generator) * 0.4 - 1
    images[:, :, :8] += torch.rand(n, channels, 1, 1, generator=generator) * 0.8 + 0.6
    return images


class Images(Rows):
    """Unlabelled images as a set."""

    columns = (IMAGE,)

    def __init__(self, pixels: torch.Tensor):
        self.values = pixels

    def __len__(self):
        return len(self.values)

    def load(self, i, name):
        return self.values[i].numpy()

    def name(self, i):
        return str(i)

    def cells(self, i):
        return {}

    def by_shape(self):
        return {tuple(self.values.shape[2:]): np.arange(len(self))}

    def describe(self):
        return {"channels": [f"band{i}" for i in range(self.values.shape[1])]}


def subsets(n: int, channels: int = 3):
    return [Subset(Images(pictures(n, seed, channels)), range(n)) for seed in range(3)]


def material(images: torch.Tensor, captions: list[str] | None = None, **columns: list[str]) -> Material:
    return Material(images, captions and [[caption] for caption in captions], columns)


def test_of_images_of_which_nothing_is_said_a_network_learns_what_they_show():
    made = [trained_extractor(material(pictures(192)), material(pictures(40, 1))) for _ in range(2)]
    turns = made[0].accuracy["pretexts"]["quarter-turns"]
    assert turns["value"] > 0.9 and turns["floor"] == 0.25 and turns["n"] == 160
    assert turns["interval"][0] < turns["value"] <= turns["interval"][1] <= 1
    assert "quarter-turns" in made[0].name and made[0].name == made[1].name and not made[0].own
    assert torch.equal(made[0](pictures(20, 2)), made[1](pictures(20, 2)))
    assert made[0](pictures(20, 2)).shape == (20, FEATURES)
    other = trained_extractor(material(pictures(192)), material(pictures(40, 1)), seed=1)
    assert other.name != made[0].name


def test_large_images_are_seen_at_64_pixels():
    extractor = trained_extractor(material(pictures(64)), material(pictures(10, 1)))
    large = torch.nn.functional.interpolate(pictures(4, 2), scale_factor=8)
    halved = torch.nn.functional.interpolate(pictures(4, 2), scale_factor=4)
    assert torch.allclose(extractor(large), extractor(halved), atol=1e-5)


def coloured(n: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Images of twelve colours, and their names."""
    numbers = [i % 12 for i in range(n)]
    levels = torch.tensor([[i % 3 - 1, i // 3 % 2 * 2 - 1, i // 6 * 2 - 1] for i in range(12)]).float()
    noise = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return 0.8 * levels[numbers].view(n, 3, 1, 1) + 0.1 * noise, [f"colour {i}" for i in numbers]


def test_what_is_said_of_images_is_learned_and_what_cannot_be_is_left_out():
    """Captions and a column that tell of the images, beside a column of chance and one without classes."""
    parts = []
    for n, seed in ((360, 0), (120, 1)):
        images, captions = coloured(n, seed)
        coin = torch.randint(2, (n,), generator=torch.Generator().manual_seed(9 + seed)).tolist()
        said = {
            "half": [str(int(c[7:]) // 6) for c in captions],
            "coin": [*map(str, coin)],
            "file": [*map(str, range(n))],
        }
        parts.append(material(images, captions, **said))
    extractor = trained_extractor(*parts)
    assert extractor.name.split("@")[0] == "attndiff-classifier:captions+half"
    results = extractor.accuracy["pretexts"]
    assert set(results) == {"captions", "half", "coin"}
    assert results["captions"]["value"] > 0.9 and results["captions"]["floor"] == pytest.approx(1 / 12)
    assert results["half"]["value"] > 0.9 and results["half"]["floor"] == 0.5
    assert results["coin"]["interval"][0] < 0.5 < results["coin"]["interval"][1]
    assert extractor.accuracy["pretext"] in ("captions", "half")


def test_a_network_that_has_learned_nothing_is_refused():
    """Images that are all alike have neither classes nor a way up, and no window is more like one than another."""
    parts = [material(torch.ones(n, 1, 16, 16), kind=[str(i % 2) for i in range(n)]) for n in (100, 60)]
    with pytest.raises(NothingLearned, match=r"learned nothing.*kind 0\..*where chance is 0\.50") as refusal:
        trained_extractor(*parts)
    assert set(refusal.value.results) == {"kind", "windows", "quarter-turns"}


def test_too_few_images_for_the_features_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(choose.trained, "trained_extractor", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match=r"100 images.*128 features.*at least 129 held-out"):
        choose_extractor("classifier", *subsets(100), 0, "cpu")
    with pytest.raises(UserError, match=r"at least 2049 held-out"):
        choose_extractor("inception", *subsets(100), 0, "cpu")


def test_every_number_has_its_n_extractor_and_floor():
    flat = Extractor("means", lambda images: images.mean((2, 3)))
    real, generated, others = pictures(60), pictures(60, 1) + 0.5, pictures(60, 2)
    report = measure(real, generated, others, flat)
    assert set(report) == {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}
    floors = all_metrics(flat(real), flat(others))
    for name, entry in report.items():
        assert (entry["n"], entry["extractor"], entry["floor"]) == (60, "means", floors[name])
        assert set(entry["controls"]) == set(CONTROLS)
        assert entry["judges"] == ("why_not" not in entry)
    # Means see neither blur nor exchanged quarters.
    assert not report["frechet_distance"]["judges"]
    assert "blurred real images" in report["precision"]["why_not"]
    assert report["frechet_distance"]["value"] > 10 * report["frechet_distance"]["floor"]


def test_controls_spoil_what_they_say():
    images = pictures(14)
    assert torch.allclose(blurred(images).mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.02)
    assert blurred(images).diff(dim=3).abs().mean() < 0.5 * images.diff(dim=3).abs().mean()
    assert (noised(images) - images).std() == pytest.approx(0.2, abs=0.03) and torch.equal(
        noised(images), noised(images)
    )
    odd = torch.arange(15.0).view(1, 1, 3, 5)
    assert exchanged_quarters(odd)[0, 0].tolist() == [[13, 14, 2, 10, 11], [5, 6, 7, 8, 9], [3, 4, 12, 0, 1]]
    assert torch.equal(exchanged_quarters(exchanged_quarters(images)), images)
    made = composed(torch.arange(14.0).view(14, 1, 1, 1).expand(14, 1, 4, 4))
    assert all(len(image.unique()) == 4 for image in made) and made[:, :, 0, 0].flatten().tolist() == list(range(14))


def test_what_tells_every_control_apart_judges():
    """Features of all pixels of simple images against features of noise alone."""
    images = [torch.nn.functional.avg_pool2d(pictures(60, seed, 1), 2) for seed in range(3)]
    sees = Extractor("pixels", lambda x: torch.cat([x.flatten(1), 10 * x.diff(dim=3).flatten(1)], 1))
    report = measure(images[0], images[1], images[2], sees, distances_unguarded)
    assert report["kernel_distance"]["judges"] and "why_not" not in report["kernel_distance"]
    blind = Extractor("nothing", lambda x: torch.randn(len(x), 4, generator=torch.Generator().manual_seed(len(x))))
    assert not measure(images[0], images[1], images[2], blind)["kernel_distance"]["judges"]


def distances_unguarded(real, generated, singular=False):
    return {"kernel_distance": kernel_distance(real, generated)}


def test_only_the_standard_inception_measures_fid_and_kid():
    standard = Extractor("inception", lambda images: images.mean((2, 3)), standard=True)
    report = measure(pictures(60), pictures(60, 1), pictures(60, 2), standard)
    assert {"fid", "kid"} < set(report) and not {"frechet_distance", "kernel_distance"} & set(report)


def test_levels_of_other_channels():
    grey = rgb_levels(torch.zeros(1, 1, 2, 2), "x")
    assert grey.shape == (1, 3, 2, 2) and (grey == 128).all()
    for bands in (4, 5):
        with pytest.raises(UserError, match=rf"inception sees RGB images, not {bands} channels"):
            rgb_levels(torch.zeros(1, bands, 2, 2), "inception")


@pytest.fixture
def vision_folder(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_a_vision_model_of_transformers_measures(vision_folder):
    extractor = choose_extractor(str(vision_folder), *subsets(40), 0, "cpu")
    assert extractor.name == str(vision_folder)
    assert extractor(pictures(70)).shape == (70, 16)
    assert not torch.allclose(extractor(pictures(2)), extractor(pictures(2, 1)))


def test_a_vision_model_in_a_pickle_is_refused(vision_folder):
    (weights,) = vision_folder.glob("*.safetensors")
    torch.save({}, vision_folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=str(vision_folder)):
        choose_extractor(str(vision_folder), *subsets(40), 0, "cpu")


def test_an_unknown_extractor_is_refused():
    with pytest.raises(UserError, match=r"inceptoin.*give inception, classifier"):
        choose_extractor("inceptoin", *subsets(4), 0, "cpu")


def test_missing_weights_say_where_they_go(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/none.pth")
    with pytest.raises(UserError, match=rf"{tmp_path}.*{inception.FILE}.*could not be downloaded"):
        inception.read_weights()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not inception.inception_at_hand()


def test_other_weights_are_not_inceptions(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    inception.weights_file().parent.mkdir(parents=True)
    torch.save({"fc.weight": torch.zeros(1)}, inception.weights_file())
    with pytest.raises(UserError, match="6726825d"):
        inception.read_weights()


def test_the_published_file_is_read_without_running_it(tmp_path, monkeypatch):
    """A pickle that would build more than tensors is refused even under the right hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = inception.weights_file()
    file.parent.mkdir(parents=True)
    torch.save({"fc.weight": torch.ones(2), "data": Images(torch.zeros(1))}, file)
    monkeypatch.setattr(inception, "SHA256", inception.hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(Exception, match="weights_only"):
        inception.read_weights()
    torch.save({"fc.weight": torch.ones(2)}, file)
    monkeypatch.setattr(inception, "SHA256", inception.hashlib.sha256(file.read_bytes()).hexdigest())
    assert inception.read_weights()["fc.weight"].tolist() == [1, 1]
