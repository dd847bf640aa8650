"""What a destination says costs no memory and no time without end, and its own words stay out of the log."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydicom import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt
from structlog.testing import capture_logs

from inference.registry import Registry
from node.delivery import Refused, Unreachable, make_destination
from node.peers import Peer
from node.settings import DimseDestination, Settings, StowDestination
from node.workflow.models import Models
from node.workflow.steps import deliver
from node.workflow.way import Way
from storage import schema
from tests.dicom_factory import ct_series
from tests.work import Holding


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return ct_series(tmp_path / "document", np.zeros((1, 32, 32)))[0]


def stow(port: int, seconds: float = 10) -> Any:
    settings = StowDestination.model_validate(
        {"kind": "stow", "url": f"http://127.0.0.1:{port}/dicom-web", "timeout_seconds": seconds}
    )
    return make_destination("pacs", settings, {}, "OVERREAD")


@contextmanager
def answering_http_with(chunks: Callable[[], Iterator[bytes]]) -> Iterator[int]:
    """Run a server that reads a request and answers it with bytes."""

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            request = b""
            while b"--\r\n" not in request[-10:]:
                request += connection.recv(1 << 16)
            try:
                for chunk in chunks():
                    connection.sendall(chunk)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(30)


def test_an_answer_by_stow_without_end_is_cut(document: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        for _ in range(300):
            yield bytes(1 << 20)

    before = psutil.Process().memory_info().rss
    with answering_http_with(chunks) as port:
        outcome = stow(port).deliver(document)
    assert isinstance(outcome, Refused)
    assert "more than 1048576 bytes" in outcome.summary
    assert psutil.Process().memory_info().rss - before < 100_000_000


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: "], ids=["body", "head"])
def test_an_answer_by_stow_that_comes_a_byte_now_and_then_has_a_deadline(document: Path, head: bytes) -> None:
    pause = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield head
        for _ in range(200):
            pause.wait(0.1)
            yield b"1"

    began = time.monotonic()
    with answering_http_with(chunks) as port:
        outcome = stow(port, seconds=1).deliver(document)
        assert time.monotonic() - began < 10
        pause.set()
    assert isinstance(outcome, Unreachable), outcome


def test_a_deeply_nested_answer_by_stow_is_refused(document: Path) -> None:
    nested = b"[" * 500_000

    def chunks() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(nested)
        yield nested

    with answering_http_with(chunks) as port:
        outcome = stow(port).deliver(document)
    assert isinstance(outcome, Refused)
    assert "does not say that the instance is stored" in outcome.answer


def test_a_destinations_own_words_are_kept_in_the_row_and_not_logged(embedded: Holding, tmp_path: Path) -> None:
    embedded.finished(tmp_path)
    answer = Dataset()
    answer.Status = 0xA900
    answer.ErrorComment = "Mueller^Hans"
    ae = AE("PEER")
    ae.supported_contexts = AllStoragePresentationContexts[:120]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: answer)])
    assert server is not None
    way = Way(
        settings=Settings(data_dir=embedded.root, routes=[]),  # type: ignore[arg-type]
        database=embedded.database,
        blobs=embedded.blobs,
        incoming=embedded.incoming,
        scratch=tmp_path,
        models=Models(Registry(()), Path("models")),
    )
    port = server.server_address[1]
    peers = {"pacs": Peer(ae_title="PEER", host="127.0.0.1", port=port, timeout_seconds=10)}
    settings = DimseDestination(kind="dimse", peer="pacs")
    try:
        with capture_logs() as logs:
            assert deliver(way, make_destination("pacs", settings, peers, "OVERREAD")) == 1
    finally:
        server.shutdown()
    (line,) = [one for one in logs if one["event"] == "delivery tried"]
    assert line["answer"] == "0xA900: the dataset does not match its SOP Class"
    assert "Mueller" not in str(logs)
    with embedded.database.read() as connection:
        (row,) = connection.execute(schema.delivery.select())
    assert "Mueller^Hans" in str(row._mapping)
