"""STOW-RS: every framing that senders use, every object there is, and bodies that are meant to hurt."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import numpy as np
import psutil
import pydicom
import pytest
from pydicom.uid import generate_uid
from sqlalchemy import select

from storage import schema
from storage.space import Disk, Least, Marks, Room
from tests.dicom_factory import ct_series, radiograph
from tests.web import WebNode

PIXELS = np.full((16, 16), 7)

#: Truncated, or with UIDs that are none: stored with a warning.
DEFECTIVE = {"pydicom__MR_truncated.dcm", "pydicom__rtplan_truncated.dcm", "pydicom-data__bad_sequence.dcm"}
#: No Part 10 file, or without one of the UIDs that identify an instance.
UNREADABLE = {
    "pydicom__chrSQEncoding.dcm",
    "pydicom__chrSQEncoding1.dcm",
    "orthanc-tests__Issue111.dcm",
    "orthanc-tests__Issue195-bis.dcm",
    "orthanc-tests__Issue195.dcm",
    "orthanc-tests__Issue196.dcm",
    "pydicom__ExplVR_BigEndNoMeta.dcm",
    "pydicom__ExplVR_LitEndNoMeta.dcm",
    "pydicom__UN_sequence.dcm",
    "pydicom__empty_charset_LEI.dcm",
    "pydicom__meta_missing_tsyntax.dcm",
    "pydicom__nested_priv_SQ.dcm",
    "pydicom__no_meta.dcm",
    "pydicom__no_meta_group_length.dcm",
    "pydicom__priv_SQ.dcm",
    "pydicom__rtstruct.dcm",
    "orthanc-tests__PrivateMDNTags.dcm",
    "pydicom-data__HTJ2KLossless_08_RGB.dcm",
    "pydicom-data__JLSL_08_07_0_1F.dcm",
    "pydicom-data__JLSL_16_15_1_1F.dcm",
    "pydicom-data__JLSL_RGB_ILV0.dcm",
    "pydicom-data__JLSL_RGB_ILV1.dcm",
    "pydicom-data__JLSL_RGB_ILV2.dcm",
    "pydicom-data__JLSN_RGB_ILV0.dcm",
    "pydicom-data__OT-PAL-8-face.dcm",
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return radiograph(tmp_path / "image", PIXELS)


def post(web: WebNode, parts: list[bytes], *, url: str = "/dicom-web/studies", **headers: str) -> httpx.Response:
    body = b"".join(b"\r\n--B\r\nContent-Type: application/dicom\r\n\r\n" + part for part in parts) + b"\r\n--B--"
    sent = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=B', **headers}
    return web.http.post(url, content=body, headers=sent)


def reasons(answer: httpx.Response) -> list[int]:
    body = answer.json()
    items = body.get("00081198", {}).get("Value", []) + body.get("0008119A", {}).get("Value", [])
    return [item["00081197"]["Value"][0] for item in items]


def quarantined(web: WebNode) -> list[str]:
    with web.services.database.read() as connection:
        return list(connection.execute(select(schema.quarantine.c.reason)).scalars())


@pytest.mark.parametrize(
    ("content_type", "head", "line"),
    [
        ('multipart/related; type="application/dicom"; boundary="B"', "Content-Type: application/dicom", "\r\n"),
        ("multipart/related; boundary=B; type=application/dicom", "Content-Type: application/dicom", "\n"),
        ("Multipart/Related; Boundary=B", "content-type:application/dicom", "\r\n"),
        (
            "multipart/related;type=application/dicom;boundary=B",
            'Content-Type: application/dicom; transfer-syntax="1.2.840.10008.1.2.1"',
            "\r\n",
        ),
        (
            "multipart/related; type=application/dicom; boundary=B",
            "Content-Type: application/dicom;transfer-syntax=1.2.840.10008.1.2.1\nContent-Length: {length}",
            "\n",
        ),
        ("multipart/related; type=application/dicom; boundary=B", "MIME-Version: 1.0", "\r\n"),
        ("multipart/related; type=application/dicom; boundary=B", "", "\r\n"),
    ],
)
def test_a_part_is_stored_however_its_sender_frames_it(
    web: WebNode, image: Path, content_type: str, head: str, line: str
) -> None:
    data = image.read_bytes()
    lines = head.format(length=len(data)).replace("\n", line)
    framed = f"--B{line}{lines}{line if lines else ''}{line}".encode() + data + f"{line}--B--{line}".encode()
    # Byte by byte, and all at once: the framing must not depend on where the network cuts.
    for number, body in enumerate((framed, [framed[at : at + 1] for at in range(len(framed))])):
        answer = web.http.post("/dicom-web/studies", content=body, headers={"Content-Type": content_type})
        assert answer.status_code == 200, (number, answer.text)
    url = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
    assert web.http.get(url, headers={"Accept": "application/dicom"}).content == data


def test_content_that_looks_like_its_own_boundary_stays_whole(web: WebNode, tmp_path: Path) -> None:
    path = radiograph(tmp_path, PIXELS, ImageComments="x\r\n--Bx\r\n--B -y\r\n--", PatientComments="\r\n-" * 900)
    answer = post(web, [path.read_bytes()] * 2)
    assert answer.status_code == 200
    url = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
    assert web.http.get(url, headers={"Accept": "application/dicom"}).content == path.read_bytes()


def test_a_single_object_needs_no_multipart(web: WebNode, image: Path) -> None:
    answer = web.http.post(
        "/dicom-web/studies", content=image.read_bytes(), headers={"Content-Type": "application/dicom"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    again = post(web, [image.read_bytes()])
    assert again.status_code == 200
    assert web.http.get("/dicom-web/studies").json()[0]["00201208"]["Value"] == [1]


def test_the_answer_says_part_by_part_what_was_stored_and_what_was_not(web: WebNode, tmp_path: Path) -> None:
    good, bad = (path.read_bytes() for path in ct_series(tmp_path, [PIXELS, PIXELS]))
    answer = post(web, [good, b"no DICOM at all", bad[:1000]])
    assert answer.status_code == 202
    assert len(answer.json()["00081199"]["Value"]) == 1
    # What names itself in its file meta information is named in the answer.
    [failed] = answer.json()["00081198"]["Value"]
    assert failed["00081155"]["Value"] == [str(pydicom.dcmread(io.BytesIO(bad)).SOPInstanceUID)]
    assert reasons(answer) == [0xC000, 0xC000]
    assert len(quarantined(web)) == 2


def test_a_truncated_object_is_stored_with_a_warning(web: WebNode, image: Path) -> None:
    answer = post(web, [image.read_bytes()[:-300]])
    assert answer.status_code == 202
    [stored] = answer.json()["00081199"]["Value"]
    assert stored["00081196"]["Value"] == [0xB007]
    assert not quarantined(web)


def test_an_object_of_another_study_is_refused_where_a_study_is_named(web: WebNode, image: Path) -> None:
    study = pydicom.dcmread(image).StudyInstanceUID
    answer = post(web, [image.read_bytes()], url=f"/dicom-web/studies/{generate_uid()}")
    assert answer.status_code == 409
    assert reasons(answer) == [0xA900]
    assert len(quarantined(web)) == 1
    assert web.http.get("/dicom-web/studies").status_code == 204
    answer = post(web, [image.read_bytes()], url=f"/dicom-web/studies/{study}")
    assert answer.status_code == 200
    assert answer.json()["00081190"]["Value"] == [f"{web.dicomweb}/studies/{study}"]


def test_the_answer_comes_as_xml_where_xml_is_asked_for(web: WebNode, image: Path) -> None:
    answer = post(web, [image.read_bytes()], Accept="application/dicom+xml")
    assert answer.headers["content-type"] == "application/dicom+xml"
    root = ET.fromstring(answer.content)
    assert root.find("./DicomAttribute[@keyword='ReferencedSOPSequence']/Item") is not None
    assert post(web, [image.read_bytes()], Accept="image/png").status_code == 406


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ('multipart/related; type="application/dicom+json"; boundary=B', b"--B--", 415),
        ('multipart/related; type="application/dicom+xml"; boundary=B', b"--B--", 415),
        ("application/json", b"{}", 415),
        ("", b"x", 415),
        ("multipart/related; type=application/dicom", b"--B--", 400),
        ("multipart/related; type=application/dicom; boundary=B", b"", 400),
        ("multipart/related; type=application/dicom; boundary=B", b"--B--", 400),
        ("multipart/related; type=application/dicom; boundary=B", b"x" * 50_000, 400),
        ("multipart/related; type=application/dicom; boundary=B", b"--B\r\nno colon\r\n\r\nx\r\n--B--", 400),
        ("multipart/related; type=application/dicom; boundary=B", b"--B\r\n" + b"a: b\r\n" * 9000, 400),
        ("multipart/related; type=application/dicom; boundary=B", b"--B\r\n\r\nhalf a part", 400),
        ("application/dicom", b"", 400),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused_with_the_reason(
    web: WebNode, image: Path, content_type: str, body: bytes, status: int
) -> None:
    answer = web.http.post("/dicom-web/studies", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert list(web.services.incoming.iterdir()) == []
    assert post(web, [image.read_bytes()]).status_code == 200


def test_more_than_is_allowed_is_413_whether_it_is_announced_or_not(
    start_web: Callable[..., WebNode], image: Path
) -> None:
    web = start_web(http={"maximum_body_mb": 1})
    kind = {"Content-Type": "application/dicom"}
    announced = web.http.post("/dicom-web/studies", content=bytes(2 << 20), headers=kind)
    assert announced.status_code == 413
    streamed = web.http.post("/dicom-web/studies", content=(bytes(1 << 16) for _ in range(32)), headers=kind)
    assert streamed.status_code == 413
    assert list(web.services.incoming.iterdir()) == []
    assert post(web, [image.read_bytes()]).status_code == 200


def test_nothing_is_taken_once_the_disk_is_almost_full(
    start_web: Callable[..., WebNode], image: Path, tmp_path: Path
) -> None:
    web = start_web(room=Room([Disk("data_dir", tmp_path)], Marks(refuse=Least(1 << 60))))
    answer = post(web, [image.read_bytes()])
    assert answer.status_code == 507
    assert answer.headers["retry-after"]
    ready = web.http.get("/health/ready")
    assert ready.status_code == 503
    assert list(ready.json()["complaints"]) == ["disk"]


def test_a_large_object_costs_disk_and_not_memory(web: WebNode, image: Path) -> None:
    dataset = pydicom.dcmread(image)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    del dataset.PixelData
    whole = io.BytesIO()
    dataset.save_as(whole, enforce_file_format=True)
    chunk, count = bytes(1 << 20), 192
    process = psutil.Process()
    seen: list[int] = []

    def body() -> Iterator[bytes]:
        yield whole.getvalue() + struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, len(chunk) * count)
        for _ in range(count):
            seen.append(process.memory_info().rss)
            yield chunk

    before = process.memory_info().rss
    answer = web.http.post("/dicom-web/studies", content=body(), headers={"Content-Type": "application/dicom"})
    assert answer.status_code == 200, answer.text
    url = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
    received = 0
    with web.http.stream("GET", url) as back:
        for piece in back.iter_bytes(1 << 20):
            received += len(piece)
            seen.append(process.memory_info().rss)
    assert received > len(chunk) * count
    assert max(seen) - before < 64 << 20
    assert web.http.get(f"{url}/metadata").json()[0]["7FE00010"].keys() == {"vr", "BulkDataURI"}


def test_an_object_of_endlessly_nested_sequences_is_refused_and_the_service_goes_on(web: WebNode, image: Path) -> None:
    dataset = pydicom.dcmread(image)
    del dataset.PixelData
    head = io.BytesIO()
    dataset.save_as(head, enforce_file_format=True)
    opening = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 2**32 - 1
    )
    nested = head.getvalue() + opening * 190_000
    assert len(nested) > 3_600_000
    answer = post(web, [nested])
    assert answer.status_code == 409
    assert reasons(answer) == [0xC000]
    assert len(quarantined(web)) == 1
    assert post(web, [image.read_bytes()]).status_code == 200


def test_every_file_there_is_gets_an_answer_and_what_is_stored_can_be_told_of(web: WebNode, shared_data: Path) -> None:
    paths = sorted(shared_data.rglob("*.dcm"))
    assert len(paths) > 150
    refused, warned = set(), set()
    for path in paths:
        data = path.read_bytes()
        answer = post(web, [data])
        assert answer.status_code in (200, 202, 409), path
        if answer.status_code == 409:
            assert reasons(answer) == [0xC000], path
            refused.add(path.name)
            continue
        if answer.status_code == 202:
            warned.add(path.name)
        url = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
        told = web.http.get(f"{url}/metadata")
        assert told.status_code == 200, path
        assert json.loads(told.content)[0]["00080018"]["Value"][0] in url, path
    assert refused == UNREADABLE
    assert warned == DEFECTIVE
    assert len(quarantined(web)) == len(UNREADABLE)
    assert web.http.get("/health/ready").status_code == 200
    for level in ("studies", "series", "instances"):
        answer = web.http.get(f"/dicom-web/{level}", params={"includefield": "all"})
        assert answer.status_code == 200
        assert "warning" not in answer.headers
