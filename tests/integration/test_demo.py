"""``make demo`` shows the whole way, exits with 0 only when all of it is there, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from demo.peers import find_orthanc
from phantoms.dicom import write_radiograph
from tests.peers import need, wait_until

ROOT = Path(__file__).resolve().parents[2]


def demo(*arguments: str, timeout: float = 170) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "demo.run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.timeout(180)
def test_every_expected_result_is_in_orthanc_and_in_the_emr() -> None:
    need(find_orthanc(), "Orthanc with DICOMweb is not installed (Debian packages orthanc, orthanc-dicomweb)")
    done = demo("--pacs", "orthanc", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PACS: Orthanc" in done.stdout
    assert "not analysed" in done.stdout
    assert "Every expected result is there" in done.stdout


@pytest.mark.timeout(180)
def test_without_orthanc_the_nodes_own_archive_answers_and_the_table_says_so() -> None:
    done = demo("--pacs", "node", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the node's own archive" in done.stdout


@pytest.mark.timeout(180)
def test_a_folder_of_files_is_sent_instead_of_phantoms(tmp_path: Path) -> None:
    write_radiograph(tmp_path, 5, ("pneumothorax",))
    (tmp_path / "notes.txt").write_text("this is no DICOM file")
    done = demo("--data", str(tmp_path), "--pacs", "node")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 results" in done.stdout


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = demo("--data", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "is no folder" in done.stdout


def test_a_folder_without_a_dicom_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is no DICOM file")
    done = demo("--data", str(tmp_path), timeout=20)
    assert done.returncode == 1
    assert "There is no DICOM file in" in done.stdout


@pytest.mark.timeout(120)
def test_what_the_node_refuses_is_not_waited_for_and_said_why(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "good", 5, ("pneumothorax",))
    for file in write_radiograph(tmp_path / "unknown", 6).files:
        # In a transfer syntax that nobody knows.
        file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"))
    done = demo("--data", str(tmp_path), "--pacs", "node", "--deadline", "110", timeout=100)
    assert done.returncode == 1, done.stdout
    assert "not stored" in done.stdout
    assert "the PACS holds 0 of 1 images" in " ".join(done.stdout.split())
    assert "have no result" not in done.stdout, "it has waited for what cannot come"


@pytest.fixture
def running_demo() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.run", "--pacs", "node"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Whoever runs the tests in the background has this signal ignored, and what is started from there inherits it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no threads here
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_ctrl_c_stops_everything_that_was_started(running_demo: subprocess.Popen[bytes]) -> None:
    def node_is_there() -> list[psutil.Process]:
        children = psutil.Process(running_demo.pid).children(recursive=True)
        return children if any("serve" in child.cmdline() for child in children) else []

    started = wait_until(node_is_there, 30, "the demonstration to start the node")
    os.killpg(running_demo.pid, signal.SIGINT)
    assert running_demo.wait(60) == 130
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []
