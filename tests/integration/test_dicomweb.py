"""DICOMweb as its users meet it: another maker's client stores, finds and retrieves."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

from storage.index import Outcome
from tests.dicom_factory import ct_series, radiograph, write
from tests.web import WebNode

HU = np.random.default_rng(1).integers(-1000, 400, (3, 64, 72))


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


def test_a_search_that_finds_nothing_is_no_error_for_a_client(dicomweb_client: DICOMwebClient) -> None:
    assert dicomweb_client.search_for_studies(search_filters={"PatientID": "NOBODY"}) == []


def test_a_client_pages_through_what_it_finds(web: WebNode, dicomweb_client: DICOMwebClient, tmp_path: Path) -> None:
    uids = [generate_uid() for _ in range(5)]
    for uid in uids:
        web.take_in(radiograph(tmp_path / "cr", HU[0] + 1000, study_uid=uid))
    first = dicomweb_client.search_for_studies(limit=2)
    second = dicomweb_client.search_for_studies(limit=2, offset=2)
    everything = dicomweb_client.search_for_studies(get_remaining=True)
    named = [[one["0020000D"]["Value"][0] for one in found] for found in (first, second, everything)]
    assert named == [uids[:2], uids[2:4], uids]
    # The same where the matching cannot be left to the database.
    filtered = dicomweb_client.search_for_studies(search_filters={"PatientName": "phantom*"}, limit=2, offset=3)
    assert [one["0020000D"]["Value"][0] for one in filtered] == uids[3:]


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
        again = Dataset.from_json({**told, "7FE00010": {"vr": "OW"}})
        assert again.ImagePositionPatient == source.ImagePositionPatient
        assert again.PatientName == source.PatientName
    [frame] = dicomweb_client.retrieve_instance_frames(*ids, frame_numbers=[1])
    assert bytes(frame) == source.PixelData


def test_bulk_data_within_a_sequence_resolves_too(web: WebNode, tmp_path: Path) -> None:
    item = Dataset()
    item.add_new(0x00281201, "OW", bytes(range(256)) * 16)
    path = radiograph(tmp_path, HU[0] + 1000, SourceImageSequence=[Dataset(), item])
    web.take_in(path)
    [told] = web.http.get(_address(path) + "/metadata").json()
    uri = told["00082112"]["Value"][1]["00281201"]["BulkDataURI"]
    answer = web.http.get(uri, headers={"Accept": "application/octet-stream"})
    assert answer.content == item[0x00281201].value
    assert web.http.get(uri.replace("00281201", "00281202")).status_code == 404


def test_the_content_of_a_report_stands_inline_in_its_metadata(web: WebNode, tmp_path: Path) -> None:
    text = "Lungs. " * 400
    path = _report(tmp_path, generate_uid(), text)
    web.take_in(path)
    [told] = web.http.get(_address(path) + "/metadata").json()
    assert "BulkDataURI" not in str(told)
    assert told["0040A730"]["Value"][0]["0040A160"]["Value"] == [text.strip()]


def test_results_and_sources_are_found_and_retrieved_alike(
    web: WebNode, dicomweb_client: DICOMwebClient, tmp_path: Path
) -> None:
    source = radiograph(tmp_path / "cr", HU[0] + 1000)
    study = pydicom.dcmread(source).StudyInstanceUID
    web.take_in(source)
    result = _report(tmp_path, study, "no finding", made_here=True)
    assert web.take_in(result).made_here
    [found] = dicomweb_client.search_for_studies(search_filters={"ModalitiesInStudy": "SR"})
    assert found["0020000D"]["Value"] == [study]
    assert found["00080061"]["Value"] == ["CR", "SR"]
    assert {one["00080060"]["Value"][0] for one in dicomweb_client.search_for_series(study)} == {"CR", "SR"}
    uid = pydicom.dcmread(result).SOPInstanceUID
    [found] = dicomweb_client.search_for_instances(search_filters={"SOPClassUID": Comprehensive3DSRStorage})
    assert found["00080018"]["Value"] == [uid]
    assert uid in {one.SOPInstanceUID for one in dicomweb_client.retrieve_study(study)}


def test_objects_in_conflict_over_a_uid_are_both_found(web: WebNode, tmp_path: Path) -> None:
    uid = generate_uid()
    first = radiograph(tmp_path / "a", HU[0] + 1000, SOPInstanceUID=uid)
    second = radiograph(tmp_path / "b", HU[1] + 1000, SOPInstanceUID=uid)
    web.take_in(first)
    assert web.take_in(second).outcome is Outcome.CONFLICT
    found = web.http.get("/dicom-web/instances", params={"SOPInstanceUID": uid}).json()
    assert len(found) == 2
    for path in (first, second):
        answer = web.http.get(_address(path), headers={"Accept": "application/dicom"})
        assert answer.content == path.read_bytes()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_an_object_is_given_as_stored_or_in_explicit_little_endian(
    web: WebNode, dicomweb_client: DICOMwebClient, tmp_path: Path, syntax: str
) -> None:
    [path, *_] = ct_series(tmp_path, HU, transfer_syntax=syntax)
    source = pydicom.dcmread(path)
    web.take_in(path)
    ids = source.StudyInstanceUID, source.SeriesInstanceUID, source.SOPInstanceUID
    assert dicomweb_client.retrieve_instance(*ids).file_meta.TransferSyntaxUID == syntax
    wanted = (("application/dicom", ExplicitVRLittleEndian),)
    changed = dicomweb_client.retrieve_instance(*ids, media_types=wanted)
    assert changed.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert changed.SOPInstanceUID == source.SOPInstanceUID
    assert np.array_equal(changed.pixel_array, source.pixel_array)
    [frame] = dicomweb_client.retrieve_instance_frames(*ids, frame_numbers=[1])
    assert np.array_equal(np.frombuffer(frame, "<u2").reshape(64, 72), source.pixel_array)
    other = _asked(web, path, "1.2.840.10008.1.2.4.80")
    assert other.status_code == 406
    assert other.headers["content-type"] == "application/problem+json"


def test_big_endian_samples_are_turned_round_on_the_way_out(web: WebNode, shared_data: Path) -> None:
    path = shared_data / "dimse_small" / "pynetdicom__MRImageStorage_ExplicitVRBigEndian.dcm"
    source = pydicom.dcmread(path)
    assert source.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    web.take_in(path)
    answer = web.http.get(
        _address(path), headers={"Accept": f"application/dicom; transfer-syntax={ExplicitVRLittleEndian}"}
    )
    changed = pydicom.dcmread(io.BytesIO(answer.content))
    assert changed.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(changed.pixel_array, source.pixel_array)
    bulk = web.http.get(f"{_address(path)}/bulkdata/7FE00010", headers={"Accept": "application/octet-stream"})
    assert np.array_equal(np.frombuffer(bulk.content, "<u2").ravel(), source.pixel_array.ravel())


def test_an_object_that_cannot_be_decoded_is_not_acceptable_but_is_given_as_stored(
    web: WebNode, tmp_path: Path
) -> None:
    [path, *_] = ct_series(tmp_path, HU, transfer_syntax=JPEG2000Lossless)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51 this is no codestream "])
    dataset.save_as(path)
    web.take_in(path)
    assert _asked(web, path, ExplicitVRLittleEndian).status_code == 406
    assert _asked(web, path, "*").status_code == 200


@pytest.mark.parametrize(
    ("resource", "accept"),
    [
        ("/studies", "text/csv"),
        ("/studies", "nonsense"),
        ("{study}", "image/png"),
        ("{study}", "application/dicom"),
        ("{study}", 'multipart/related; type="image/jpeg"'),
        ("{study}/metadata", "application/pdf"),
        ("{instance}/frames/1", "application/dicom+json"),
    ],
)
def test_what_cannot_be_given_is_406_and_never_something_else(
    web: WebNode, tmp_path: Path, resource: str, accept: str
) -> None:
    path = radiograph(tmp_path, HU[0] + 1000)
    web.take_in(path)
    instance = _address(path)
    study = instance.split("/series")[0].removeprefix("/dicom-web")
    url = "/dicom-web" + resource.format(study=study, instance=instance.removeprefix("/dicom-web"))
    answer = web.http.get(url, headers={"Accept": accept})
    assert answer.status_code == 406
    assert answer.headers["content-type"] == "application/problem+json"
    assert web.http.get(url, headers={"Accept": f"{accept}, */*;q=0.1"}).status_code == 200


def test_what_is_not_here_is_404_at_every_level(web: WebNode, tmp_path: Path) -> None:
    path = radiograph(tmp_path, HU[0] + 1000)
    web.take_in(path)
    instance = _address(path)
    for known in (instance, *[instance.rsplit("/", 2)[0], instance.rsplit("/", 4)[0]]):
        assert web.http.get(known).status_code == 200
        unknown = known[:-1] + ("1" if known[-1] != "1" else "2")
        for below in ("", "/metadata"):
            answer = web.http.get(unknown + below)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"
    assert web.http.get(f"{instance}/frames/2").status_code == 404
    assert web.http.get(f"{instance}/frames/x").status_code == 400


def test_without_the_token_nothing_but_health_and_the_description_is_told(
    start_web: Callable[..., WebNode], tmp_path: Path
) -> None:
    web = start_web(http={"token": "a-long-token"})
    right = {"Authorization": "Bearer a-long-token"}
    paths = ("/dicom-web/studies", "/metrics", "/api/v1/status", "/docs/", "/docs/x", "/openapi.json/x", "/nowhere")
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer a-long-toke"}, {"Authorization": "Basic a-long-token"}):
            answer = web.http.get(path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["status"] == 401
        assert web.http.get(path, headers=right).status_code != 401
    stored = web.http.post("/dicom-web/studies", content=b"x", headers={"Content-Type": "application/dicom"})
    assert stored.status_code == 401
    assert web.http.get("/health/live").status_code == 200
    assert web.http.get("/health/ready").status_code == 200
    for path in ("/docs", "/openapi.json", "/docs/assets/swagger-ui-bundle.js"):
        assert web.http.get(path).status_code == 200, path


def _address(path: Path) -> str:
    one = pydicom.dcmread(path, stop_before_pixels=True)
    return f"/dicom-web/studies/{one.StudyInstanceUID}/series/{one.SeriesInstanceUID}/instances/{one.SOPInstanceUID}"


def _asked(web: WebNode, path: Path, syntax: str):  # type: ignore[no-untyped-def]
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'
    return web.http.get(_address(path), headers={"Accept": accept})


def _report(folder: Path, study_uid: str, text: str, *, made_here: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121071", "DCM", "Finding"
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", text
    item.ConceptNameCodeSequence = [name]
    equipment = Dataset()
    equipment.Manufacturer = "Overread"
    attributes = {
        "SOPClassUID": Comprehensive3DSRStorage,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": generate_uid(),
        "Modality": "SR",
        "ContentSequence": [item],
        "ContributingEquipmentSequence": [equipment] if made_here else None,
        "PixelData": None,
    }
    return write(folder, attributes, HU[0].astype("<u2"))
