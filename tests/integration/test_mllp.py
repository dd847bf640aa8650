"""Messages reach a real MLLP receiver byte for byte, and each of its answers has its own outcome."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from demo.messages import read_message
from node.notify.hl7 import Profile
from node.notify.mllp import Accepted, Garbled, Outcome, Refused, Silent, Unreachable, send
from node.notify.receivers import Hl7Receiver
from tests.peers import MllpReceiver, free_port
from tests.unit.test_hl7 import a_report, a_result

NAMES = {
    "Cyrillic": "Люкceмбypг^Андрей Иванович",
    "Greek": "Διονυσιος^Άννα-Μαρία",
    "Korean": "Hong^Gildong=洪^吉洞=홍^길동",
    "Japanese": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
}


def adapter(port: int, **options: float) -> Hl7Receiver:
    return Hl7Receiver(host="127.0.0.1", port=port, profile=Profile(receiving_application="EMR"), **options)


@pytest.mark.parametrize("script", NAMES)
def test_text_arrives_code_point_for_code_point(script: str, mllp_receiver: MllpReceiver) -> None:
    name = NAMES[script]
    words = f"{name} | ^ & ~ \\ 100 %"
    report = a_report(patient_name=name, study_description=words, results=(a_result(route_reason=words),))
    emr = adapter(mllp_receiver.port)
    message = emr.compose(report, "ID1")
    assert emr.send(message, "ID1") == Accepted()
    [logged] = mllp_receiver.messages()
    raw = base64.b64decode(logged["raw"])
    assert raw == message
    assert logged["character_set"] == "UNICODE UTF-8"
    segments = {segment.name: segment for segment in read_message(raw)}
    groups = [group.split("^") for group in name.split("=")]
    got = [[part for part in repetition[:5] if part] for repetition in segments["PID"].repetitions(5)]
    assert [[[hex(ord(c)) for c in part] for part in group] for group in got] == [
        [[hex(ord(c)) for c in part] for part in group] for group in groups
    ]
    assert segments["OBR"].field(44, 2) == words


def test_a_retry_is_the_same_bytes_under_the_same_id(start_mllp_receiver: Callable[..., MllpReceiver]) -> None:
    receiver = start_mllp_receiver("AE:1", "AR:1", "garbage:1", "close:1")
    emr = adapter(receiver.port)
    message = emr.compose(a_report(), "SAME")
    outcomes = [emr.send(message, "SAME").name for _ in range(5)]
    assert outcomes == ["refused", "refused", "garbled", "silent", "accepted"]
    logged = receiver.messages()
    assert len({each["raw"] for each in logged}) == 1
    assert {each["control_id"] for each in logged} == {"SAME"}


@pytest.mark.parametrize(("code", "condition"), [("AE", "207"), ("AR", "200")])
def test_a_refusal_keeps_its_code_and_its_reason(
    code: str, condition: str, start_mllp_receiver: Callable[..., MllpReceiver]
) -> None:
    emr = adapter(start_mllp_receiver(code).port)
    outcome = emr.send(emr.compose(a_report(), "X"), "X")
    assert isinstance(outcome, Refused)
    assert outcome.code == code
    assert "told to refuse" in outcome.text
    # What may be logged quotes no free text of the peer.
    assert outcome.summary == f"{code}, ERR-3 {condition}"


def test_an_acknowledgement_of_another_message_closes_nothing(
    start_mllp_receiver: Callable[..., MllpReceiver],
) -> None:
    emr = adapter(start_mllp_receiver("wrong-id").port)
    outcome = emr.send(emr.compose(a_report(), "X"), "X")
    assert isinstance(outcome, Garbled)
    assert "another message" in outcome.summary


def test_a_host_that_cannot_be_a_name_is_unreachable() -> None:
    outcome = send("a..b", 1, b"MSH|x\r", "X")
    assert isinstance(outcome, Unreachable)
    assert outcome.summary == outcome.text == "no connection to a..b:1: this is no host name"
    assert Hl7Receiver(host="a..b", port=1).probe() == outcome.summary


def test_silence_ends_at_the_deadline(start_mllp_receiver: Callable[..., MllpReceiver]) -> None:
    emr = adapter(start_mllp_receiver("silence").port, answer_seconds=0.3)
    before = time.monotonic()
    outcome = emr.send(emr.compose(a_report(), "X"), "X")
    assert isinstance(outcome, Silent)
    assert time.monotonic() - before < 3


def test_a_receiver_that_is_not_there_is_unreachable_and_its_probe_says_so(mllp_receiver: MllpReceiver) -> None:
    nobody = adapter(free_port())
    assert isinstance(nobody.send(b"MSH|x\r", "X"), Unreachable)
    assert "refused" in (nobody.probe() or "").lower()
    assert adapter(mllp_receiver.port).probe() is None


@contextmanager
def peer_that(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen once, read a frame, and let ``answer`` do what it likes with the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                received = b""
                while not received.endswith(b"\x1c\x0d"):
                    received += connection.recv(65536)
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join(10)


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n\x1c\x0d", Garbled, "framing"),
        (b"\x0bMSH|^~\\&\rMSA|AA\r\x1c\x0d", Garbled, "no HL7"),
        (b"\x0bMSH|^~\\&\rMSA|CA|X\r\x1c\x0d", Garbled, "CA"),
        (b"\x0bMSH|^~\\&\rMSA|AA|X", Garbled, "framing"),
        (b"\x0b\x1c\x0d", Garbled, "no HL7"),
        (b"\x0bMSH|^~\\&\nMSA|AA|X\n\x1c\x0d", Accepted, "AA"),
        (b"\x0bMSH#^~\\&#A#B#C#D#2026##ACK#1#P#2.3\rMSA#AA#X\r\x1c\x0d", Accepted, "AA"),
        (b"\x0bMSH|^~\\&\rMSA|AE|X|bad patient\r\x1c\x0d", Refused, "AE"),
        (b"x" * 2_000_000, Garbled, "framing"),
    ],
)
def test_unusual_answers_have_the_right_outcome(answer: bytes, kind: type[Outcome], word: str) -> None:
    def reply(connection: socket.socket) -> None:
        with suppress(OSError):  # the client may hang up once it has seen too much
            connection.sendall(answer)

    with peer_that(reply) as port:
        outcome = send("127.0.0.1", port, b"MSH|x\r", "X", answer_seconds=5)
    assert isinstance(outcome, kind)
    assert word in outcome.summary
    assert "bad patient" not in outcome.summary
    assert ("bad patient" in outcome.text) is (b"bad patient" in answer)


def test_a_peer_that_drips_gains_no_time() -> None:
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        try:
            while not stop.wait(0.05):
                connection.sendall(b"x")
        except OSError:
            pass  # the client hung up, as it should

    with peer_that(drip) as port:
        before = time.monotonic()
        outcome = send("127.0.0.1", port, b"MSH|x\r", "X", answer_seconds=0.5)
        elapsed = time.monotonic() - before
        stop.set()
    assert isinstance(outcome, Silent)
    assert elapsed < 2


def test_bytes_that_would_break_the_framing_are_never_sent() -> None:
    with pytest.raises(ValueError, match="framing"):
        send("127.0.0.1", free_port(), b"MSH|\x1c\x0dMSH|", "X")
