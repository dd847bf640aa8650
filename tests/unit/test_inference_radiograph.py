"""A radiograph is read as it would be shown: dense bright, the patient facing the reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from inference.engine import ImageFile
from inference.errors import InputRefused
from inference.imagefile import open_image
from inference.radiograph import radiograph_of, read_radiograph
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


@pytest.mark.parametrize("front", ["A", "P"])
@pytest.mark.parametrize("lying", [False, True], ids=["upright", "lying"])
@pytest.mark.parametrize("feet_first", ["F", "H"])
def test_a_lateral_view_stands_upright_whatever_was_stored(
    tmp_path: Path, pixels: np.ndarray[Any, Any], front: str, lying: bool, feet_first: str
) -> None:
    """Of the way that the patient looks nothing is known to be right: it stays as it is stored."""
    stored = pixels[::-1] if feet_first == "H" else pixels
    stored, directions = (stored.T, [feet_first, front]) if lying else (stored, [front, feet_first])
    path = radiograph(tmp_path, stored, view="LL", PatientOrientation=directions)
    assert (read(path) == pixels).all()
    shown = radiograph_of(open_image(ImageFile("x", path)))
    assert (shown.turn.to_source(shown.pixels) == stored).all()


def lut(entries: Any, bits: int = 12, first: int = 0) -> pydicom.Dataset:
    """An item of a VOI LUT Sequence: bytes where entries are, words otherwise."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "OW" if isinstance(entries, bytes) else "US", entries)
    return item


RISES, FALLS = [n // 16 for n in range(4096)], [255 - n // 16 for n in range(4096)]


@pytest.mark.parametrize(
    ("photometric", "table", "negative"),
    [
        ("MONOCHROME2", lut(RISES), False),
        ("MONOCHROME2", lut(FALLS, 8), True),
        ("MONOCHROME1", lut(FALLS), False),
        ("MONOCHROME1", lut(RISES), True),
        ("MONOCHROME2", lut(bytes(range(255, -1, -1)), 8, 1900), True),
        ("MONOCHROME2", lut(np.array(FALLS, "<u2").tobytes(), 16), True),
        # Flat at both ends, as of a sigmoid, and more entries promised than there are.
        ("MONOCHROME2", lut([255] * 1000 + [255 - n // 9 for n in range(2000)] + [20] * 900), True),
    ],
)
def test_a_voi_lut_that_falls_turns_the_image_over_and_changes_nothing_else(
    tmp_path: Path, pixels: np.ndarray[Any, Any], photometric: str, table: pydicom.Dataset, negative: bool
) -> None:
    path = radiograph(tmp_path, pixels, photometric=photometric)
    dataset = pydicom.dcmread(path)
    dataset.VOILUTSequence = [table]
    for undefined in (False, True):
        dataset["VOILUTSequence"].is_undefined_length = undefined
        dataset.save_as(path)
        assert (read(path) == (pixels.max() + pixels.min() - pixels if negative else pixels)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: setattr(d, "VOILUTSequence", [lut(RISES), lut(FALLS)]),
        lambda d: d.update({"VOILUTSequence": [lut(FALLS)], "WindowCenter": "2000", "WindowWidth": "4000"}),
        lambda d: setattr(d, "VOILUTSequence", [lut(b"", 8)]),
        lambda d: setattr(d, "VOILUTSequence", [pydicom.Dataset()]),
        lambda d: setattr(d, "VOILUTSequence", [lut([*RISES[::2], *FALLS[::2]])]),
    ],
    ids=["two tables", "a table and a window", "no entries", "nothing", "up and down"],
)
def test_an_image_that_may_be_a_negative_is_refused(
    tmp_path: Path, pixels: np.ndarray[Any, Any], change: Callable[[pydicom.Dataset], None]
) -> None:
    path = radiograph(tmp_path, pixels // 2 * 2)
    dataset = pydicom.dcmread(path)
    for keyword in ("WindowCenter", "WindowWidth"):
        dataset.pop(keyword, None)
    change(dataset)
    dataset.save_as(path)
    with pytest.raises(InputRefused, match="whether dense is bright in the radiograph is not known") as refused:
        read(path)
    assert refused.value.reason == "polarity-unknown"


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
