"""A radiograph is read as it would be shown: dense bright, the patient facing the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from inference.engine import ImageFile
from inference.errors import InputRefused
from inference.radiograph import read_radiograph
from tests.dicom_factory import radiograph


@pytest.fixture
def pixels() -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(4).integers(0, 4096, (40, 48))


def read(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    return read_radiograph(ImageFile(path.stem, path))


def test_monochrome2_is_read_as_stored(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    found = read(radiograph(tmp_path, pixels))
    assert found.dtype == np.float32
    assert (found == pixels).all()


def test_monochrome1_is_inverted_so_that_dense_is_bright(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    found = read(radiograph(tmp_path, pixels, photometric="MONOCHROME1"))
    assert (found == pixels.max() + pixels.min() - pixels).all()


@pytest.mark.parametrize("directions", [["R", "F"], ["L", "H"], ["R", "H"], ["F", "L"], ["H", "R"], ["LF", "FR"]])
def test_the_patient_faces_the_reader_whatever_was_stored(
    tmp_path: Path, pixels: np.ndarray[Any, Any], directions: list[str]
) -> None:
    stored = pixels.T if directions[0][0] in "HF" else pixels
    across, down = (1, 0) if directions[0][0] in "LR" else (0, 1)
    if directions[0][0] in "RH":
        stored = stored[:, ::-1]
    if directions[1][0] in "RH":
        stored = stored[::-1]
    assert {across, down} == {0, 1}
    assert (read(radiograph(tmp_path, stored, PatientOrientation=directions)) == pixels).all()


@pytest.mark.parametrize("directions", [None, ["A", "F"], []])
def test_an_orientation_that_says_nothing_about_left_leaves_the_columns(
    tmp_path: Path, pixels: np.ndarray[Any, Any], directions: list[str] | None
) -> None:
    assert (read(radiograph(tmp_path, pixels, PatientOrientation=directions)) == pixels).all()


def test_the_modality_rescale_is_applied_and_the_window_is_not(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path = radiograph(
        tmp_path, pixels, RescaleSlope="2", RescaleIntercept="-10", RescaleType="US", WindowCenter="5", WindowWidth="2"
    )
    assert (read(path) == pixels * 2.0 - 10).all()


def test_padding_is_the_darkest_of_the_picture(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    stored = pixels // 2 + 100
    stored[:, :5] = 4095
    found = read(radiograph(tmp_path, stored, photometric="MONOCHROME2", PixelPaddingValue=4095))
    assert (found[:, :5] == found[:, 5:].min()).all()
    found = read(radiograph(tmp_path, stored, photometric="MONOCHROME1", PixelPaddingValue=4095))
    assert (found[:, :5] == found[:, 5:].min()).all()


def test_an_old_overlay_in_the_unused_bits_is_masked_off(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path = radiograph(tmp_path, pixels)
    plain = read(path)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = (pixels.astype("<u2") | 0x8000).tobytes()
    dataset.save_as(path)
    assert (read(path) == plain).all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"Rows": 0}, "no-pixels"),
        ({"PixelData": b"\0\0\0\0"}, "no-pixels"),
        ({"SamplesPerPixel": 3}, "multi-sample"),
        ({"PhotometricInterpretation": "RGB"}, "unsupported-photometric"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported-photometric"),
        ({"HighBit": 15}, "unsupported-bits"),
        ({"NumberOfFrames": "3"}, "multi-frame"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for-processing"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_for_its_reason(
    tmp_path: Path, pixels: np.ndarray[Any, Any], values: dict[str, Any], reason: str
) -> None:
    path = radiograph(tmp_path, pixels)
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    with pytest.raises(InputRefused) as refused:
        read(path)
    assert refused.value.reason == reason


def test_a_radiograph_and_its_monochrome1_twin_look_alike(shared_data: Path) -> None:
    folder = shared_data / "cxr_dicom"
    first = read(next(folder.glob("torchxrayvision__1.2*.dcm")))
    twin = read(folder / "torchxrayvision__Fake_MONOHR1.dcm")
    assert first.shape == twin.shape
    assert np.corrcoef(first.ravel(), -twin.ravel())[0, 1] > 0.99
    assert np.isfinite(read(folder / "dwv__gdcm-CR-MONO1-10-chest.dcm")).all()


def test_every_malformed_file_is_read_or_refused_and_nothing_else(shared_data: Path) -> None:
    verdicts = {}
    for path in sorted((shared_data / "malformed").glob("*.dcm")):
        try:
            verdicts[path.name] = str(read(path).ndim)
        except InputRefused as refused:
            verdicts[path.name] = refused.reason
    assert verdicts["orthanc-tests__Issue22-NoPixelData.dcm"] == "no-pixels"
    assert verdicts["pydicom__MR_truncated.dcm"] == "no-pixels"
    assert len(verdicts) > 30
