"""DICOMweb as its users meet it: another maker's client stores, finds and retrieves."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import JPEG2000Lossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from tests.dicom_factory import ct_series, radiograph
from tests.web import WebNode

HU = np.random.default_rng(1).integers(-1000, 400, (3, 16, 20))


def test_a_client_stores_a_series_finds_it_and_gets_the_same_bytes_back(
    dicomweb_client: DICOMwebClient, tmp_path: Path
) -> None:
    paths = ct_series(tmp_path / "ct", HU, PatientID="P1")
    sources = [pydicom.dcmread(path) for path in paths]
    answer = dicomweb_client.store_instances(sources)
    assert len(answer.ReferencedSOPSequence) == 3
    assert "FailedSOPSequence" not in answer
    study, series = sources[0].StudyInstanceUID, sources[0].SeriesInstanceUID

    [found] = dicomweb_client.search_for_studies(search_filters={"PatientID": "P1"})
    assert found["0020000D"]["Value"] == [study]
    assert found["00201208"]["Value"] == [3]
    assert found["00080061"]["Value"] == ["CT"]
    [found] = dicomweb_client.search_for_series(study)
    assert found["00201209"]["Value"] == [3]
    found = dicomweb_client.search_for_instances(study, series)
    assert {one["00080018"]["Value"][0] for one in found} == {source.SOPInstanceUID for source in sources}

    back = {one.SOPInstanceUID: one for one in dicomweb_client.retrieve_study(study)}
    for source in sources:
        assert back[source.SOPInstanceUID] == source
    one = dicomweb_client.retrieve_instance(study, series, sources[0].SOPInstanceUID)
    assert one.PixelData == sources[0].PixelData
    assert len(list(dicomweb_client.iter_series(study, series))) == 3


def test_metadata_names_bulk_data_that_resolves(web: WebNode, dicomweb_client: DICOMwebClient, tmp_path: Path) -> None:
    [path, *_] = ct_series(tmp_path / "ct", HU)
    source = pydicom.dcmread(path)
    web.take_in(path)
    ids = source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID
    for found in (
        dicomweb_client.retrieve_study_metadata(ids[0])[0],
        dicomweb_client.retrieve_series_metadata(*ids[:2])[0],
        dicomweb_client.retrieve_instance_metadata(*ids),
    ):
        told = found[0] if isinstance(found, list) else found
        assert "Value" not in told["7FE00010"]
        [pixels] = dicomweb_client.retrieve_bulkdata(told["7FE00010"]["BulkDataURI"])
        assert pixels == source.PixelData
        assert pydicom.Dataset.from_json({**told, "7FE00010": {"vr": "OW"}}).ImagePositionPatient == (
            source.ImagePositionPatient
        )
    [frame] = dicomweb_client.retrieve_instance_frames(*ids, frame_numbers=[1])
    assert bytes(frame) == source.PixelData
