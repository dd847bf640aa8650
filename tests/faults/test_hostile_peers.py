"""A peer that sends without end, or hardly at all, costs the receiver neither memory nor a place for long."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.dimse.scu import echo
from node.peers import Address
from tests.peers import wait_until
from tests.receiver import Receiver, receiving

COMMAND, COMMAND_ENDS, DATA = 1, 3, 0
VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(
        tmp_path / "receiver", options={"receivers": 1, "network_timeout_seconds": 1, "artim_timeout_seconds": 1}
    ) as one:
        yield one


@pytest.fixture
def connection(receiver: Receiver) -> Iterator[socket.socket]:
    """A bare connection on which an association stands, context 3 for Verification."""
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=20) as one:
        one.sendall(associate_request(receiver.ae_title))
        answer = one.recv(4096)
        assert answer[0] == 2, "A-ASSOCIATE-AC"
        yield one


def associate_request(called: str) -> bytes:
    """Write A-ASSOCIATE-RQ (PS3.8 9.3.2)."""

    def item(kind: int, value: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(value)) + value

    context = bytes([3, 0, 0, 0]) + item(0x30, VERIFICATION.encode()) + item(0x40, b"1.2.840.10008.1.2")
    user = item(0x51, struct.pack(">L", 65536)) + item(0x52, b"1.2.3")
    body = struct.pack(">H2x", 1) + called.ljust(16).encode() + b"HOSTILE".ljust(16) + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BxL", 1, len(body)) + body


def pdu(control: int, data: bytes) -> bytes:
    value = struct.pack(">LBB", len(data) + 2, 3, control) + data
    return struct.pack(">BxL", 4, len(value)) + value


def echo_request(dataset: bool) -> bytes:
    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    body = element(0x0002, VERIFICATION.encode() + b"\0")
    for number, value in ((0x0100, 0x0030), (0x0110, 1), (0x0800, 0x0102 if dataset else 0x0101)):
        body += element(number, struct.pack("<H", value))
    return element(0, struct.pack("<L", len(body))) + body


def flood(connection: socket.socket, control: int, megabytes: int) -> bool:
    """Send fragments until they are refused; returns whether they were."""
    connection.settimeout(20)
    fragment = pdu(control, bytes(30_000))
    try:
        for _ in range(megabytes * 34):
            connection.sendall(fragment)
    except OSError:
        return True
    return False


def memory(receiver: Receiver) -> int:
    parent = psutil.Process(receiver.process.pid)
    return max(int(one.memory_info().rss) for one in [parent, *parent.children(recursive=True)])


def refusals(receiver: Receiver, event: str) -> list[dict[str, Any]]:
    return [line for line in receiver.log() if line["event"] == event]


def answer_of(connection: socket.socket) -> int | None:
    """Return the type of the next PDU, None where the connection ends."""
    connection.settimeout(20)
    try:
        return (connection.recv(1) or [None])[0]
    except ConnectionError:
        return None


@pytest.mark.parametrize(
    ("begin", "control", "what"),
    [
        ([pdu(COMMAND_ENDS, echo_request(dataset=True))], DATA, "dataset of a message that is no C-STORE request"),
        ([], COMMAND, "command set"),
        ([], DATA, "a dataset without a command"),
    ],
    ids=["a dataset behind C-ECHO-RQ", "a command set", "a dataset without a command"],
)
def test_a_message_without_end_is_aborted_before_it_fills_the_memory(
    receiver: Receiver, connection: socket.socket, begin: list[bytes], control: int, what: str
) -> None:
    before = memory(receiver)
    for one in begin:
        connection.sendall(one)
    connection.sendall(pdu(control, bytes(30_000)) * (40 if control == DATA else 3))
    assert answer_of(connection) == 7, "A-ABORT"
    flood(connection, control, 60)
    wait_until(lambda: refusals(receiver, "invalid message"), 10, "the message to be refused")
    assert what in refusals(receiver, "invalid message")[0]["reason"]
    assert memory(receiver) - before < 30_000_000
    assert echo(Address(receiver.ae_title, "127.0.0.1", receiver.port), "TEST").reached


@pytest.mark.parametrize("established", [True, False])
def test_a_pdu_that_comes_a_byte_now_and_then_is_cut_at_its_deadline(
    receiver: Receiver, connection: socket.socket, established: bool
) -> None:
    slow = connection if established else socket.create_connection(("127.0.0.1", receiver.port), timeout=10)
    began = time.monotonic()
    done = threading.Event()

    def trickle() -> None:
        for byte in (b"\x04" if established else b"\x01") + b"\0\0\0\x10\0" + bytes(200):
            if done.wait(0.1):
                return
            try:
                slow.sendall(bytes([byte]))
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        assert answer_of(slow) in (None, 7)
        # A second is the limit; a machine with much to do may take some more.
        assert time.monotonic() - began < 8
    finally:
        done.set()
        thread.join()
        slow.close()
    wait_until(lambda: refusals(receiver, "connection given up"), 10, "the line in the log")
    assert refusals(receiver, "connection given up")[0]["reason"] == "a PDU did not come in time"


def test_four_gigabytes_announced_are_one_line_in_the_log(receiver: Receiver, connection: socket.socket) -> None:
    before = len(receiver.log())
    connection.sendall(b"\x04\x00\xff\xff\xff\xff")
    assert answer_of(connection) == 7, "A-ABORT"
    wait_until(lambda: refusals(receiver, "association ended"), 10, "the association to end")
    lines = [line for line in receiver.log()[before:] if line["event"] != "association ended"]
    (line,) = lines
    assert line["event"] == "invalid PDU"
    assert "4294967295" in line["reason"]
    assert not {"exception", "exc_info"} & line.keys()
