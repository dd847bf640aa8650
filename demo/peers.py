"""Starts and stops real peers of the node: an Orthanc as the PACS, an MLLP receiver as the EMR.

Shared by the demonstration and the tests. Each peer is a process of its own on free ports, with the project's own
configuration, and is stopped by whoever started it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeVar

import httpx

__all__ = ["MllpReceiver", "Orthanc", "PeerError", "find_orthanc", "free_port", "tcp_open", "wait_until"]

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
Forward = Literal["off", "studies", "instances"]


class PeerError(RuntimeError):
    """A peer could not be started, stopped or asked."""


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tcp_open(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], T | None], seconds: float, what: str, *, interval: float = 0.05) -> T:
    """Ask ``condition`` until its answer is true, and return that answer.

    Parameters
    ----------
    condition
        Asked every ``interval`` seconds. Connection errors count as "not yet".
    seconds
        The deadline.
    what
        What is waited for, in words that read after "waited 5 s for".

    Raises
    ------
    TimeoutError
        When the deadline has passed; names ``what`` and the last answer.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            last = answer = condition()
            if answer:
                return answer
        except (OSError, httpx.TransportError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}; the last answer was {last!r}")
        time.sleep(interval)


def find_orthanc() -> str | None:
    """Return the path of an installed Orthanc that has the DICOMweb plugin, or None."""
    if not DICOMWEB_PLUGIN.exists():
        return None
    return shutil.which("Orthanc", path=os.pathsep.join(("/usr/sbin", "/usr/local/sbin", os.environ.get("PATH", ""))))


@dataclass(kw_only=True)
class Process:
    """A child process in its own session, with its output in a file."""

    command: list[str]
    log_path: Path
    environment: dict[str, str] = field(default_factory=dict)
    cwd: Path = ROOT
    _child: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; PeerError while it is not running."""
        if self._child is None:
            raise PeerError(f"{self.command[0]} is not running")
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._child is not None and self._child.poll() is None

    @property
    def exit_status(self) -> int | None:
        """The exit status, or None while it runs or was never started."""
        return None if self._child is None else self._child.poll()

    def start(self) -> None:
        """Start the process; its output is appended to ``log_path``."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log_path.open("ab")
        self._child = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def stop(self, seconds: float = 15.0) -> int | None:
        """End the process and return its exit status, None if it never ran.

        SIGTERM, and SIGKILL after ``seconds``; with 0 SIGKILL at once.
        """
        if self._child is None:
            return None
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM if seconds > 0 else signal.SIGKILL)
            try:
                self._child.wait(seconds or None)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        status = self._child.returncode
        if self._log is not None:
            self._log.close()
        self._child = self._log = None
        return status

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that the process wrote."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])


