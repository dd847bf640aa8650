"""A destination that answers for something else, without end or hardly at all: nothing counts as delivered."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_ECHO, C_STORE

from node.delivery import Delivered, Unreachable, make_destination
from node.peers import Peer
from node.settings import DimseDestination
from tests.dicom_factory import ct_series

STORED = 0x0000


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return ct_series(tmp_path / "document", np.zeros((1, 32, 32)))[0]


def dimse(port: int) -> Any:
    peers = {"pacs": Peer(ae_title="PEER", host="127.0.0.1", port=port, timeout_seconds=2)}
    return make_destination("pacs", DimseDestination(kind="dimse", peer="pacs"), peers, "OVERREAD")


@contextmanager
def saying_first(make: Callable[[Any], Any]) -> Iterator[int]:
    """Run a Storage SCP that says something else before it answers that it failed."""

    def handle(event: evt.Event) -> int:
        said = make(event.request)
        if said is not None:
            event.assoc.dimse.send_msg(said, event.context.context_id)
        return STORED if said is None else 0xC000

    ae = AE("PEER")
    ae.supported_contexts = AllStoragePresentationContexts[:120]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, handle)])
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def _stored(request: Any, **changes: Any) -> C_STORE:
    response = C_STORE()
    response.MessageIDBeingRespondedTo = request.MessageID
    response.AffectedSOPClassUID = request.AffectedSOPClassUID
    response.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID
    response.Status = STORED
    for name, value in changes.items():
        setattr(response, name, value)
    return response


def _echoed(request: Any) -> C_ECHO:
    response = C_ECHO()
    response.MessageIDBeingRespondedTo = request.MessageID
    response.AffectedSOPClassUID = "1.2.840.10008.1.1"
    response.Status = STORED
    return response


@pytest.mark.parametrize(
    "lie",
    [
        lambda request: _stored(request, AffectedSOPInstanceUID="1.2.3.4"),
        lambda request: _stored(request, MessageIDBeingRespondedTo=request.MessageID + 7),
        _echoed,
    ],
    ids=["another object", "another request", "C-ECHO"],
)
def test_a_success_for_something_else_is_no_delivery(document: Path, lie: Callable[[Any], Any]) -> None:
    with saying_first(lie) as port:
        outcome = dimse(port).deliver(document)
    assert isinstance(outcome, Unreachable), outcome
    assert "something else" in outcome.answer


@pytest.mark.parametrize("named", [True, False])
def test_a_response_need_not_name_the_object(document: Path, named: bool) -> None:
    def answer(request: Any) -> Any:
        return None if named else _stored(request, AffectedSOPInstanceUID=None, AffectedSOPClassUID=None)

    with saying_first(answer) as port:
        assert isinstance(dimse(port).deliver(document), Delivered)


@contextmanager
def answering_association_with(chunks: Callable[[], Iterator[bytes]]) -> Iterator[int]:
    """Run a server that answers whatever it is sent with bytes."""
    stop = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1 << 20)
            try:
                for chunk in chunks():
                    connection.sendall(chunk)
                    if stop.is_set():
                        return
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            stop.set()
            thread.join(20)


def test_an_answer_of_four_gigabytes_is_not_taken(document: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield struct.pack(">BxL", 2, 0xFFFFFFFF)
        for _ in range(300):
            yield bytes(1 << 20)

    before = psutil.Process().memory_info().rss
    with answering_association_with(chunks) as port:
        assert isinstance(dimse(port).deliver(document), Unreachable)
        assert psutil.Process().memory_info().rss - before < 100_000_000


def test_an_answer_that_comes_a_byte_now_and_then_is_not_waited_for(document: Path) -> None:
    pause = threading.Event()

    def chunks() -> Iterator[bytes]:
        for byte in struct.pack(">BxL", 2, 1000) + bytes(1000):
            pause.wait(0.1)
            yield bytes([byte])

    began = time.monotonic()
    with answering_association_with(chunks) as port:
        assert isinstance(dimse(port).deliver(document), Unreachable)
        assert time.monotonic() - began < 20
