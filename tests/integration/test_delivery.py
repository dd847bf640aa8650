"""Documents reach real destinations, and nothing counts as delivered without the destination's own word."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless
from pynetdicom import AE, AllStoragePresentationContexts, evt

from node.delivery import Delivered, Refused, Unreachable, make_destination
from node.dimse.scu import send
from node.peers import Address, Peer
from node.settings import DimseDestination, FolderDestination, StowDestination
from tests.dicom_factory import ct_series
from tests.peers import Orthanc, free_port, need_program, tcp_open, wait_until


@pytest.fixture
def document(tmp_path: Path) -> Path:
    generator = np.random.default_rng(1)
    return ct_series(tmp_path / "document", generator.integers(-1000, 1000, (1, 32, 32)))[0]


def dimse(port: int, ae_title: str = "ORTHANC", timeout_seconds: float = 10) -> Any:
    peers = {"pacs": Peer(ae_title=ae_title, host="127.0.0.1", port=port, timeout_seconds=timeout_seconds)}
    return make_destination("pacs", DimseDestination(kind="dimse", peer="pacs"), peers, "OVERREAD")


def stow(url: str, token: str | None = None) -> Any:
    settings = StowDestination.model_validate({"kind": "stow", "url": url, "token": token, "timeout_seconds": 10})
    return make_destination("pacs", settings, {}, "OVERREAD")


def folder(path: Path) -> Any:
    return make_destination("out", FolderDestination(kind="folder", path=path), {}, "OVERREAD")


@contextmanager
def answering(status: int, comment: str = "") -> Iterator[int]:
    """Run a Storage SCP that answers every object with one status."""
    from pydicom import Dataset

    answer = Dataset()
    answer.Status = status
    if comment:
        answer.ErrorComment = comment
    ae = AE("PEER")
    ae.supported_contexts = AllStoragePresentationContexts[:120]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: answer)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Run an HTTP server that answers as told; yields its URL and the requests' headers."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.headers, body))
            status, said = answer(self, body)
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def store_response(uid: str, *, failure: int | None = None, warning: int | None = None) -> dict[str, Any]:
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if failure is not None:
        item["00081197"] = {"vr": "US", "Value": [failure]}
        return {"00081198": {"vr": "SQ", "Value": [item]}}
    if warning is not None:
        item["00081196"] = {"vr": "US", "Value": [warning]}
    return {"00081199": {"vr": "SQ", "Value": [item]}}


def test_orthanc_takes_documents_by_c_store_and_by_stow(orthanc: Orthanc, document: Path, tmp_path: Path) -> None:
    other = ct_series(tmp_path / "other", np.zeros((1, 32, 32)))[0]
    for destination, path in ((dimse(orthanc.dimse_port), document), (stow(orthanc.dicomweb_url), other)):
        assert destination.probe().reached, destination.probe().answer
        first = destination.deliver(path)
        assert isinstance(first, Delivered), first
        assert not first.note
        again = destination.deliver(path)
        assert isinstance(again, Delivered), again
        sent = pydicom.dcmread(path)
        (kept,) = orthanc.instances_of(sent.StudyInstanceUID)
        assert kept.endswith(sent.PixelData)
    orthanc.stop(kill=True)
    for destination in (dimse(orthanc.dimse_port), stow(orthanc.dicomweb_url)):
        outcome = destination.deliver(document)
        assert isinstance(outcome, Unreachable), outcome
        assert str(orthanc.dimse_port) in outcome.answer or str(orthanc.http_port) in outcome.answer
        assert not destination.probe().reached


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (0x0000, Delivered, "0x0000: stored"),
        (0xB000, Delivered, "coerced"),
        (0xB006, Delivered, "discarded"),
        (0xB007, Delivered, "does not match"),
        (0xA700, Unreachable, "out of resources"),
        (0xA900, Refused, "0xA900: the dataset does not match its SOP Class"),
        (0xC123, Refused, "0xC123: cannot understand"),
        (0x0110, Refused, "0x0110: processing failure"),
        (0x0124, Refused, "not authorized"),
    ],
)
def test_the_peers_status_decides(document: Path, status: int, kind: type, words: str) -> None:
    with answering(status, "said the peer") as port:
        outcome = dimse(port, "PEER").deliver(document)
    assert type(outcome) is kind
    assert words in outcome.answer
    assert "said the peer" in outcome.answer
    assert "said the peer" not in outcome.summary
    assert f"0x{status:04X}" in outcome.summary
    if isinstance(outcome, Delivered):
        assert bool(outcome.note) is (status != 0)
        assert outcome.note in outcome.answer


def test_a_peer_that_rejects_us_for_good_has_refused(document: Path) -> None:
    ae = AE("PEER")
    ae.supported_contexts = AllStoragePresentationContexts[:120]
    ae.require_calling_aet = ["SOMEONE"]
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        outcome = dimse(server.server_address[1], "PEER").deliver(document)
    finally:
        server.shutdown()
    assert isinstance(outcome, Refused)
    assert "Calling AE title not recognised" in outcome.answer


def test_a_peer_that_takes_no_such_sop_class_has_refused(document: Path) -> None:
    ae = AE("PEER")
    ae.add_supported_context("1.2.840.10008.1.1")
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        outcome = dimse(server.server_address[1], "PEER").deliver(document)
    finally:
        server.shutdown()
    assert isinstance(outcome, Refused)


def test_a_peer_that_dies_before_its_answer_has_not_taken_the_document(document: Path) -> None:
    def abort(event: Any) -> int:
        event.assoc.abort()
        return 0x0000

    ae = AE("PEER")
    ae.supported_contexts = AllStoragePresentationContexts[:120]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, abort)])
    try:
        outcome = dimse(server.server_address[1], "PEER").deliver(document)
    finally:
        server.shutdown()
    assert isinstance(outcome, Unreachable)


def test_what_a_peer_does_not_take_compressed_it_gets_uncompressed(document: Path, tmp_path: Path) -> None:
    program = need_program("/usr/bin/storescp", "dcmtk")
    dataset = pydicom.dcmread(document)
    pixels = dataset.pixel_array
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    compressed = tmp_path / "compressed.dcm"
    dataset.save_as(compressed)
    received, port = tmp_path / "received", free_port()
    received.mkdir()
    with subprocess.Popen([program, "-od", str(received), "-aet", "PLAIN", str(port)]) as peer:
        try:
            wait_until(lambda: tcp_open(port), 10, "storescp")
            report = send([compressed], Address("PLAIN", "127.0.0.1", port), "OVERREAD")
        finally:
            peer.terminate()
    (sent,) = report.sent
    assert sent.stored, sent.answer
    assert sent.transcoded
    (path,) = received.iterdir()
    kept = pydicom.dcmread(path)
    assert kept.SOPInstanceUID == dataset.SOPInstanceUID
    assert not kept.file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(kept.pixel_array, pixels)


def test_sending_a_folder_names_what_is_no_dicom_and_tells_its_progress(
    orthanc: Orthanc, document: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no DICOM")
    told: list[tuple[int, int]] = []
    report = send(
        [text, document, tmp_path / "absent.dcm"],
        Address("ORTHANC", "127.0.0.1", orthanc.dimse_port),
        "OVERREAD",
        progress=lambda done, of: told.append((done, of)),
    )
    assert report.stored == 1
    assert [(one.path.name, one.reason) for one in report.skipped] == [
        ("notes.txt", "is no DICOM file: it has no DICM prefix"),
        ("absent.dcm", "cannot be read: No such file or directory"),
    ]
    assert told == [(2, 3), (3, 3)]


def test_more_than_128_contexts_are_sent_over_several_associations(tmp_path: Path) -> None:
    base = pydicom.dcmread(ct_series(tmp_path / "ct", np.zeros((1, 8, 8)))[0])
    classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts][:120]
    files = []
    for number, sop_class in enumerate(classes):
        base.SOPClassUID = base.file_meta.MediaStorageSOPClassUID = sop_class
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        files.append(tmp_path / f"{number}.dcm")
        base.save_as(files[-1])
    with answering(0x0000) as port:
        report = send(files, Address("PEER", "127.0.0.1", port), "OVERREAD")
    assert report.stored == len(classes), report.failed


@pytest.mark.parametrize(
    ("code", "response", "kind", "words"),
    [
        (200, {"failure": 0xA900}, Refused, "0xA900"),
        (202, {"failure": 0xC000}, Refused, "0xC000"),
        (409, {"failure": 0x0110}, Refused, "0x0110"),
        (409, {"failure": 0xA700}, Unreachable, "0xA700"),
        (200, {}, Delivered, "200"),
        (202, {"warning": 0xB000}, Delivered, "202"),
        (200, None, Refused, "does not say that the instance is stored"),
        (400, None, Refused, "400"),
        (401, None, Refused, "401"),
        (503, None, Unreachable, "503"),
        (429, None, Unreachable, "429"),
    ],
)
def test_the_store_response_decides_not_the_status_line_alone(
    document: Path, code: int, response: dict[str, int] | None, kind: type, words: str
) -> None:
    uid = str(pydicom.dcmread(document).SOPInstanceUID)
    said = b"" if response is None else store_response(uid, **response)
    with web(lambda *_: (code, said)) as (url, _):
        outcome = stow(url).deliver(document)
    assert type(outcome) is kind, outcome
    assert words in outcome.answer
    assert str(code) in outcome.summary
    if isinstance(outcome, Delivered):
        assert bool(outcome.note) is ("warning" in (response or {}))
        assert outcome.note in outcome.answer


def test_a_response_about_another_instance_is_no_delivery(document: Path) -> None:
    with web(lambda *_: (200, store_response("1.2.3"))) as (url, _):
        assert isinstance(stow(url).deliver(document), Refused)


@pytest.mark.parametrize("said", [b"[" * 100_000, b"\xff\xfe", b"7", b'[{"00081199": {"Value": [3]}}]'])
def test_a_response_that_is_no_store_response_is_no_delivery(document: Path, said: bytes) -> None:
    with web(lambda *_: (200, said)) as (url, _):
        assert isinstance(stow(url).deliver(document), Refused)


@pytest.mark.parametrize("host", ["h" * 64, "xn--a.example", "127.0.0.1:65535"])
def test_an_address_that_leads_nowhere_is_unreachable(document: Path, host: str) -> None:
    destination = stow(f"http://{host}/dicom-web")
    assert isinstance(destination.deliver(document), Unreachable)
    assert not destination.probe().reached


def test_an_environment_that_names_no_proxy_is_no_crash(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "nonsense://[")
    destination = stow("http://peer.example/dicom-web")
    assert isinstance(destination.deliver(document), Unreachable)
    assert not destination.probe().reached


def test_a_password_in_an_address_is_not_told(document: Path) -> None:
    outcome = stow(f"http://user:hidden@127.0.0.1:{free_port()}/dicom-web").deliver(document)
    assert isinstance(outcome, Unreachable)
    assert "127.0.0.1" in outcome.answer
    assert "hidden" not in outcome.answer


def test_stow_sends_the_bytes_as_they_are_and_the_token(document: Path) -> None:
    uid = str(pydicom.dcmread(document).SOPInstanceUID)
    with web(lambda *_: (200, store_response(uid))) as (url, seen):
        assert isinstance(stow(url, "secret").deliver(document), Delivered)
    ((headers, body),) = seen
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert document.read_bytes() in body


def test_a_folder_gets_whole_files_once(document: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "documents"
    destination = folder(out)
    assert destination.probe().reached
    assert isinstance(destination.deliver(document), Delivered)
    again = destination.deliver(document)
    assert isinstance(again, Delivered)
    assert "already" in again.answer
    assert [path.name for path in out.iterdir()] == [f"{pydicom.dcmread(document).SOPInstanceUID}.dcm"]
    assert next(out.iterdir()).read_bytes() == document.read_bytes()


def test_a_folder_never_replaces_what_differs(document: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    there = out / f"{pydicom.dcmread(document).SOPInstanceUID}.dcm"
    there.write_bytes(b"a human's")
    outcome = folder(out).deliver(document)
    assert isinstance(outcome, Refused)
    assert there.read_bytes() == b"a human's"


def test_a_folder_that_cannot_be_made_is_unreachable(document: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    destination = folder(tmp_path / "file" / "out")
    assert isinstance(destination.deliver(document), Unreachable)
    assert not destination.probe().reached


@pytest.mark.parametrize("make", [lambda tmp: dimse(9), lambda tmp: stow("http://127.0.0.1:9"), folder])
def test_a_document_that_is_no_dicom_is_refused_everywhere(make: Callable[[Path], Any], tmp_path: Path) -> None:
    document = tmp_path / "document.dcm"
    document.write_bytes(b"no DICOM")
    outcome = make(tmp_path / "out").deliver(document)
    assert outcome == Refused("the document is no DICOM file: it has no DICM prefix")
