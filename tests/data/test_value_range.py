"""Values in units: read over a range, kept, and written again."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image
from valued import KINDS, write_dicom, write_geotiff, write_nifti, write_values

from attndiff.data import image_set
from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose
from attndiff.data.image_set import ImageSet
from attndiff.data.pixels.normalize import Normalizer
from attndiff.data.pixels.values import ValueRange
from attndiff.data.pixels.writers import save_image, to_data_units
from attndiff.data.streams.encoded import EncodedImages, readable
from attndiff.errors import UserError
from attndiff.viewing import as_picture, window_of

SIZE = 16
VALUES = np.linspace(-1024, 3071, SIZE * SIZE).round().reshape(SIZE, SIZE)
BODY = ValueRange(-1000, 1000, "HU")


def config(path, **options) -> DataConfig:
    return DataConfig(**{"path": str(path), "size": SIZE, "channels": "L", **options})


def normalizer(value_range: ValueRange | None = None, channels: str | int = "L") -> Normalizer:
    return Normalizer(SIZE, channels, value_range=value_range)


# Over a range that is set


@pytest.mark.parametrize("channels", ["L", 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_is_placed_in_the_range(tmp_path, kind, channels):
    image = normalizer(BODY, channels).normalize(write_values(tmp_path, kind, VALUES))
    expected = (np.clip(VALUES, -1000, 1000) + 1000) / 2000
    tolerance = 1e-3 if kind == "float16 tif" else 1e-6  # halves are whole to 2048
    assert image.levels.dtype == np.float32
    np.testing.assert_allclose(image.levels[0], expected, atol=tolerance)
    assert image.notes == ["up to 100 % of the values outside of data.value_range: clipped"]
    assert image.stands_for == BODY and image.found == pytest.approx((-1024, 3071), abs=2)


@pytest.mark.parametrize("kind", ["uint8 png", "uint16 png"])
def test_pictures_hold_values_too(tmp_path, kind):
    values = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    Image.fromarray(values.astype(kind.split()[0])).save(tmp_path / "a.png")
    for channels in ("L", 1):
        image = normalizer(ValueRange(0, 510), channels).normalize(tmp_path / "a.png")
        np.testing.assert_allclose(image.levels[0], values / 510, atol=1e-7)
        assert image.notes == [] and image.found == (0, 255)


def test_bands_and_colours_share_the_range(tmp_path):
    values = np.random.default_rng(0).integers(-50, 50, (SIZE, SIZE, 5)).astype(np.int16)
    tifffile.imwrite(tmp_path / "a.tif", values, planarconfig="contig")
    image = normalizer(ValueRange(-100, 100), 5).normalize(tmp_path / "a.tif")
    np.testing.assert_allclose(image.levels.transpose(1, 2, 0), (values + 100) / 200, atol=1e-6)


def test_how_much_is_clipped_is_said(tmp_path):
    values = np.zeros((100, 100), np.int16)
    for count, share in ((0, None), (5, "0.1"), (50, "1"), (500, "10")):
        values.flat[:count] = 7
        np.save(tmp_path / "a.npy", values)
        notes = Normalizer(100, "L", value_range=ValueRange(-5, 5)).normalize(tmp_path / "a.npy").notes
        assert notes == ([f"up to {share} % of the values outside of data.value_range: clipped"] if share else [])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused(tmp_path, bad):
    values = VALUES.astype(np.float32)
    values[3, 3] = bad
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.save(tmp_path / "a.npy", values)
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="NaN or infinity, replace them by numbers"):
            normalizer(BODY).normalize(path)


@pytest.mark.parametrize("nodata", ["-1024", "-1024.0 "])
def test_missing_values_of_a_geotiff_are_refused(tmp_path, nodata):
    path = write_geotiff(tmp_path / "a.tif", VALUES.astype(np.float32), nodata)
    with pytest.raises(UserError, match=r"1 of its values are marked as missing \(nodata -1024\), fill them in"):
        normalizer(BODY).normalize(path)
    with pytest.raises(UserError, match="floating point values from -1008 to 3071"):  # without what is missing
        normalizer().normalize(path)
    assert "Values: -1008 to 3071 found" in diagnose(config(tmp_path)).to_text()
    other = write_geotiff(tmp_path / "b.tif", VALUES.astype(np.float32), "-9999")
    assert normalizer(BODY).normalize(other).levels.max() == 1


def test_what_pillow_gives_other_numbers_for_is_refused(tmp_path):
    colours = np.zeros((SIZE, SIZE, 3), np.uint16)
    header = b"P6 %d %d 65535\n" % (SIZE, SIZE)
    (tmp_path / "deep.ppm").write_bytes(header + colours.astype(">u2").tobytes())
    (tmp_path / "scaled.pgm").write_bytes(b"P5 2 1 100\n" + bytes([50, 100]))
    Image.new("1", (4, 4)).save(tmp_path / "bits.png")
    for path in tmp_path.iterdir():
        normalizer().normalize(path)
        with pytest.raises(UserError, match=r"not read number by number, save it as TIFF or \.npy"):
            normalizer(BODY).normalize(path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"value_range": [1, 1]}, "value_range=.1.0, 1.0. is no range"),
        ({"value_range": [2, 1]}, "is no range: give two numbers, the lower first"),
        ({"value_range": [1]}, "is no range"),
        ({"value_range": [0, float("inf")]}, "value_range.*finite"),
        ({"value_range": [0, "x"]}, "value_range.*number"),
        ({"units": "HU"}, "units='HU' says what value_range is in"),
        ({"value_range": [0, 1], "channels": "RGBA"}, "the alpha of channels='RGBA' has no units"),
    ],
)
def test_mistakes_in_the_settings_are_named(options, sentence):
    with pytest.raises(UserError, match=sentence):
        config("x", **options)


@pytest.mark.parametrize("kind", ["Pillow I tif", "Pillow F tif", "int16 tif", "float32 npy", "signed nii"])
def test_without_a_range_the_refusal_names_the_setting(tmp_path, kind):
    with pytest.raises(UserError, match=r"-1024.*3071.*set data\.value_range: \[low, high\]"):
        normalizer().normalize(write_values(tmp_path, kind, VALUES))


# What a header says


def facts(path, **options) -> dict:
    described = ImageSet(config(path, **options)).describe()
    return {key: described.get(key) for key in ("bit_depth", "value_range", "units")}


def test_a_dicom_comes_out_in_its_own_units(tmp_path):
    write_dicom(tmp_path / "a.dcm", (VALUES + 1024).astype(np.uint16))
    images = ImageSet(config(tmp_path))
    assert facts(tmp_path) == {"bit_depth": 32, "value_range": [-1024, 3071], "units": "HU"}
    plain = np.rint((VALUES + 1024) * (65535 / 4095)) * (2 / 65535) - 1  # pixels as of any 12-bit file
    np.testing.assert_allclose(images[0]["image"][0], plain, atol=1e-6)
    np.testing.assert_allclose(to_data_units(images[0]["image"], images.describe())[..., 0], VALUES, atol=0.04)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"RescaleSlope": 2, "RescaleType": "OD"}, (32, [-1024, 7166], "OD")),
        ({"RescaleType": "US", "Modality": "MR"}, (32, [-1024, 3071], None)),
        ({"Modality": "PT", "Units": "BQML"}, (32, [-1024, 3071], "BQML")),
        ({"RescaleIntercept": 0, "BitsStored": 16, "HighBit": 15}, (16, [0, 65535], "HU")),
        ({"RescaleIntercept": 0, "Modality": "CR"}, (16, [0, 65535], None)),
        ({"RescaleIntercept": None, "RescaleSlope": None}, (16, [0, 65535], None)),
    ],
)
def test_units_are_those_that_the_header_names(tmp_path, header, expected):
    write_dicom(tmp_path / "a.dcm", (VALUES + 1024).astype(np.uint16), **header)
    assert tuple(facts(tmp_path).values()) == expected


def test_where_white_is_zero_the_picture_is_right_and_the_numbers_too(tmp_path):
    write_dicom(tmp_path / "a.dcm", (VALUES + 1024).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    images = ImageSet(config(tmp_path))
    assert facts(tmp_path)["value_range"] == [3071, -1024]
    assert images[0]["image"][0, 0, 0] == 1 and images[0]["image"][0, -1, -1] == -1
    units = to_data_units(images[0]["image"], images.describe())
    np.testing.assert_allclose(units[..., 0], VALUES, atol=0.04)
    shown = np.asarray(as_picture(units, window_of(images.describe())))
    assert shown[0, 0].tolist() == [255] * 3 and shown[-1, -1].tolist() == [0] * 3
    write_dicom(tmp_path / "b.dcm", (VALUES + 1024).astype(np.uint16))
    assert facts(tmp_path)["value_range"] == [0, 65535]  # numbers of both kinds mean nothing in common
    by_number = ImageSet(config(tmp_path, value_range=[-1024, 3071]))
    np.testing.assert_array_equal(by_number[0]["image"], by_number[1]["image"])
    assert by_number.describe()["units"] == "HU"


def test_frames_have_slopes_of_their_own(tmp_path):
    pytest.importorskip("pydicom", reason='DICOM needs pip install "attndiff[medical]"')
    from pydicom.dataset import Dataset

    groups = []
    for intercept in (-1024, -24):
        group, transform = Dataset(), Dataset()
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, intercept, "HU"
        group.PixelValueTransformationSequence = [transform]
        groups.append(group)
    stored = np.full((2, SIZE, SIZE), 1024, np.uint16)
    entries = {"RescaleSlope": None, "RescaleIntercept": None, "PerFrameFunctionalGroupsSequence": groups}
    write_dicom(tmp_path / "a.dcm", stored, NumberOfFrames=2, **entries)
    images = ImageSet(config(tmp_path, value_range=[-1000, 1000]))
    assert [image["image"].mean() for image in images] == [0, 1] and images.describe()["units"] == "HU"


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_a_nifti_whose_header_rescales_is_read_over_its_bits(tmp_path, dtype):
    limits = np.iinfo(dtype)
    stored = np.linspace(limits.min, limits.max, 2 * SIZE * SIZE).astype(dtype).reshape(2, SIZE, SIZE)
    write_nifti(tmp_path / "a.nii", stored, 0.5, -100)
    images = ImageSet(config(tmp_path))
    assert facts(tmp_path)["value_range"] == [limits.min * 0.5 - 100, limits.max * 0.5 - 100]
    for i in range(2):
        units = to_data_units(images[i]["image"], images.describe())[..., 0]
        np.testing.assert_allclose(units, stored[i] * 0.5 - 100, atol=0.25)


def test_a_nifti_of_shares_stays_one(tmp_path):
    stored = np.linspace(0, 1000, SIZE * SIZE).astype(np.int16).reshape(1, SIZE, SIZE)
    write_nifti(tmp_path / "a.nii", stored, 0.001)
    assert facts(tmp_path) == {"bit_depth": 32, "value_range": [0, 1], "units": None}
    np.testing.assert_allclose(ImageSet(config(tmp_path))[0]["image"][0], stored[0] * 0.002 - 1, atol=1e-6)


def test_files_that_state_different_ranges_ask_for_the_setting(tmp_path):
    write_dicom(tmp_path / "a.dcm", (VALUES + 1024).astype(np.uint16))
    write_dicom(tmp_path / "b.dcm", (VALUES + 1024).astype(np.uint16), RescaleIntercept=0)
    with pytest.raises(UserError, match=r"-1024 to 3071 HU and 0 to 4095 HU: set data.value_range: \[low, high\]"):
        ImageSet(config(tmp_path))
    images = ImageSet(config(tmp_path, value_range=[-1024, 3071]))
    assert images.describe()["units"] == "HU" and images[1]["image"].min() == pytest.approx(-0.5, abs=1e-3)
    assert "without a range common to all" in diagnose(config(tmp_path)).to_text()


def test_a_stream_goes_on_in_the_range_of_its_head(tmp_path):
    first = write_dicom(tmp_path / "a.dcm", (VALUES + 1024).astype(np.uint16)).read_bytes()
    other = write_dicom(tmp_path / "b.dcm", (VALUES + 1024).astype(np.uint16), RescaleIntercept=0).read_bytes()
    rows = [("first", {"image": first}), ("other", {"image": other})]
    head = readable(EncodedImages(rows[:1], config("x"), None), "x")
    assert head.describe()["value_range"] == [-1024, 3071] and head.describe()["units"] == "HU"
    with pytest.raises(UserError, match="other: states the value range 0 to 4095 HU, unlike the first images"):
        head.of(rows[1:])[0]["image"]
    with pytest.raises(UserError, match="different value ranges"):
        readable(EncodedImages(rows, config("x"), None), "x")


@pytest.mark.parametrize("options", [{}, {"value_range": [-1000, 1000], "units": "HU"}])
def test_data_too_large_to_be_kept_are_the_same(tmp_path, monkeypatch, options):
    volume = np.stack([VALUES, VALUES.T]).astype(np.int16)
    if options:
        write_values(tmp_path, "int16 tif", VALUES)
        write_values(tmp_path, "float32 npy", VALUES, "b")
        write_nifti(tmp_path / "c.nii", volume)
    else:
        write_nifti(tmp_path / "a.nii", volume, 2)
    at_once = ImageSet(config(tmp_path, **options))
    monkeypatch.setattr(image_set, "CACHE_BYTES", 100)
    at_visit = ImageSet(config(tmp_path, **options))
    assert not at_visit.is_kept and at_visit.describe() == at_once.describe()
    assert at_visit.describe()["bit_depth"] == 32 and len(at_visit) == (4 if options else 2)
    for i in range(len(at_once)):
        np.testing.assert_array_equal(at_visit[i]["image"], at_once[i]["image"])


# Written and read again


@pytest.mark.parametrize("channels", ["L", "RGB", 5])
def test_what_is_written_reads_back(tmp_path, channels):
    placed = normalizer(ValueRange(-1000, 3000, "m"), channels)
    data = placed.describe(32, None, placed.value_range)
    sample = np.random.default_rng(0).uniform(-1, 1, (len(data["channels"]), SIZE, SIZE)).astype(np.float32)
    path = save_image(to_data_units(sample, data), tmp_path / "a.png", data)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.asarray().dtype == np.float32
        assert json.loads(tiff.pages.first.description) == {"value_range": [-1000, 3000], "units": "m"}
    np.testing.assert_allclose(placed(path), sample, atol=1e-6)


def test_sixteen_bits_in_known_units_are_written_as_they_were(tmp_path):
    data = normalizer().describe(16, None, ValueRange(0, 65535, "HU"))
    assert data["bit_depth"] == 16 and data["units"] == "HU"
    levels = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE, 1) * 256
    path = save_image(levels, tmp_path / "a", data)
    assert path.suffix == ".tif" and json.loads(tifffile.TiffFile(path).pages.first.description)["units"] == "HU"
    np.testing.assert_array_equal(normalizer().normalize(path).levels[0], levels[..., 0])


# What is told


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "-1024 to 3071 found, without a range common to all: data.value_range: [-1024, 3071] would hold them"),
        ({"value_range": [0, 4000], "units": "m"}, "-1024 to 3071 found; -1 and 1 stand for 0 to 4000 m"),
    ],
)
def test_the_doctor_tells_the_values(tmp_path, options, text):
    for name, values in (("a", VALUES.clip(0)), ("b", VALUES.clip(max=0))):
        write_values(tmp_path, "int16 tif", values, name)
    report = diagnose(config(tmp_path, **options))
    assert f"Values: {text}" in report.to_text() and json.loads(report.to_json())["values"]["found"] == [-1024, 3071]


def test_the_doctor_tells_the_values_of_pictures(tmp_path):
    Image.fromarray(np.full((SIZE, SIZE), 7, np.uint8)).save(tmp_path / "a.png")
    assert "Values: 7 to 7 found; -1 and 1 stand for 0 to 255" in diagnose(config(tmp_path)).to_text()


def test_pictures_are_shown_in_the_window_of_the_range():
    data = normalizer().describe(32, None, BODY)
    image = np.array([[[0.0], [500.0]], [[0.0], [500.0]]])
    assert np.asarray(as_picture(image, window_of(data)))[0, :, 0].tolist() == [128, 191]
    assert np.asarray(as_picture(image, window_of(normalizer().describe(16))))[0, :, 0].tolist() == [0, 255]
