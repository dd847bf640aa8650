"""Peers that break the rules of an association: what each is answered, and that nobody else notices."""

from __future__ import annotations

import itertools
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import psutil
import pytest

from tests.faults.hostile_datasets import CT
from tests.faults.pushing import small_object
from tests.faults.wire import (
    ABORT,
    COMMAND_ENDS,
    DATA,
    DATA_ENDS,
    EXPLICIT,
    IMPLICIT,
    RELEASE,
    VERIFICATION,
    Line,
    associate_request,
    command,
    data_pdu,
    echo_request,
    elements,
    message,
    pdu,
    store_request,
)
from tests.peers import wait_until
from tests.receiver import Receiver, receiving

MR, PRINT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.1.9"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
#: Verification, CT, a class that the node does not serve, and queries.
CONTEXTS = ((1, VERIFICATION, (IMPLICIT,)), (3, CT, (EXPLICIT,)), (5, PRINT, (IMPLICIT,)), (7, FIND, (EXPLICIT,)))
ABORTED, RELEASED = "A-ABORT", "A-RELEASE-RP"
ASSOCIATIONS = 40
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    options = {"receivers": 1, "network_timeout_seconds": 2, "maximum_associations": ASSOCIATIONS}
    with receiving(tmp_path_factory.mktemp("hostile"), options=options) as one:
        yield one


def held(receiver: Receiver) -> tuple[int, int]:
    return len(receiver.instances()), len(receiver.rows("SELECT blob FROM quarantine"))


def outcome(line: Line) -> str | int | None:
    """Say what comes next: a status, or what ends the association."""
    kind, body = line.answer() or (0, b"")
    if kind != 4:
        return {7: ABORTED, 6: RELEASED, 3: "A-ASSOCIATE-RJ", 0: None}[kind]
    at = body.index(struct.pack("<HHL", 0, 0x0900, 2))
    return int.from_bytes(body[at + 8 : at + 10], "little")


@contextmanager
def at_full_speed(receiver: Receiver) -> Iterator[None]:
    """Hold that somebody else is served within the block as before it: twenty objects, each about as quickly."""
    before = _pace(receiver)
    yield
    during = _pace(receiver)
    # Other tests share the machine: what would be noticed is a wait for a timer or a lock.
    assert median(during) < 4 * median(before) + 0.1
    assert max(during) < 2


def _pace(receiver: Receiver) -> list[float]:
    took = []
    with Line(receiver.port) as line:
        line.associate(associate_request(receiver.ae_title, CONTEXTS, calling="GOOD"))
        for _ in range(20):
            uid, dataset = small_object(next(NUMBERS))
            began = time.monotonic()
            line.send(*message(3, store_request(CT, uid), dataset))
            assert outcome(line) == 0x0000
            took.append(time.monotonic() - began)
        line.send(RELEASE)
        assert outcome(line) == RELEASED
    return took


def fields(uid: str, **changed: Any) -> dict[int, Any]:
    values: dict[str, Any] = {"x0002": CT, "x0100": 1, "x0110": 1, "x0700": 0, "x0800": 1, "x1000": uid} | changed
    return {int(name[1:], 16): value for name, value in values.items() if value is not None}


