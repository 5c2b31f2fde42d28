"""Volumes in tables: each slice is an image, and a volume is one family."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from attndiff.data import image_set
from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.streams.encoded import EncodedImages
from attndiff.data.streams.stream import Stream
from attndiff.errors import UserError

SIZE = 4


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE), level).save(buffer, "PNG")
    return buffer.getvalue()


def config(path: Path, **options) -> DataConfig:
    return DataConfig(path=str(path), size=SIZE, channels="L", **options)


def names(images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def volume_bytes(folder: Path, number: int, suffix: str, count: int = 3) -> bytes:
    """A volume whose slice ``i`` is of level ``10 * number + i``."""
    nibabel = pytest.importorskip("nibabel", reason='NIfTI needs pip install "attndiff[medical]"')
    values = 10 * number + np.arange(count, dtype=np.uint8)[None, None].repeat(SIZE, 0).repeat(SIZE, 1)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"written{suffix}")
    return (folder / f"written{suffix}").read_bytes()


def levels_of(images) -> list[int]:
    return [round((float(row["image"].mean()) + 1) * 127.5) for row in images]


@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_of_volumes_in_a_table_are_images_of_one_family(tmp_path, suffix, paths, monkeypatch):
    content = [volume_bytes(tmp_path, number, suffix) for number in range(8)]
    content.insert(3, png(200))
    cells = [{"bytes": one, "path": f"{i}{suffix}" if paths else None} for i, one in enumerate(content)]
    table = {"image": cells, "text": [f"knee {i}" for i in range(9)], "kind": [i % 2 for i in range(9)]}
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    asked = config(tmp_path / "data.parquet", caption_column="text", label_column="kind")
    images = ImageSet(asked)
    called = [f"{i}{suffix}" if paths else f"row {i}" for i in range(9)]
    every = [(i, of) for i in range(9) for of in ([None] if i == 3 else range(3))]
    assert names(images) == [called[i] if of is None else f"{called[i]} slice {of}" for i, of in every]
    expected = [200 if of is None else 10 * (i - (i > 3)) + of for i, of in every]
    assert levels_of(images) == expected
    assert [row["caption"] for row in images] == [[f"knee {i}"] for i, _ in every]
    assert [row["label"] for row in images] == [i % 2 for i, _ in every]
    assert [images.cells(i)["slice"] for i in range(25)] == [of for _, of in every]
    assert diagnose(asked).usable == 25
    middle = ImageSet(asked.replace(where={"slice": [1]}))
    assert levels_of(middle) == [level for (_, of), level in zip(every, expected, strict=True) if of == 1]
    parts = ImageSet(asked.replace(validation=0.3)), open_validation(asked.replace(validation=0.3))
    volumes = [{name.split(" slice")[0] for name in names(rows)} for rows in parts]
    assert not volumes[0] & volumes[1] and volumes[0] | volumes[1] == set(called)
    monkeypatch.setattr(image_set, "CACHE_BYTES", 0)  # decoded at every visit
    read = pickle.loads(pickle.dumps(ImageSet(asked)))
    assert not read.is_kept and levels_of(read) == expected and names(read) == names(images)


def test_a_table_may_name_the_slice_of_a_volume(tmp_path):
    content = volume_bytes(tmp_path, 5, ".nii")
    rows = [{"image": {"bytes": content, "path": "knee.nii"}, "slice": of} for of in (2, 0, 7)]
    rows += [{"image": {"bytes": png(9), "path": "a.png"}, "slice": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    images = ImageSet(config(tmp_path / "data.parquet"))
    assert names(images) == ["knee.nii slice 2", "knee.nii slice 0", "a.png"] and levels_of(images) == [52, 50, 9]
    assert "none of number 7" in dict(images.skipped)["knee.nii slice 7"]
    for share in (0.2, 0.5, 0.9):  # they are of one volume
        part = config(tmp_path / "data.parquet", validation=share)
        assert sum(name.startswith("knee") for name in names(open_validation(part))) in (0, 2)


def test_volumes_that_cannot_be_read_are_rows_that_are_left_out(tmp_path):
    cells = [png(1), png(2), b"\x1f\x8b no volume", volume_bytes(tmp_path, 1, ".nii")[:390]]
    pq.write_table(pa.table({"image": cells}), tmp_path / "data.parquet")
    images = ImageSet(config(tmp_path / "data.parquet"))
    assert names(images) == ["row 0", "row 1"] and [name for name, _ in images.skipped] == ["row 2", "row 3"]


def test_frames_of_dicom_in_a_table(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason='DICOM needs pip install "attndiff[medical]"')
    frames = np.arange(3, dtype=np.uint8)[:, None, None].repeat(SIZE, 1).repeat(SIZE, 2)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SamplesPerPixel, dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 1, SIZE, SIZE, 3
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PhotometricInterpretation, dataset.PixelData = "MONOCHROME2", frames.tobytes()
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset, enforce_file_format=True)
    pq.write_table(pa.table({"image": [(tmp_path / "a.dcm").read_bytes()]}), tmp_path / "data.parquet")
    images = ImageSet(config(tmp_path / "data.parquet"))
    assert names(images) == [f"row 0 slice {i}" for i in range(3)] and levels_of(images) == [0, 1, 2]


def test_a_stream_says_what_to_do_with_volumes(tmp_path):
    cells = [volume_bytes(tmp_path, 1, ".nii"), png(1)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "data.parquet")
    rows = list(Stream(config(tmp_path / "data.parquet", stream=True)).shard(0))
    images = EncodedImages(rows, config(tmp_path / "data.parquet", stream=True), None)
    with pytest.raises(UserError, match=r"shard 0 row 0: holds 3 slices.* a stream .* store each slice as an image"):
        images.load(0, "image")
