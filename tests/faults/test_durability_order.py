"""Success is said only after fsync and commit: the system calls of a real receiver prove the order."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.dicom_factory import ct_series
from tests.peers import need_program, wait_until
from tests.receiver import receiving
from tests.system import Node

_CALLS = "fsync,fdatasync,rename,renameat,renameat2,write,pwrite64,writev,sendto,sendmsg"
_COMPLETE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+=\s+(-?\d+)")
_BEGUN = re.compile(r"^(\d+)\s+(\w+)\((.*) <unfinished \.\.\.>$")
_ENDED = re.compile(r"^(\d+)\s+<\.\.\. (\w+) resumed>(.*)\)\s+=\s+(-?\d+)")


@dataclass(frozen=True)
class Call:
    """A successful system call: when it began and ended, as line numbers of the trace."""

    name: str
    arguments: str
    began: int
    ended: int


def calls(trace: Iterable[str]) -> list[Call]:
    found = []
    open_calls: dict[str, tuple[str, str, int]] = {}
    for number, line in enumerate(trace):
        if match := _BEGUN.match(line):
            open_calls[match[1]] = (match[2], match[3], number)
        elif match := _ENDED.match(line):
            # Its beginning may have been taken out of the trace.
            name, arguments, began = open_calls.pop(match[1], ("", "", -1))
            if name and int(match[4]) >= 0:
                found.append(Call(name, arguments + match[3], began, number))
        elif (match := _COMPLETE.match(line)) and int(match[3]) >= 0:
            found.append(Call(match[1], match[2], number, number))
    return found


def first(found: Iterable[Call], what: str, names: str, pattern: str, after: int = -1) -> Call:
    """Return the first such call that began after a line of the trace."""
    for call in found:
        if call.name in names.split() and call.began > after and re.search(pattern, call.arguments):
            return call
    raise AssertionError(f"no {what} after line {after} of the trace")


def prove(found: list[Call], response: str = r"TCP|socket") -> None:
    """Follow one object from its file to the answer; each step must begin after the one before has ended."""
    file = first(found, "fsync of the received file", "fsync fdatasync", r"/incoming/[^>]+>")
    rename = first(found, "rename into the archive", "rename renameat renameat2", r"/incoming/.*/blobs/", file.ended)
    directory = first(found, "fsync of the directory", "fsync fdatasync", r"/blobs/[0-9a-f]{2}>", rename.ended)
    written = first(found, "write of the log", "write pwrite64 writev", r"overread\.sqlite-wal>", directory.ended)
    log = first(found, "fsync of the log", "fsync fdatasync", r"overread\.sqlite-wal>", written.ended)
    answer = first(found, "response", "sendto sendmsg write writev", response, file.began)
    assert answer.began > log.ended, "the response left before the log was on disk"


def strace_to(output: Path) -> list[str]:
    strace = need_program("/usr/bin/strace", "strace")
    return [strace, "-D", "-f", "-yy", "-s", "64", "-e", f"trace={_CALLS}", "-o", str(output)]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a receiver does while dcmtk pushes one object."""
    tmp_path = tmp_path_factory.mktemp("durability")
    storescu = need_program("/usr/bin/storescu", "dcmtk")
    output = tmp_path / "trace"
    wrap = strace_to(output)
    path = ct_series(tmp_path / "ct", np.zeros((1, 64, 64)))[0]
    with receiving(tmp_path / "r", wrap=wrap, options={"receivers": 1}) as receiver:
        command = [storescu, "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port), str(path)]
        assert subprocess.run(command, timeout=60, check=False).returncode == 0
        assert len(receiver.instances()) == 1
        pid = receiver.process.pid

    def lines() -> list[str]:
        return output.read_text(errors="replace").splitlines()

    # The tracer writes its last line a little after the receiver has ended.
    wait_until(lambda: re.match(rf"{pid} +\+\+\+ exited with 0", lines()[-1]), 10, "the end of the trace")
    return lines()


def test_success_is_answered_only_after_the_bytes_and_the_row_are_on_disk(trace: list[str]) -> None:
    prove(calls(trace))


def test_stow_rs_answers_only_after_the_bytes_and_the_row_are_on_disk(tmp_path: Path) -> None:
    output = tmp_path / "trace"
    node = Node(folder=tmp_path / "node", wrap=strace_to(output))
    path = ct_series(tmp_path / "ct", np.zeros((1, 64, 64)))[0]
    node.start()
    try:
        answer = httpx.post(
            f"{node.url}/dicom-web/studies",
            content=path.read_bytes(),
            headers={"Content-Type": "application/dicom", "Accept": "application/dicom+json"},
            timeout=60,
        )
        assert answer.status_code == 200
    finally:
        node.stop()
    prove(calls(output.read_text(errors="replace").splitlines()), r"HTTP/1\.1 200")


_STEPS = {
    "fsync of the received file": r"(fsync|fdatasync)\(\d+<[^>]*/incoming/[^>]+>",
    "rename into the archive": r"rename.*/incoming/.*/blobs/",
    "fsync of the directory": r"(fsync|fdatasync)\(\d+<[^>]*/blobs/[0-9a-f]{2}>",
    "fsync of the log": r"(fsync|fdatasync)\(\d+<[^>]*overread\.sqlite-wal>",
}


@pytest.mark.parametrize("step", _STEPS)
def test_the_proof_fails_when_a_step_is_missing_or_late(trace: list[str], step: str) -> None:
    """The same trace without one step, or with it after everything else, must not pass."""
    its = [line for line in trace if re.search(_STEPS[step], line)]
    assert its
    without = [line for line in trace if line not in its]
    with pytest.raises(AssertionError):
        prove(calls(without))
    with pytest.raises(AssertionError):
        prove(calls([*without, *its]))
