"""The quick way to read a header says what pydicom says of the same bytes, whatever they are."""

from __future__ import annotations

import random
import struct
import warnings
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from storage.attributes import WANTED
from storage.errors import NotDicom
from storage.headers import Header, Written, read_header
from storage.quickread import BEGINNING, read_elements
from tests.dicom_factory import ct_series

MUTATIONS = 1500


def outcome(path: Path, written: Written | None) -> Any:
    """Return all that a header says, or the reason why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = read_header(path, written)
        except NotDicom as error:
            return str(error)
        said = {name: getattr(header, name) for name in Header.__dataclass_fields__ if name != "source"}
        return said | {"study": header.study, "series": header.series, "instance": header.instance}


def written_as(path: Path, digest: str) -> Written:
    data = path.read_bytes()
    elements = read_elements(data[:BEGINNING], len(data), WANTED)
    start = elements.start if elements is not None else 0
    return Written(beginning=data[:BEGINNING], size=len(data), digest=digest, dataset_start=start)


def compare(paths: Iterable[Path]) -> int:
    """Read each file both ways; return how many were read quickly."""
    quickly = 0
    for path in paths:
        expected = outcome(path, None)
        digest = expected["digest"] if isinstance(expected, dict) else ""
        written = written_as(path, digest)
        found = outcome(path, written)
        assert found == expected, path.name
        quickly += written.dataset_start > 0 and isinstance(found, dict)
    return quickly


def test_real_files_are_read_the_same_and_most_of_them_quickly(shared_data: Path) -> None:
    files = [path for path in shared_data.rglob("*") if path.is_file() and path.suffix in (".dcm", "")]
    files = [path for path in files if path.stat().st_size < 10_000_000]
    assert len(files) > 150
    assert compare(files) > len(files) / 2


def ordinary(folder: Path, syntax: str, **attributes: Any) -> Path:
    (path,) = ct_series(folder, np.zeros((1, 8, 8)), transfer_syntax=syntax, **attributes)
    return path


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_are_walked_over_and_said_as_pydicom_says_them(tmp_path: Path, syntax: str, undefined: bool) -> None:
    inner = pydicom.Dataset()
    inner.CodeValue, inner.CodingSchemeDesignator, inner.CodeMeaning = "1", "99X", "one"
    item = pydicom.Dataset()
    item.RequestedProcedureID = "R1"
    item.RequestedProcedureCodeSequence = Sequence([inner, inner])
    dataset = pydicom.dcmread(ordinary(tmp_path, syntax))
    dataset.RequestAttributesSequence = Sequence([item, item])
    dataset.ReferencedImageSequence = Sequence([item])
    for one in (dataset, item, item):
        for element in one:
            if element.VR == "SQ":
                element.is_undefined_length = undefined
    for one in (item, inner):
        one.is_undefined_length_sequence_item = undefined
    path = tmp_path / "nested.dcm"
    dataset.save_as(path)
    assert compare([path]) == 1
    header = read_header(path, written_as(path, ""))
    assert header.series["00400275"]["Value"][1]["00401001"]["Value"] == ["R1"]


@pytest.mark.parametrize(
    "values",
    [
        {"PixelSpacing": ["0.5 ", " 0.25"], "ImageType": ["ORIGINAL", "", "AXIAL"], "InstanceNumber": "+7"},
        {"PatientName": "Ä^B=Ö", "SpecificCharacterSet": "ISO_IR 100", "PatientID": "Ü"},
        {"PatientName": "A^B=C", "PatientID": "1\\2", "ContentDescription": "a\\b "},
        {"Rows": 8, "NumberOfFrames": "1", "SeriesDescription": "x" * 300, "ConvolutionKernel": ["a ", "b "]},
        {"SliceThickness": "1e3", "SpacingBetweenSlices": ".5", "ImagePositionPatient": ["-0", "1.", "2.e1"]},
        {"PatientName": None, "PatientID": "", "StudyDate": "", "InstanceNumber": None},
        {"ImagePositionPatient": ["1"] * 70, "StudyDescription": " leading", "ContentTime": "1010 "},
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_odd_values_are_said_as_pydicom_says_them(tmp_path: Path, values: dict[str, Any], syntax: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = ordinary(tmp_path, syntax, **values)
    assert compare([path]) == 1


def test_a_dataset_with_a_meta_group_of_its_own_is_digested_without_it(tmp_path: Path) -> None:
    path = ordinary(tmp_path, ExplicitVRLittleEndian)
    data = path.read_bytes()
    start = written_as(path, "").dataset_start
    extra = struct.pack("<HH2sH", 0x0002, 0x0102, b"OB", 0) + struct.pack("<L", 2) + b"\0\0"
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(data[:start] + extra + data[start:])
    # Whoever wrote the file took the dataset to begin behind the head that it had written.
    written = Written(
        beginning=odd.read_bytes(), size=odd.stat().st_size, digest="of another dataset", dataset_start=start
    )
    assert read_header(odd, written).digest == read_header(odd).digest == read_header(path).digest


def test_damaged_bytes_are_judged_the_same(tmp_path: Path) -> None:
    """A few thousand seeded damages to headers: neither way accepts, refuses or says what the other does not."""
    chance = random.Random(20_261_121)
    item = pydicom.Dataset()
    item.RequestedProcedureID = "R1"
    wholes = []
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        dataset = pydicom.dcmread(ordinary(tmp_path / generate_uid(), syntax))
        dataset.RequestAttributesSequence = Sequence([item])
        dataset["RequestAttributesSequence"].is_undefined_length = True
        item.is_undefined_length_sequence_item = True
        held = BytesIO()
        dataset.save_as(held)
        wholes.append(held.getvalue())
    path = tmp_path / "damaged.dcm"
    quickly = 0
    for _ in range(MUTATIONS):
        data = bytearray(chance.choice(wholes))
        for _ in range(chance.choice((1, 1, 2, 4))):
            where = chance.randrange(128, len(data) - 128)
            match chance.randrange(4):
                case 0:
                    data[where] = chance.randrange(256)
                case 1:
                    del data[where : where + chance.randrange(1, 9)]
                case 2:
                    data[where:where] = data[where - 16 : where]
                case _:
                    data[where : where + 4] = struct.pack("<L", chance.choice((0, 1, 0xFFFF, 0xFFFFFFFF)))
        path.write_bytes(data)
        quickly += compare([path])
    assert quickly > MUTATIONS / 10