#: What is sent on an association, made of a SOP Instance UID and its dataset; what comes back; what is stored; what is
#: put into quarantine.
MISBEHAVIOUR: dict[str, tuple[Callable[[str, bytes], list[bytes]], str | int, int, int]] = {
    "a second association request": (lambda u, d: [associate_request("OVERREAD", CONTEXTS)], ABORTED, 0, 0),
    "an association answer": (lambda u, d: [pdu(2, bytes(68))], ABORTED, 0, 0),
    "a release answer": (lambda u, d: [pdu(6, bytes(4))], ABORTED, 0, 0),
    "a PDU of an unknown type": (lambda u, d: [pdu(0x2A, bytes(20))], ABORTED, 0, 0),
    "garbage": (lambda u, d: [b"\xff" * 500], ABORTED, 0, 0),
    "HTTP": (lambda u, d: [b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"], ABORTED, 0, 0),
    "4 GB announced": (lambda u, d: [b"\x04\x00\xff\xff\xff\xff"], ABORTED, 0, 0),
    "a PDU shorter than its items": (
        lambda u, d: [b"\x04\0" + struct.pack(">L", 50) + data_pdu(3, 3, store_request(CT, u))[6:]],
        ABORTED,
        0,
        0,
    ),
    "an item longer than its PDU": (
        lambda u, d: [pdu(4, struct.pack(">LBB", 5000, 3, 3) + store_request(CT, u))],
        ABORTED,
        0,
        0,
    ),
    "an item of no length": (lambda u, d: [pdu(4, bytes(4))], ABORTED, 0, 0),
    "an item without a control header": (lambda u, d: [pdu(4, struct.pack(">LB", 1, 3))], ABORTED, 0, 0),
    "a data PDU without items": (lambda u, d: [pdu(4, b""), *message(1, echo_request())], 0x0000, 0, 0),
    "a context that was never proposed": (lambda u, d: message(77, store_request(CT, u), d), ABORTED, 0, 0),
    "a context that was rejected": (lambda u, d: message(5, store_request(PRINT, u), d), ABORTED, 0, 0),
    "the context of another service": (lambda u, d: message(1, store_request(CT, u), d), 0x0122, 0, 0),
    "an object stored as a query": (
        lambda u, d: message(7, store_request(FIND, u), d.replace(CT.encode() + b"\0", FIND.encode() + b"\0")),
        0x0122,
        0,
        0,
    ),
    "another SOP Class than the context's": (lambda u, d: message(3, store_request(MR, u), d), 0x0122, 0, 1),
    "a dataset in another context than its command": (
        lambda u, d: [data_pdu(3, COMMAND_ENDS, store_request(CT, u)), data_pdu(1, DATA_ENDS, d)],
        ABORTED,
        0,
        0,
    ),
    "another instance than announced": (lambda u, d: message(3, store_request(CT, "1.2.3"), d), 0xA900, 0, 1),
    "a request without SOP Class": (lambda u, d: message(3, command(fields(u, x0002=None)), d), 0x0122, 0, 1),
    "a request without SOP Instance": (lambda u, d: message(3, command(fields(u, x1000=None)), d), 0xA900, 0, 1),
    "a request without a command field": (lambda u, d: message(3, command(fields(u, x0100=None)), d), ABORTED, 0, 0),
    "a request that does not say whether data follows": (
        lambda u, d: message(3, command(fields(u, x0800=None)), d),
        ABORTED,
        0,
        0,
    ),
    "a request without priority": (lambda u, d: message(3, command(fields(u, x0700=None)), d), 0x0000, 1, 0),
    "a request that has an element twice": (
        lambda u, d: message(3, store_request(CT, u) + elements({0x0110: 2}), d),
        0x0000,
        1,
        0,
    ),
    "a wrong group length of the command": (
        lambda u, d: message(3, elements({0: struct.pack("<L", 9999)}) + store_request(CT, u)[12:], d),
        0x0000,
        1,
        0,
    ),
    "a wrong group length of the dataset": (
        lambda u, d: message(3, store_request(CT, u), struct.pack("<HH2sHL", 8, 0, b"UL", 4, 99_999) + d),
        0x0000,
        1,
        0,
    ),
    "a request that announces no dataset": (lambda u, d: message(3, store_request(CT, u, dataset=False)), 0xC000, 0, 0),
    "an empty dataset": (lambda u, d: message(3, store_request(CT, u), b""), 0xC000, 0, 1),
    "an element longer than the dataset": (
        lambda u, d: message(3, store_request(CT, u), struct.pack("<HH2sHL", 8, 1, b"UN", 0, 1 << 30) + d),
        0xC000,
        0,
        1,
    ),
    "a message within a message": (
        lambda u, d: [
            data_pdu(3, COMMAND_ENDS, store_request(CT, u)),
            data_pdu(3, DATA, d[:100]),
            *message(1, echo_request(2)),
            data_pdu(3, DATA_ENDS, d[100:]),
        ],
        ABORTED,
        0,
        0,
    ),
    "a dataset without a command": (lambda u, d: [data_pdu(3, DATA_ENDS, d)], ABORTED, 0, 0),
    "a release within a message": (
        lambda u, d: [data_pdu(3, COMMAND_ENDS, store_request(CT, u)), data_pdu(3, DATA, d[:100]), RELEASE],
        RELEASED,
        0,
        0,
    ),
    "a response to nothing": (
        lambda u, d: [
            *message(1, command({0x0002: VERIFICATION, 0x0100: 0x8030, 0x0120: 1, 0x0800: 0x0101, 0x0900: 0})),
            *message(1, echo_request(2)),
        ],
        0x0000,
        0,
        0,
    ),
    "an operation of another service": (
        lambda u, d: message(
            1, command({0x0003: VERIFICATION, 0x0100: 0x0150, 0x0110: 1, 0x0800: 0x0101, 0x1001: "1.2"})
        ),
        0x0211,
        0,
        0,
    ),
    "a query in a storage context": (
        lambda u, d: message(3, command({0x0002: CT, 0x0100: 0x0020, 0x0110: 1, 0x0700: 0, 0x0800: 1}), d),
        0x0211,
        0,
        0,
    ),
    "an operation that there is not": (
        lambda u, d: message(1, command({0x0002: VERIFICATION, 0x0100: 0x7777, 0x0110: 1, 0x0800: 0x0101})),
        ABORTED,
        0,
        0,
    ),
    "thousands of requests ahead of their answers": (
        lambda u, d: [one for number in range(3000) for one in message(1, echo_request(number))],
        ABORTED,
        0,
        0,
    ),
}


@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_a_broken_rule_is_answered_so_and_leaves_no_half_object(receiver: Receiver, what: str) -> None:
    sent, answer, stored, quarantined = MISBEHAVIOUR[what]
    uid, dataset = small_object(next(NUMBERS))
    instances, refused = held(receiver)
    with Line(receiver.port) as line:
        line.associate(associate_request(receiver.ae_title, CONTEXTS))
        line.send(*sent(uid, dataset))
        found = outcome(line)
        while what.startswith("thousands") and found == 0x0000:
            found = outcome(line)
        assert found == answer
    with Line(receiver.port) as line:
        line.associate(associate_request(receiver.ae_title))
        line.send(*message(3, echo_request()))
        assert outcome(line) == 0x0000, "others are served"
    wait_until(lambda: not list(receiver.incoming.glob("*.part")), 10, "what has arrived in part to be removed")
    assert held(receiver) == (instances + stored, refused + quarantined)


@pytest.mark.parametrize("sent", [data_pdu(3, COMMAND_ENDS, echo_request()), RELEASE, pdu(0x2A, b"")])
def test_what_comes_before_an_association_is_aborted(receiver: Receiver, sent: bytes) -> None:
    with Line(receiver.port) as line:
        line.send(sent)
        assert outcome(line) == ABORTED


def test_a_message_id_may_be_used_again_once_it_was_answered(receiver: Receiver) -> None:
    with Line(receiver.port) as line:
        line.associate(associate_request(receiver.ae_title, CONTEXTS))
        for _ in range(5):
            uid, dataset = small_object(next(NUMBERS))
            line.send(*message(3, store_request(CT, uid, 7), dataset))
            assert outcome(line) == 0x0000


@pytest.mark.parametrize("last", [ABORT, b""], ids=["A-ABORT", "hanging up"])
def test_an_abort_after_the_last_byte_leaves_the_whole_object_or_nothing(receiver: Receiver, last: bytes) -> None:
    """The dataset was there in full: it is stored with all its bytes, though nobody hears of it."""
    before, _ = held(receiver)
    uids = []
    for _ in range(8):
        uid, dataset = small_object(next(NUMBERS))
        uids.append(uid)
        with Line(receiver.port) as line:
            line.associate(associate_request(receiver.ae_title, CONTEXTS))
            line.send(*message(3, store_request(CT, uid), dataset), last)
    wait_until(lambda: held(receiver)[0] == before + 8, 20, "what had arrived to be stored")
    rows = {row["sop_instance_uid"]: row for row in receiver.instances()}
    for uid in uids:
        assert receiver.blobs.path(rows[uid]["blob"]).stat().st_size == rows[uid]["size"]
    assert set(receiver.blobs.names()) == {row["blob"] for row in rows.values()}
    assert not list(receiver.incoming.glob("*.part"))


def test_a_storm_of_aborts_costs_nothing_that_stays(receiver: Receiver) -> None:
    (process,) = psutil.Process(receiver.process.pid).children()
    with at_full_speed(receiver):
        wait_until(lambda: process.num_threads() <= 2, 10, "associations to end")
        descriptors = process.num_fds()
        for number in range(200):
            with Line(receiver.port) as line:
                line.send(associate_request(receiver.ae_title) if number % 2 else b"", ABORT, ABORT)
    wait_until(lambda: process.num_threads() <= 2, 20, "threads to end")
    assert process.num_fds() <= descriptors + 5


def test_five_hundred_silent_connections_keep_nobody_out(receiver: Receiver) -> None:
    with ExitStack() as stack, at_full_speed(receiver):
        for _ in range(500):
            stack.enter_context(Line(receiver.port))
        (process,) = psutil.Process(receiver.process.pid).children()
        # Two threads a connection, twice as many connections as associations, and those that are just ending.
        assert process.num_threads() < 2 * 4 * ASSOCIATIONS + 10


def test_five_hundred_associations_are_as_many_as_may_be_and_refusals(receiver: Receiver) -> None:
    with ExitStack() as stack:
        mine = stack.enter_context(Line(receiver.port))
        mine.associate(associate_request(receiver.ae_title, CONTEXTS, calling="GOOD"))
        found: list[str | int | None] = []
        for _ in range(500):
            line = stack.enter_context(Line(receiver.port))
            line.send(associate_request(receiver.ae_title, CONTEXTS))
            kind, body = line.answer() or (0, b"")
            if kind == 3:
                assert body == b"\0\2\3\2", "rejected-transient, local limit exceeded (PS3.8 Table 9-21)"
                line.socket.close()
            found.append(kind)
        assert found.count(2) == ASSOCIATIONS - 1
        assert found.count(3) == 500 - (ASSOCIATIONS - 1)
        uid, dataset = small_object(next(NUMBERS))
        began = time.monotonic()
        mine.send(*message(3, store_request(CT, uid), dataset))
        assert outcome(mine) == 0x0000
        assert time.monotonic() - began < 2, "who was there before is served"
    with at_full_speed(receiver):
        pass


def test_a_peer_that_sends_a_byte_now_and_then_or_stops_within_a_pdu_holds_up_only_itself(receiver: Receiver) -> None:
    uid, dataset = small_object(next(NUMBERS))
    pdus = message(3, store_request(CT, uid), dataset)
    done = threading.Event()

    def trickle(line: Line) -> None:
        for byte in pdus[-1][100:]:
            if done.wait(0.3):
                return
            line.send(bytes([byte]))

    with ExitStack() as stack:
        slow = [stack.enter_context(Line(receiver.port)) for _ in range(20)]
        for line in slow:
            line.associate(associate_request(receiver.ae_title, CONTEXTS))
        with at_full_speed(receiver):
            for line in slow:
                line.send(*pdus[:-1], pdus[-1][:100])
            threads = [threading.Thread(target=trickle, args=(line,)) for line in slow[::2]]
            stack.callback(lambda: [one.join() for one in threads])
            stack.callback(done.set)
            for one in threads:
                one.start()
        # Each PDU has a deadline: none of them stays, and nothing of what they began.
        assert {outcome(line) for line in slow} <= {None, ABORTED}
    wait_until(lambda: not list(receiver.incoming.glob("*.part")), 10, "what has arrived in part to be removed")
    assert uid not in {row["sop_instance_uid"] for row in receiver.instances()}


def test_the_log_tells_of_no_error_that_nobody_foresaw(receiver: Receiver) -> None:
    """What all the tests above have left in it."""
    lines = receiver.log()
    assert any(line["event"] == "invalid message" for line in lines)
    assert not [line for line in lines if "exception" in line and line["logger"].startswith("node")]
    assert not [line for line in lines if str(line["event"]).startswith("Exception in DUL")]
    text = receiver.process.log_path.read_text(errors="replace")
    assert "Traceback" not in text
