"""The phantom studies are valid DICOM and hold, voxel for voxel, what their generator drew."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from phantoms.dicom import Patient, PhantomStudy, write_chest_ct, write_head_ct, write_radiograph
from phantoms.thorax import make_thorax
from tests.peers import need_program


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    return write_chest_ct(tmp_path_factory.mktemp("chest"), 3, slices=24, size=96)


def errors_of(path: Path) -> list[str]:
    program = need_program("/usr/bin/dciodvfy", "dicom3tools")
    done = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_every_series_of_a_chest_ct_is_valid(chest: PhantomStudy) -> None:
    last = {pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID: path for path in chest.files}
    assert len(last) == 6
    assert [(path, errors_of(path)) for path in last.values() if errors_of(path)] == []


def test_other_phantoms_are_valid(tmp_path: Path) -> None:
    name = Patient(name="Yamada^Tarou=山田^太郎=やまだ^たろう")
    studies = (
        write_head_ct(tmp_path / "head", 1, slices=4),
        write_radiograph(tmp_path / "dx", 1, ("nodule",), patient=name),
        write_radiograph(tmp_path / "cr", 2, modality="CR", patient=name),
    )
    paths = [study.files[0] for study in studies]
    assert [(path, errors_of(path)) for path in paths if errors_of(path)] == []
    assert str(pydicom.dcmread(paths[1]).PatientName) == name.name
    assert studies[1].findings["nodule"]
    assert not any(studies[2].findings.values())


def test_the_best_series_holds_the_phantom_with_right_on_the_patients_right(chest: PhantomStudy) -> None:
    images = [pydicom.dcmread(path) for path in chest.files]
    series = [image for image in images if image.SeriesInstanceUID == chest.best_series_uid]
    series.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    hu = np.stack([image.pixel_array.astype(np.int32) - 1024 for image in series])
    spacing = (3.0, 1.4 * 256 / 96, 1.4 * 256 / 96)
    phantom = make_thorax(3, shape=(24, 96, 96), spacing=spacing, disease=False, variation=0.5)
    assert np.array_equal(hu, np.clip(phantom.hu, -1024, 3071))
    assert series[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    # Columns run towards the patient's left, so the right lung has the smaller column indices.
    right, left = (np.argwhere(phantom.labels == label)[:, 2].mean() for label in (1, 2))
    assert right < left


def test_two_writings_share_no_uid(tmp_path: Path) -> None:
    first, second = (write_radiograph(tmp_path / name, 1) for name in ("a", "b"))
    assert first.study_instance_uid != second.study_instance_uid
    assert {path.name for path in first.files}.isdisjoint(path.name for path in second.files)
