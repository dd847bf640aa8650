"""Masks and names come back from a real Orthanc as they were, read with pydicom alone."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pydicom
from pydicom import Dataset

from tests.dicom_factory import ct_series
from tests.evidence_factory import documents_of, labels_by_point, masks_by_point, segmented
from tests.peers import Orthanc


def through(orthanc: Orthanc, data: bytes) -> Dataset:
    with httpx.Client(base_url=orthanc.http_url) as client:
        stored = client.post("/instances", content=data)
        stored.raise_for_status()
        assert stored.json()["Status"] == "Success"
        return pydicom.dcmread(BytesIO(client.get(f"/instances/{stored.json()['ID']}/file").content))


def test_masks_read_back_from_orthanc_lie_on_their_patient_points(orthanc: Orthanc, tmp_path: Path) -> None:
    labels = np.zeros((8, 24, 20), np.uint8)
    labels[1:6, 3:15, 2:8] = 1
    labels[1:3, 15:20, 2:4] = 1
    labels[3:7, 4:12, 12:18] = 2
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    paths = ct_series(
        tmp_path,
        np.zeros(labels.shape),
        spacing=(3.0, 0.7, 0.9),
        orientation=(0.8, 0.6, 0.0, -0.48, 0.64, 0.6),
        PatientName=name,
        SpecificCharacterSet=["", "ISO 2022 IR 87"],
    )
    segmentation, report = (through(orthanc, one.data) for one in documents_of(segmented(paths, labels), paths))
    points = masks_by_point(segmentation)
    assert points == labels_by_point(paths, labels)
    assert np.mean([x for x, _, _ in points[1]]) < np.mean([x for x, _, _ in points[2]])
    assert {str(segmentation.PatientName), str(report.PatientName)} == {name}