@dataclass(kw_only=True)
class Orthanc:
    """A real Orthanc with the configuration in ``orthanc/`` and its storage in ``folder``.

    Ports and storage stay the same from ``stop`` to the next ``start``: that is how a PACS goes down and comes back.
    """

    folder: Path
    ae_title: str = "ORTHANC"
    http_port: int = field(default_factory=free_port)
    dimse_port: int = field(default_factory=free_port)
    stable_age: int = 2
    environment: dict[str, str] = field(default_factory=dict)
    _process: Process | None = None

    @property
    def http_url(self) -> str:
        """Root of Orthanc's own REST API, without a trailing slash."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        """Root of its DICOMweb services, without a trailing slash."""
        return f"{self.http_url}/dicom-web"

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.running

    def forward_to(self, ae_title: str, port: int, *, host: str = "127.0.0.1", mode: Forward = "instances") -> Self:
        """Let Orthanc forward what it receives to this AE; restarts it where it runs already.

        ``instances`` sends every instance at once, whoever it came from; ``studies`` sends a study when it is stable.
        """
        self.environment |= {
            "OVERREAD_AE_TITLE": ae_title,
            "OVERREAD_HOST": host,
            "OVERREAD_PORT": str(port),
            "OVERREAD_FORWARD": mode,
        }
        if self.running:
            self.stop()
            self.start()
        return self

    def start(self, seconds: float = 30.0) -> Self:
        """Start Orthanc on its ports and storage, and return once HTTP and DICOM answer."""
        binary = find_orthanc()
        if binary is None:
            raise PeerError("Orthanc with its DICOMweb plugin is not installed (Debian: orthanc orthanc-dicomweb)")
        storage = self.folder / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        self._process = Process(
            command=[binary, str(ROOT / "orthanc" / "orthanc.json")],
            log_path=self.folder / "orthanc.log",
            environment={
                "ORTHANC_STORAGE": str(storage),
                "ORTHANC_HTTP_PORT": str(self.http_port),
                "ORTHANC_DICOM_PORT": str(self.dimse_port),
                "ORTHANC_AE_TITLE": self.ae_title,
                "ORTHANC_STABLE_AGE": str(self.stable_age),
                # DCMTK inside Orthanc leaves Nagle's algorithm on unless told otherwise: 40 ms an object when it sends.
                "TCP_NODELAY": "1",
                **self.environment,
            },
        )
        process = self._process
        process.start()

        def ready() -> bool:
            if not process.running:
                raise PeerError(f"Orthanc ended at once:\n{process.log_tail()}")
            return httpx.get(f"{self.http_url}/system").status_code == 200 and tcp_open(self.dimse_port)

        try:
            wait_until(ready, seconds, f"Orthanc on ports {self.http_port} and {self.dimse_port}")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, *, kill: bool = False) -> None:
        """Stop Orthanc, which takes seconds, or kill it; storage and ports are kept for the next start."""
        if self._process is not None:
            self._process.stop(0.0 if kill else 30.0)
            self._process = None

    def add_modality(self, name: str, ae_title: str, port: int, host: str = "127.0.0.1") -> None:
        """Make an AE known to Orthanc under ``name``, until it stops."""
        answer = httpx.put(f"{self.http_url}/modalities/{name}", json=[ae_title, host, port])
        answer.raise_for_status()

    def get(self, path: str) -> Any:
        """Return the JSON that Orthanc's REST API answers at ``path`` (with a leading slash)."""
        answer = httpx.get(f"{self.http_url}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def find(self, level: str, query: dict[str, str]) -> list[dict[str, Any]]:
        """Return what ``/tools/find`` knows at ``level`` (Study, Series, Instance), expanded."""
        answer = httpx.post(
            f"{self.http_url}/tools/find", json={"Level": level, "Query": query, "Expand": True}, timeout=30
        )
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def instances_of(self, study_instance_uid: str, modality: str = "*") -> list[bytes]:
        """Return the Part 10 bytes of a study's instances, of one modality or of all."""
        found = self.find("Instance", {"StudyInstanceUID": study_instance_uid, "Modality": modality})
        return [httpx.get(f"{self.http_url}/instances/{each['ID']}/file", timeout=60).content for each in found]

    def stored_instances(self) -> list[str]:
        """Return the Orthanc id of every NewInstance change: an object stored twice stands here once only."""
        changes = self.get("/changes?limit=1000000")["Changes"]
        return [change["ID"] for change in changes if change["ChangeType"] == "NewInstance"]


@dataclass(kw_only=True)
class MllpReceiver:
    """The project's MLLP receiver as a process of its own; see :mod:`demo.mllp_receiver` for what it can be told."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: Process | None = None

    @property
    def log_path(self) -> Path:
        """The file with one JSON line for every message that arrived."""
        return self.folder / "messages.jsonl"

    def start(self, behave: Iterable[str] = (), seconds: float = 15.0) -> Self:
        """Start listening; ``behave`` are rules such as ``AE:2`` (see ``--behave`` of the receiver)."""
        command = [sys.executable, "-m", "demo.mllp_receiver", "--port", str(self.port), "--log", str(self.log_path)]
        for rule in behave:
            command += ["--behave", rule]
        self._process = Process(command=command, log_path=self.folder / "receiver.log")
        process = self._process
        process.start()

        def ready() -> bool:
            if not process.running:
                raise PeerError(f"the MLLP receiver ended at once:\n{process.log_tail()}")
            return tcp_open(self.port)

        try:
            wait_until(ready, seconds, f"the MLLP receiver on port {self.port}")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop listening; the log is kept and the next start appends to it."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def messages(self) -> list[dict[str, Any]]:
        """Return every logged message, oldest first."""
        if not self.log_path.exists():
            return []
        # A line that is still being written has no newline yet and is left for the next time.
        lines = self.log_path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
