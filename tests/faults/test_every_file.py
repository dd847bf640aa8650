"""Every DICOM file there is, malformed ones too, is answered as this test states; what Orthanc takes, the node takes.

Each is pushed as it is (:mod:`tests.rawsend`) and, where it can read it, by dcmtk's storescu, to a receiver and to a
real Orthanc. ``every_file.txt`` states the receiver's answer to both.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from demo.peers import Orthanc, find_orthanc
from tests.peers import need, need_program
from tests.rawsend import Answer, Raw, raw_of, send_raw
from tests.receiver import receiving

TABLE = Path(__file__).with_name("every_file.txt")
_NO_DICOM = {".md", ".xml", ".png", ".jpg", ".hl7", ".txt", ".json", ".csv"}
#: What storescu is told so that it proposes a file's own transfer syntax.
_PROPOSE = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}
#: Stored, with or without a warning (PS3.4 Table B.2-1).
_TAKEN = frozenset({0x0000, 0xB000, 0xB006, 0xB007})

Answers = dict[str, Answer]


@dataclass(frozen=True)
class Pushed:
    """What became of each file, by its name below the folder of real files; what was refused, and why."""

    raws: dict[str, Raw]
    raw: Answers
    storescu: Answers
    orthanc_raw: Answers
    orthanc_storescu: Answers
    quarantined: list[dict[str, Any]]
    refused: dict[str, bytes]


@pytest.fixture(scope="module")
def pushed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """Push everything once, to a receiver and to an Orthanc."""
    need(find_orthanc(), "Orthanc with DICOMweb is not installed (Debian packages orthanc, orthanc-dicomweb)")
    need_program("/usr/bin/storescu", "dcmtk")
    files = [one for one in sorted(shared_data.rglob("*")) if one.is_file() and one.suffix not in _NO_DICOM]
    raws = {str(one.relative_to(shared_data)): raw_of(one) for one in files}
    folder = tmp_path_factory.mktemp("every-file")
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving(folder / "receiver"))
        # It waits for what a truncated object lacks.
        orthanc = Orthanc(folder=folder / "orthanc", environment={"ORTHANC_DICOM_TIMEOUT": "1"})
        stack.callback(orthanc.stop, kill=True)
        orthanc.start()
        raw = _named(raws, send_raw(list(raws.values()), receiver.port, receiver.ae_title))
        quarantined = [dict(row) for row in receiver.rows("SELECT * FROM quarantine ORDER BY id")]
        yield Pushed(
            raws=raws,
            raw=raw,
            storescu=_by_storescu(raws, receiver.port, receiver.ae_title),
            orthanc_raw=_named(raws, send_raw(list(raws.values()), orthanc.dimse_port, orthanc.ae_title)),
            orthanc_storescu=_by_storescu(raws, orthanc.dimse_port, orthanc.ae_title),
            quarantined=quarantined,
            refused={row["blob"]: receiver.refused.path(row["blob"]).read_bytes() for row in quarantined},
        )


def _named(raws: dict[str, Raw], answers: dict[Path, Answer]) -> Answers:
    return {name: answers[one.path] for name, one in raws.items()}


def _by_storescu(raws: dict[str, Raw], port: int, called: str) -> Answers:
    found: Answers = {}
    for option in dict.fromkeys(_PROPOSE.get(one.transfer_syntax_uid, "-xe") for one in raws.values()):
        left = [name for name, one in raws.items() if _PROPOSE.get(one.transfer_syntax_uid, "-xe") == option]
        while left:
            # An association that its peer ends within an object is followed by another for the next ones.
            found |= _one_storescu(option, {name: raws[name].path for name in left}, port, called)
            left = [name for name in left if name not in found]
    return found


def _one_storescu(option: str, files: dict[str, Path], port: int, called: str) -> Answers:
    command = ["/usr/bin/storescu", "-d", "-nh", "-R", option, "-aec", called, "127.0.0.1", str(port)]
    done = subprocess.run(
        [*command, *map(str, files.values())],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    names = {str(path): name for name, path in files.items()}
    found: Answers = {}
    sending = ""
    for line in (done.stdout + done.stderr).decode("latin-1").splitlines():
        if line.startswith("I: Sending file: "):
            sending = names[line.removeprefix("I: Sending file: ")]
        elif "ignoring file" in line:
            # In both of these lines the file's name ends before a comma or a colon.
            path = line.partition(" in file: ")[2].partition(", ignoring")[0].partition(": ")[0]
            found[names[path]] = "not readable"
        elif line.startswith("E: No presentation context for"):
            found[sending] = "no context"
        elif line.startswith("D: DIMSE Status"):
            found[sending] = int(line.partition(": 0x")[2][:4], 16)
    if sending and sending not in found:
        found[sending] = "aborted"
    if not sending:
        found |= {name: "not readable" for name in files if name not in found}
    return found


def stated() -> dict[str, tuple[str, str]]:
    """Return what the table says: file, answer to its bytes, answer to storescu."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [line.split(maxsplit=2) for line in lines if line and not line.startswith("#")]
    return {name: (raw, storescu) for raw, storescu, name in rows}


