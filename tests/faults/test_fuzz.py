"""Hostile inputs by the thousand, from a seed: no crash, no hang, no leak. ``make soak`` holds far more of them.

``OVERREAD_INPUTS`` says how many of each kind (1,500), ``OVERREAD_SEED`` which. Below stand those that once did harm.
"""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from node.dimse.partten import file_head
from node.dimse.scu import echo
from node.peers import Peer
from storage.errors import NotDicom
from storage.headers import read_header
from tests.faults.fuzzing import Report, fuzz_conversations, fuzz_datasets
from tests.faults.hostile_datasets import CT
from tests.faults.wire import ABORT, EXPLICIT, VERIFICATION, Line, associate_request, data_pdu, echo_request, item, pdu
from tests.peers import wait_until
from tests.receiver import Receiver, receiving

#: The node does not heed what pydicom warns of either.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
INPUTS = int(os.environ.get("OVERREAD_INPUTS", "1500"))
SEED = int(os.environ.get("OVERREAD_SEED", "20"))
_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
_SEQUENCE_ENDS = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def held(report: Report) -> None:
    """Hold a report to what is promised, and show what the inputs came to."""
    print(f"{report.kind}, seed {report.seed}: {report.inputs} in {report.seconds:.1f} s, {dict(report.outcomes)}")
    assert not report.failures, "\n".join(report.failures)
    assert report.inputs == INPUTS
    assert len(report.outcomes) >= 4, "inputs that all end alike do not look far"


@pytest.mark.timeout(120 + INPUTS)
def test_hostile_datasets_are_stored_or_refused_and_nothing_else() -> None:
    report = fuzz_datasets(SEED, range(INPUTS))
    held(report)
    assert report.outcomes["stored"] > INPUTS // 50


@pytest.mark.timeout(120 + INPUTS)
def test_hostile_conversations_end_and_disturb_nobody(tmp_path: Path) -> None:
    report = fuzz_conversations(SEED, range(INPUTS), tmp_path / "receiver")
    held(report)
    assert report.outcomes["released"] > INPUTS // 50


def part_ten(folder: Path, *elements: bytes) -> Path:
    """Write an explicit little endian file that has what identifies it, and these elements."""
    identifying = {0x00080016: CT, 0x00080018: "1.2.3.4", 0x0020000D: "1.2.3", 0x0020000E: "1.2.3.5"}
    written = {struct.unpack("<HH", one[:4]): one for one in elements}
    for tag, uid in identifying.items():
        one = element(tag, b"UI", uid.encode() + b"\0" * (len(uid) % 2))
        written.setdefault(struct.unpack("<HH", one[:4]), one)
    path = folder / "file.dcm"
    head = file_head(sop_class_uid=CT, sop_instance_uid="1.2.3.4", transfer_syntax_uid=EXPLICIT, source_ae_title="X")
    path.write_bytes(head + b"".join(written[tag] for tag in sorted(written)))
    return path


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    if vr in (b"SQ", b"UC", b"UN", b"SV"):
        return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, length) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, length) + value


