"""The upper layer's bytes, written by hand: what a peer can send is not bound to what a library lets it say."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

__all__ = [
    "ABORT",
    "COMMAND",
    "COMMAND_ENDS",
    "DATA",
    "DATA_ENDS",
    "ECHO_REQUEST",
    "EXPLICIT",
    "IMPLICIT",
    "RELEASE",
    "STORE_REQUEST",
    "VERIFICATION",
    "Line",
    "associate_request",
    "command",
    "data_pdu",
    "echo_request",
    "elements",
    "item",
    "message",
    "pdu",
    "store_request",
]

#: Message control headers (PS3.8 E.2).
DATA, COMMAND, DATA_ENDS, COMMAND_ENDS = 0, 1, 2, 3
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
STORE_REQUEST, ECHO_REQUEST = 0x0001, 0x0030
RELEASE = struct.pack(">BxL4x", 5, 4)
ABORT = struct.pack(">BxL4x", 7, 4)

Fields = Mapping[int, int | str | bytes]


def pdu(kind: int, body: bytes) -> bytes:
    """Write a PDU of any type (PS3.8 9.3.1)."""
    return struct.pack(">BxL", kind, len(body)) + body


def item(kind: int, value: bytes) -> bytes:
    """Write an item of A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(value)) + value


def associate_request(
    called: str,
    contexts: Sequence[tuple[int, str, Sequence[str]]] = ((3, VERIFICATION, (IMPLICIT,)),),
    *,
    calling: str = "HOSTILE",
    maximum: int = 65536,
    extra: bytes = b"",
) -> bytes:
    """Write A-ASSOCIATE-RQ; ``contexts`` are id, abstract syntax and transfer syntaxes."""
    body = struct.pack(">H2x", 1) + called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, abstract, syntaxes in contexts:
        value = bytes([number, 0, 0, 0]) + item(0x30, abstract.encode())
        body += item(0x20, value + b"".join(item(0x40, one.encode()) for one in syntaxes))
    return pdu(1, body + item(0x50, item(0x51, struct.pack(">L", maximum)) + item(0x52, b"1.2.3") + extra))


def data_pdu(context: int, control: int, data: bytes) -> bytes:
    """Write P-DATA-TF with one item (PS3.8 9.3.5)."""
    return pdu(4, struct.pack(">LBB", len(data) + 2, context, control) + data)


def elements(fields: Fields) -> bytes:
    """Write command elements (PS3.7 6.3.1); a number as US, a text as UI."""
    written = b""
    for element, value in fields.items():
        encoded = _encoded(value)
        written += struct.pack("<HHL", 0, element, len(encoded)) + encoded
    return written


def _encoded(value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return struct.pack("<H", value)
    return value.encode() + b"\0" * (len(value) % 2) if isinstance(value, str) else value


def command(fields: Fields) -> bytes:
    """Write a command set with its group length."""
    body = elements(fields)
    return elements({0: struct.pack("<L", len(body))}) + body


def echo_request(message_id: int = 1, *, dataset: bool = False) -> bytes:
    """Write the command set of C-ECHO-RQ."""
    return command(
        {0x0002: VERIFICATION, 0x0100: ECHO_REQUEST, 0x0110: message_id, 0x0800: 0x0102 if dataset else 0x0101}
    )


def store_request(sop_class: str, sop_instance: str, message_id: int = 1, *, dataset: bool = True) -> bytes:
    """Write the command set of C-STORE-RQ."""
    return command(
        {
            0x0002: sop_class,
            0x0100: STORE_REQUEST,
            0x0110: message_id,
            0x0700: 0,
            0x0800: 0x0001 if dataset else 0x0101,
            0x1000: sop_instance,
        }
    )


def message(context: int, command_set: bytes, dataset: bytes | None = None, fragment: int = 16_000) -> list[bytes]:
    """Write the PDUs of a message."""
    pdus = [data_pdu(context, COMMAND_ENDS, command_set)]
    if dataset is not None:
        pieces = [dataset[at : at + fragment] for at in range(0, len(dataset), fragment)] or [b""]
        pdus += [data_pdu(context, DATA, one) for one in pieces[:-1]]
        pdus.append(data_pdu(context, DATA_ENDS, pieces[-1]))
    return pdus


class Line:
    """A bare connection to a node, and what comes back on it."""

    def __init__(self, port: int, seconds: float = 20) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pdus: bytes) -> None:
        """Send, if the node still listens."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.socket.sendall(b"".join(pdus))

    def associate(self, request: bytes) -> Self:
        """Send A-ASSOCIATE-RQ and see it accepted."""
        self.send(request)
        kind, body = self.answer() or (0, b"")
        assert kind == 2, f"not accepted: PDU type {kind}, {body[:4].hex()}"
        return self

    def answer(self) -> tuple[int, bytes] | None:
        """Return type and body of the next PDU; None where the connection ends."""
        head = self._read(6)
        if len(head) < 6:
            return None
        kind, length = struct.unpack(">BxL", head)
        return kind, self._read(length)

    def answers(self) -> Iterator[tuple[int, bytes]]:
        """Go through what comes until the connection ends."""
        while (one := self.answer()) is not None:
            yield one

    def status(self) -> int | None:
        """Return the status of the next response; None where another PDU comes, or nothing."""
        body = self.answer_fields().get(0x0900)
        return None if body is None else struct.unpack("<H", body)[0]

    def answer_fields(self) -> dict[int, bytes]:
        """Return the next response's command elements, none where another PDU comes."""
        found: dict[int, bytes] = {}
        kind, body = self.answer() or (0, b"")
        at = 6
        while kind == 4 and at + 8 <= len(body):
            _, element, length = struct.unpack_from("<HHL", body, at)
            found[element] = body[at + 8 : at + 8 + length]
            at += 8 + length
        return found

    def hang_up(self) -> None:
        """Say that nothing more comes."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def _read(self, count: int) -> bytes:
        got = b""
        with contextlib.suppress(ConnectionError):
            while len(got) < count and (more := self.socket.recv(count - len(got))):
                got += more
        return got