def written(answer: Answer) -> str:
    """Write an answer as the table has it."""
    return answer.replace(" ", "-") if isinstance(answer, str) else f"{answer:04X}"


def test_each_file_gets_the_answer_that_is_stated(pushed: Pushed) -> None:
    answered = {name: (written(pushed.raw[name]), written(pushed.storescu[name])) for name in pushed.raws}
    assert answered == stated()


def test_what_orthanc_takes_the_node_takes(pushed: Pushed) -> None:
    for ours, theirs in ((pushed.raw, pushed.orthanc_raw), (pushed.storescu, pushed.orthanc_storescu)):
        assert sum(answer in _TAKEN for answer in theirs.values()) > 200
        missing = {name for name, answer in theirs.items() if answer in _TAKEN and ours[name] not in _TAKEN}
        assert missing == set()


def test_what_is_refused_is_in_quarantine_with_the_reason(pushed: Pushed) -> None:
    refused = [pushed.raws[name] for name, answer in pushed.raw.items() if answer not in _TAKEN]
    kept = {one.data for one in refused if not isinstance(pushed.raw[_name(pushed, one)], str)}
    assert len(kept) > 15
    assert len(pushed.quarantined) == len([one for one in refused if one.data in kept])
    for row in pushed.quarantined:
        assert row["reason"]
        assert len(pushed.refused[row["blob"]]) == row["size"]
        assert any(pushed.refused[row["blob"]].endswith(data) for data in kept)


def _name(pushed: Pushed, raw: Raw) -> str:
    return next(name for name, one in pushed.raws.items() if one is raw)


@pytest.mark.parametrize("known_lengths", [False, True])
def test_ten_thousand_nested_items_are_answered_precisely(
    shared_data: Path, tmp_path: Path, known_lengths: bool
) -> None:
    good = raw_of(shared_data / "mr_series" / "dcm4che_MR16" / "MR01.dcm")
    with receiving(tmp_path / "receiver", options={"receivers": 1}) as receiver:
        raw = replace(good, data=_nested(good.data, known_lengths))
        answer = send_raw([raw], receiver.port, receiver.ae_title)[raw.path]
        # Items of a known length are passed over; what has to be followed is, to a depth that no image needs.
        assert answer == (0x0000 if known_lengths else 0xC000)
        rows = receiver.rows("SELECT reason FROM quarantine")
        assert [row["reason"] for row in rows] == ([] if known_lengths else [_TOO_DEEP])
        assert send_raw([good], receiver.port, receiver.ae_title)[good.path] == 0x0000


_TOO_DEEP = "sequences are nested too deeply to be read"


def _nested(data: bytes, known_lengths: bool) -> bytes:
    """Put 10,000 items, each within the one before, behind a dataset in implicit VR or explicit VR little endian."""
    explicit = data[4:6].isupper()
    head = b"\x08\x00\x40\x11" + (b"SQ\0\0" if explicit else b"")
    inner = b""
    if known_lengths:
        for _ in range(10_000):
            item = b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner
            inner = head + len(item).to_bytes(4, "little") + item
    else:
        opened = head + b"\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        closed = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
        inner = opened * 10_000 + closed * 10_000
    return _before_group_0010(data, explicit, inner)


def _before_group_0010(data: bytes, explicit: bool, more: bytes) -> bytes:
    at = data.index(b"\x10\x00\x10\x00PN" if explicit else b"\x10\x00\x10\x00")
    return data[:at] + more + data[at:]