@pytest.mark.parametrize("tag", [0x00081140, 0x00081032, 0x0018A001], ids=["passed over", "indexed", "equipment"])
@pytest.mark.parametrize("defined", [True, False], ids=["defined length", "undefined length"])
def test_a_million_empty_items_cost_neither_memory_nor_time(tmp_path: Path, tag: int, defined: bool) -> None:
    """They were 700 MB and 15 seconds."""
    items = _ITEM * 1_000_000 + (b"" if defined else _SEQUENCE_ENDS)
    path = part_ten(tmp_path, element(tag, b"SQ", items, None if defined else 0xFFFFFFFF))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    header = read_header(path)
    assert header.study is not None
    assert time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_megabytes_of_nothing_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """Zeros read as empty elements; deflated, a few kilobytes of them took ten seconds."""
    path = part_ten(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(32 << 20))
    began = time.process_time()
    with pytest.raises(NotDicom, match="more than 131072 elements"):
        read_header(path)
    assert time.process_time() - began < 2
    path = part_ten(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert read_header(path).sop_instance_uid == "1.2.3.4", "padding harms nobody"


@pytest.mark.parametrize("defined", [True, False], ids=["defined length", "undefined length"])
def test_ten_thousand_nested_items_are_passed_over_or_refused_as_such(tmp_path: Path, defined: bool) -> None:
    value = b""
    for _ in range(10_000):
        length = None if defined else 0xFFFFFFFF
        inner = struct.pack("<HHL", 0xFFFE, 0xE000, len(value) if defined else 0xFFFFFFFF) + value
        value = element(0x00081140, b"SQ", inner + (b"" if defined else _ITEM_ENDS + _SEQUENCE_ENDS), length)
    path = part_ten(tmp_path, value)
    if defined:
        assert read_header(path).sop_instance_uid == "1.2.3.4"
    else:
        with pytest.raises(NotDicom, match="nested too deeply"):
            read_header(path)


_ITEM_ENDS = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        element(0x0018A001, b"LO", b"Overread"),
        element(0x0018A001, b"SQ", b"\xfe\xff\x00\xe0\x0a\x00\x00\x00no item "),
        element(0x00100010, b"SV", b"Doe^John"[:7] + b"\0" * 6),
        element(0x00100010, b"SQ", _ITEM),
        element(0x00100040, b"CC", b"F "),
        element(0x00080005, b"CS", b"\xff\xfe"),
        element(0x00100020, b"US", b"123"),
    ],
    ids=[
        "equipment as text",
        "equipment as noise",
        "name as a number",
        "name as a sequence",
        "unknown VR",
        "unknown character set",
        "odd number",
    ],
)
def test_a_value_that_its_vr_does_not_allow_does_not_refuse_the_object(tmp_path: Path, wrong: bytes) -> None:
    """Each ended in an error that nobody foresaw."""
    header = read_header(part_ten(tmp_path, wrong))
    assert header.sop_instance_uid == "1.2.3.4"
    assert header.study
    assert header.instance
    assert isinstance(header.identity["name"], str)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver", options={"receivers": 1, "network_timeout_seconds": 2}) as one:
        yield one


def threads(receiver: Receiver) -> int:
    (process,) = psutil.Process(receiver.process.pid).children()
    return process.num_threads()


@pytest.mark.parametrize(
    "sent",
    [
        # An A-ABORT whose source is none of PS3.8 Table 9-26: nothing of it is to be tested.
        [pdu(7, b"\0\0\xfe\0")],
        # Responses that are ready when the association has ended already.
        [data_pdu(3, 3, echo_request(1)) * 20, b"\xff" * 6, ABORT],
        [data_pdu(3, 3, echo_request(1)) * 20, pdu(1, b"")],
    ],
    ids=["an abort from nowhere", "answers to a connection that is given up", "answers after a second request"],
)
def test_what_has_no_place_in_a_state_ends_the_association_without_a_trace(
    receiver: Receiver, sent: list[bytes]
) -> None:
    """Each ended a thread with a traceback, and the other waited half a minute."""
    wait_until(lambda: psutil.Process(receiver.process.pid).children(), 10, "the receiver")
    assert echo(Peer(ae_title=receiver.ae_title, host="127.0.0.1", port=receiver.port), "TEST").reached
    wait_until(lambda: threads(receiver) <= 2, 10, "the association to end")
    for _ in range(10):
        with Line(receiver.port) as line:
            line.associate(associate_request(receiver.ae_title))
            line.send(*sent)
            line.hang_up()
            list(line.answers())
    wait_until(lambda: threads(receiver) <= 2, 10, "the threads to end")
    nothing_unforeseen(receiver)


def test_a_request_that_cannot_be_understood_ends_the_connection_without_a_trace(receiver: Receiver) -> None:
    """Its end was taken for the request that was waited for; and one context without a name left the peer waiting."""
    good = associate_request(receiver.ae_title)
    nameless = good.replace(item(0x30, VERIFICATION.encode()), item(0x31, VERIFICATION.encode()))
    for wrong in (
        nameless,
        good[:10] + b"\0" * 16 + good[26:],
        good[:26] + b"\xff" * 16 + good[42:],
        good[:6] + good[8:],
    ):
        with Line(receiver.port) as line:
            line.send(wrong)
            line.hang_up()
            list(line.answers())
    assert echo(Peer(ae_title=receiver.ae_title, host="127.0.0.1", port=receiver.port), "TEST").reached
    nothing_unforeseen(receiver)


def nothing_unforeseen(receiver: Receiver) -> None:
    lines = receiver.process.log_path.read_text().splitlines()
    assert not [one for one in lines if "Traceback" in one or "InvalidEventError" in one or not one.startswith("{")]
