"""Runs an engine in a process of its own and watches it from outside: its time, its memory and its life.

::

    host = EngineHost(card)
    findings = host.run(job, heartbeat=lease.renew)
    host.close()

The process keeps its loaded model for the next job. After any failure it is killed, and the next job gets a new one.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from inference.errors import EngineFailure
from inference.wire import findings_from, job_to

if TYPE_CHECKING:
    from inference.card import Card
    from inference.engine import Job
    from inference.findings import Findings

__all__ = ["EngineHost"]

#: What a new process may take to load its runtime and its model, beside the card's own limit for a job.
START_SECONDS = 60.0
_POLL_SECONDS = 0.05
_HEARTBEAT_SECONDS = 1.0
_MOST_ANSWER_BYTES = 64 * 1024 * 1024


class EngineHost:
    """One supervised engine process for one card.

    Parameters
    ----------
    card
        Its ``resources`` are the limits of each job.
    folder
        Where the process's temporary folder is made; the system's own place by default.
    """

    def __init__(self, card: Card, *, folder: Path | None = None) -> None:
        self._card = card
        self._parent_folder = folder
        self._folder: Path | None = None
        self._child: _Child | None = None
        self._lock = threading.Lock()
        self._jobs = 0

    def run(self, job: Job, *, heartbeat: Callable[[], None] | None = None) -> Findings:
        """Run one job to its end; jobs of several threads wait for one another.

        Parameters
        ----------
        heartbeat
            Called about once a second while the engine works. If it raises, the job is abandoned and its process
            killed; the exception passes on.

        Raises
        ------
        EngineFailure
            ``died``, ``overran-time``, ``overran-memory`` or ``broke``.
        """
        if job.card_path.resolve() not in (self._card.path.resolve(), self._card.directory):
            raise ValueError(f"a job for {job.card_path} came to the engine of {self._card.path}")
        with self._lock:
            try:
                child = self._loaded_child(heartbeat)
                self._jobs += 1
                assert self._folder is not None
                request = self._folder / f"job-{self._jobs}.json"
                mask = self._folder / f"mask-{self._jobs}.npy"
                request.write_text(json.dumps({"job": job_to(job), "mask": str(mask)}), encoding="utf-8")
                child.send(request)
                answer = self._await(child, self._card.resources.seconds, heartbeat)
                findings = _understood(answer, mask)
                mask.unlink(missing_ok=True)
                request.unlink()
                return findings
            except BaseException:
                self._discard()
                raise

    def load(self) -> None:
        """Start the process and wait until its model is loaded, within the limits of a job; the next job finds it so.

        Raises
        ------
        EngineFailure
            When the model cannot be loaded.
        """
        with self._lock:
            try:
                self._loaded_child(None)
            except BaseException:
                self._discard()
                raise

    @property
    def card(self) -> Card:
        """The card whose model runs here."""
        return self._card

    @property
    def pid(self) -> int | None:
        """The process that runs now, if there is one."""
        child = self._child
        return child.pid if child is not None and not child.ended else None

    def close(self) -> None:
        """End the process; a job that still runs in it fails with ``died``."""
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._discard()

    def __enter__(self) -> EngineHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _loaded_child(self, heartbeat: Callable[[], None] | None) -> _Child:
        if self._child is not None and not self._child.ended:
            return self._child
        # A process that died between two jobs took no job with it: no try is lost.
        self._discard()
        self._folder = Path(tempfile.mkdtemp(prefix="engine-", dir=self._parent_folder))
        self._child = _Child(self._card, self._folder)
        self._await(self._child, START_SECONDS, heartbeat)
        return self._child

    def _await(self, child: _Child, seconds: float, heartbeat: Callable[[], None] | None) -> dict[str, Any]:
        """Wait for one answer, within limits."""
        now = time.monotonic()
        deadline, next_beat = now + seconds, now + _HEARTBEAT_SECONDS
        limit = self._card.resources.memory_mb * 1024 * 1024
        while True:
            answer = child.receive(_POLL_SECONDS)
            if answer is not None:
                if "failure" in answer:
                    raise EngineFailure(*_reason(answer["failure"]))
                return answer
            resident = resident_bytes(child.pid)
            if resident > limit:
                child.kill()
                raise EngineFailure(
                    "overran-memory",
                    f"the engine held {resident // 2**20} MB; its limit is {self._card.resources.memory_mb} MB",
                )
            now = time.monotonic()
            if now > deadline:
                child.kill()
                raise EngineFailure("overran-time", f"the engine gave no answer within {seconds:g} s")
            if heartbeat is not None and now >= next_beat:
                next_beat = now + _HEARTBEAT_SECONDS
                heartbeat()

    def _discard(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.close()
            self._child = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class _Child:
    """One engine process and the pipes to it.

    Linux sends the death signal that the child asks for when the *thread* that started it ends, so a thread of its
    own starts it and stays until it is over.
    """

    def __init__(self, card: Card, folder: Path) -> None:
        self._card = card
        self._errors = folder / "stderr"
        self._started = threading.Event()
        self._over = threading.Event()
        self._reaping = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._problem: OSError | None = None
        self._buffer = bytearray()
        self._selector = selectors.DefaultSelector()
        self._owner = threading.Thread(target=self._own, name=f"engine-{card.name}", daemon=True)
        self._owner.start()
        self._started.wait()
        if self._problem is not None:
            raise EngineFailure("died", "the engine's process could not be started") from self._problem
        self._selector.register(self._stdout, selectors.EVENT_READ)

    def _own(self) -> None:
        """Start the process and stay with it to its end."""
        threads = str(self._card.resources.threads or len(os.sched_getaffinity(0)))
        # Settings of the node may hold secrets, and a process that parses hostile images has no use for them.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OVERREAD")}
        environment |= {
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
        }
        command = [sys.executable, "-P", "-m", "inference.child", str(self._card.path), self._card.digest]
        try:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    [*command, str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                    process_group=0,
                )
        except OSError as problem:
            self._problem = problem
            return
        finally:
            self._started.set()
        # Not reaped before it is marked as over: until then its number cannot be another process's.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            self._over.set()
            self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def ended(self) -> bool:
        return self._over.is_set()

    def send(self, request: Path) -> None:
        """Name the file of a request: a line this short never fills the pipe, so a child that hangs cannot hold us."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(os.fsencode(request) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as problem:
            raise self._death() from problem

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the next answer, or None if there is none within ``seconds``."""
        if not self._selector.select(seconds):
            return None
        chunk = os.read(self._stdout.fileno(), 1 << 16)
        if not chunk:
            raise self._death()
        self._buffer += chunk
        if len(self._buffer) > _MOST_ANSWER_BYTES:
            raise EngineFailure("broke", "the engine's answer has no end")
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return None
        self._buffer = rest
        try:
            answer = json.loads(line)
        except ValueError as problem:
            raise EngineFailure("broke", "the engine's answer is not JSON") from problem
        return answer if isinstance(answer, dict) else {}

    def _death(self) -> EngineFailure:
        """Say how the process died; its pipe is closed, so its end is a matter of moments."""
        assert self._process is not None
        if not self._over.wait(2.0):
            self.kill()
        self._owner.join(2.0)
        status = self._process.returncode
        how = f"status {status}"
        if status is not None and status < 0:
            try:
                how = signal.Signals(-status).name
            except ValueError:
                how = f"signal {-status}"
        return EngineFailure("died", f"the engine's process died ({how})")

    def kill(self) -> None:
        with self._reaping:
            if not self._over.is_set():
                os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        assert self._process is not None
        self._owner.join()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    # What was never read by a dead process needs no flushing.
                    continue


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory in bytes; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        pass
    if Path("/proc/self/statm").exists():
        return 0
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=False)
    return int(shown.stdout.strip() or 0) * 1024


def _understood(answer: dict[str, Any], mask: Path) -> Findings:
    try:
        return findings_from(answer["findings"], mask)
    except (KeyError, TypeError, ValueError, OSError) as problem:
        raise EngineFailure("broke", "the engine's answer makes no sense") from problem


def _reason(failure: object) -> tuple[str, str]:
    if isinstance(failure, list) and len(failure) == 2:
        return str(failure[0]), str(failure[1])
    return "broke", "the engine's answer makes no sense"
