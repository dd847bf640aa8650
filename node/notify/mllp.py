"""Sends one HL7 message over MLLP and says what came of it.

The answer is a value, not an exception: what to do about it (close, retry, park) is the workflow's decision.
``summary`` of an outcome may be logged; ``text`` also quotes the peer and belongs into the database only, since a
receiver may name the patient in its reason.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = ["Accepted", "Garbled", "Outcome", "Refused", "Silent", "Unreachable", "reachable", "send"]

_START, _END = b"\x0b", b"\x1c\x0d"
_LARGEST_ANSWER = 1024 * 1024
_CODECS = {"UNICODE UTF-8": "utf-8", "8859/1": "latin-1", "": "utf-8"}


@dataclass(frozen=True, slots=True)
class Accepted:
    """AA for this very message: the receiver has it."""

    name: ClassVar[str] = "accepted"
    text: str = "AA"
    summary: str = "AA"


@dataclass(frozen=True, slots=True)
class Refused:
    """AE or AR for this very message, with MSA-3 and the ERR segments as the receiver wrote them."""

    name: ClassVar[str] = "refused"
    code: Literal["AE", "AR"]
    text: str
    summary: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The message left, and no complete answer came in time: the receiver may or may not have it."""

    name: ClassVar[str] = "silent"
    text: str

    @property
    def summary(self) -> str:
        """The same as the text: it quotes nobody."""
        return self.text


@dataclass(frozen=True, slots=True)
class Garbled:
    """An answer came that is no acknowledgement of this message."""

    name: ClassVar[str] = "garbled"
    text: str
    summary: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No connection: the message never left."""

    name: ClassVar[str] = "unreachable"
    text: str

    @property
    def summary(self) -> str:
        """The same as the text: it quotes nobody."""
        return self.text


Outcome = Accepted | Refused | Silent | Garbled | Unreachable


def send(
    host: str,
    port: int,
    message: bytes,
    control_id: str,
    *,
    connect_seconds: float = 10.0,
    answer_seconds: float = 30.0,
) -> Outcome:
    """Send ``message`` on a connection of its own and wait for its acknowledgement.

    Parameters
    ----------
    message
        The bytes as stored, without framing; they must hold no MLLP framing byte.
    control_id
        The message's MSH-10, which MSA-2 of the answer has to repeat.
    connect_seconds, answer_seconds
        Deadlines of the connection, and of sending plus the whole answer (a dripping peer gains no time).

    Returns
    -------
    Outcome
        Only ``Accepted`` closes the notification.
    """
    if _START in message or _END in message:
        raise ValueError(f"message {control_id} holds MLLP framing bytes")
    peer = f"{host}:{port}"
    try:
        connection = socket.create_connection((host, port), timeout=connect_seconds)
    except (OSError, UnicodeError) as error:
        return Unreachable(f"no connection to {peer}: {_plain(error)}")
    deadline = time.monotonic() + answer_seconds
    with connection:
        try:
            connection.settimeout(answer_seconds)
            connection.sendall(_START + message + _END)
            received = _receive(connection, deadline)
        except TimeoutError:
            return Silent(f"{peer} did not answer within {answer_seconds:g} s")
        except OSError as error:
            return Silent(f"{peer} broke the connection before it answered: {_plain(error)}")
    if received is None:
        return Silent(f"{peer} closed the connection without an answer")
    return _judge(received, control_id, peer)


def reachable(host: str, port: int, seconds: float = 5.0) -> str | None:
    """Return None when something accepts connections there, else why not, in plain words. MLLP itself has no echo."""
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except (OSError, UnicodeError) as error:
        return f"no connection to {host}:{port}: {_plain(error)}"
    return None


def _receive(connection: socket.socket, deadline: float) -> bytes | None:
    """Return everything up to the end of the first frame; None when the peer closed before a byte of it."""
    received = b""
    while _END not in received and len(received) <= _LARGEST_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(65536)
        if not chunk:
            return received or None
        received += chunk
    return received


def _judge(received: bytes, control_id: str, peer: str) -> Outcome:
    start, end = received.find(_START), received.find(_END)
    if start < 0 or end < start:
        size = len(received)
        return Garbled(f"{peer} answered {size} bytes without MLLP framing", f"{size} bytes without MLLP framing")
    segments = _segments(received[start + 1 : end])
    msa = next((fields for fields in segments if fields[0] == "MSA"), None)
    if msa is None or len(msa) < 3:
        return Garbled(f"{peer} answered something that is no HL7 acknowledgement", "no HL7 acknowledgement")
    code, answered = msa[1].strip(), msa[2].strip()
    if answered != control_id:
        why = "the acknowledgement names another message"
        return Garbled(f"{peer}: {why} ({answered[:40]!r} in MSA-2, sent was {control_id!r})", why)
    if code == "AA":
        return Accepted()
    if code not in {"AE", "AR"}:
        shown = code if re.fullmatch(r"[A-Z]{1,3}", code) else "no known code"
        return Garbled(f"{peer} answered {shown} in MSA-1 where AA, AE or AR was due", f"MSA-1 was {shown}")
    errors = [fields for fields in segments if fields[0] == "ERR"]
    parts = [msa[3] if len(msa) > 3 else ""]
    parts += [" ".join(field for field in fields[1:] if field) for fields in errors]
    spoken = "; ".join(part.strip() for part in parts if part.strip())
    codes = [fields[3].split("^")[0] for fields in errors if len(fields) > 3]
    condition = "".join(f", ERR-3 {value}" for value in codes if re.fullmatch(r"\d{1,4}", value))
    refusal: Literal["AE", "AR"] = "AE" if code == "AE" else "AR"
    return Refused(refusal, f"{code}: {spoken or 'no reason given'}"[:2000], f"{code}{condition}")


def _segments(content: bytes) -> list[list[str]]:
    """Return the segments as lists of fields, read in the character set that MSH-18 names; [] when there is no MSH."""
    if not content.startswith(b"MSH") or len(content) < 8:
        return []
    separator = content[3:4]
    header = content.replace(b"\n", b"\r").split(b"\r")[0].split(separator)
    # MSH-1 is the separator itself, so MSH-18 stands at index 17 here.
    named = header[17].decode("latin-1").split("~")[0] if len(header) > 17 else ""
    text = content.decode(_CODECS.get(named, "utf-8"), errors="replace")
    lines = text.replace("\n", "\r").split("\r")
    return [line.split(separator.decode("latin-1")) for line in lines if line]


def _plain(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "this is no host name"
    return "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error) or type(error).__name__)
