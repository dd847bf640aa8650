"""One engine process: its start, the pipes to it, and the watch over its jobs' time, its memory and its life.

Jobs go in as lines that name a request's file, answers come back as lines of JSON that carry the job's number, in
whatever order they are done. A thread of the supervisor reads them and enforces every limit from outside.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from inference.engines.machine import CACHE_VARIABLE
from inference.environment import environment_of
from inference.errors import EngineFailure
from inference.lacking import LACKING
from inference.processtree import kill_tree, tree_resident_bytes
from inference.scratch import clear, cut, files_in, size_of
from inference.sizing import CORES_VARIABLE, concurrency_of, threads_of

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["EngineProcess", "Pending"]

#: What a new process may take to load its runtime and its model, beside the card's own limit for a job.
START_SECONDS = 60.0
_POLL_SECONDS = 0.05
_IDLE_POLL_SECONDS = 0.25
_MOST_ANSWER_BYTES = 64 * 1024 * 1024
#: How often it is looked how much the process has written, and what one that has nothing to do holds.
_LOOK_SECONDS = 1.0
#: Less than so many bytes are left in its folder between jobs.
_LITTLE_BYTES = 64 << 20
#: Why no process can be started now, and one may be later: fork(2) says EAGAIN where there are too many.
_NO_ROOM = frozenset({*LACKING, errno.EAGAIN})
#: The number of what is not a job: loading the model.
_LOADING = 0


class Pending:
    """A job that the process has, and what became of it.

    Parameters
    ----------
    seconds
        When it is over time, from now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self._over = threading.Event()
        self._answer: dict[str, Any] | None = None
        self._failure: EngineFailure | None = None
        self._at_end: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def wait(self, seconds: float) -> bool:
        """Wait for its end, at most so long; whether it has ended."""
        return self._over.wait(seconds)

    def result(self) -> dict[str, Any]:
        """Return the answer of a job that has ended.

        Raises
        ------
        EngineFailure
            If there is none.
        """
        if self._failure is not None:
            raise self._failure
        assert self._answer is not None
        return self._answer

    def leave(self, at_end: Callable[[], None]) -> None:
        """Wait for it no longer; ``at_end`` is called once it has ended, at once if it has already."""
        with self._lock:
            if not self._over.is_set():
                self._at_end = at_end
                return
        at_end()

    def end(self, *, answer: dict[str, Any] | None = None, failure: EngineFailure | None = None) -> None:
        """Note how it ended."""
        with self._lock:
            self._answer, self._failure = answer, failure
            self._over.set()
            at_end = self._at_end
        if at_end is not None:
            at_end()


class EngineProcess:
    """One engine process and the pipes to it.

    Linux sends the death signal that the child asks for when the *thread* that started it ends, so a thread of its
    own starts it and stays until it is over.

    Parameters
    ----------
    folder
        Where it may write.
    cache
        Where it keeps what it has made of models for the next process (compiled models); None keeps nothing.
    memory_mb
        What this machine lets it hold, where that is less than what its card does.

    Raises
    ------
    EngineFailure
        If it cannot be started: ``no-room``, if the machine lacks memory, processes or space for it now, else ``died``.
    """

    def __init__(
        self,
        card: Card,
        folder: Path,
        cache: Path | None = None,
        cores: int | None = None,
        memory_mb: float | None = None,
    ) -> None:
        self._card = card
        self._memory_mb = card.resources.memory_mb if memory_mb is None else int(memory_mb)
        self.folder = folder
        self._cache = cache
        self._cores = cores
        self._errors = folder / "stderr"
        self._started = threading.Event()
        self._over = threading.Event()
        self._reaping = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._problems: list[OSError] = []
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._end: EngineFailure | None = None
        self._jobs = 0
        self._look = 0.0
        #: What has lain in its folder since its model was loaded.
        self._lasting: frozenset[str] = frozenset()
        self.loading = self._pending[_LOADING] = Pending(START_SECONDS)
        self._owner = threading.Thread(target=self._own, name=f"engine-{card.name}", daemon=True)
        self._owner.start()
        self._started.wait()
        for problem in self._problems:
            text = f"the engine's process could not be started ({problem.strerror})"
            # What is not there, or not allowed, is so the next time as well: that must not wait for ever.
            raise EngineFailure("no-room" if problem.errno in _NO_ROOM else "died", text) from problem
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{card.name}", daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._over.is_set() or self._end is not None

    @property
    def busy(self) -> int:
        """How many jobs it has."""
        with self._lock:
            return len(self._pending)

    def submit(self, make_request: Callable[[int], Path]) -> Pending:
        """Hand a job over.

        Parameters
        ----------
        make_request
            Writes the file of the request for the job of a number, and names it.
        """
        with self._lock:
            self._jobs += 1
            number = self._jobs
        request = make_request(number)
        pending = Pending(self._card.resources.seconds)
        with self._lock:
            if self._end is not None:
                # It ended before this job came: whatever did it was not this one.
                pending.end(failure=_interrupted(self._end))
                return pending
            self._pending[number] = pending
            assert self._process is not None
            assert self._process.stdin is not None
            try:
                # A line this short never fills the pipe, so a child that hangs cannot hold us.
                self._process.stdin.write(b"%d %s\n" % (number, os.fsencode(request)))
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):
                # The watcher sees the death and ends every job with it.
                pass
        return pending

    def tidy(self) -> None:
        """Remove what its jobs have left in its folder, where that is much; only while it has none."""
        if size_of(self.folder, _LITTLE_BYTES) > _LITTLE_BYTES:
            clear(self.folder, self._lasting)

    def kill(self) -> None:
        """End it at once, with all that it has started."""
        with self._reaping:
            if not self._over.is_set():
                # Whatever groups and sessions that has made for itself.
                kill_tree(self.pid)

    def close(self) -> None:
        """End it and wait until it is gone."""
        assert self._process is not None
        self.kill()
        self._owner.join()
        self._watcher.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    # What was never read by a dead process needs no flushing.
                    continue

    def _own(self) -> None:
        """Start the process and stay with it to its end."""
        threads = str(min(threads_of(self._card), self._cores or threads_of(self._card)))
        environment = environment_of(self._card) | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            # Removed with the process, or by the next start after a death that left no time for it.
            "TMPDIR": str(self.folder),
        }
        if self._cores is not None:
            environment[CORES_VARIABLE] = str(self._cores)
        if self._cache is not None:
            environment[CACHE_VARIABLE] = str(self._cache)
        command = [sys.executable, "-P", "-m", "inference.child", str(self._card.path), self._card.digest]
        try:
            # Appended to, so that it can be cut while it is written.
            with self._errors.open("ab") as errors:
                self._process = subprocess.Popen(
                    [*command, str(os.getpid()), str(concurrency_of(self._card))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                    process_group=0,
                )
        except OSError as problem:
            self._problems.append(problem)
            return
        finally:
            self._started.set()
        # Not reaped before it is marked as over: until then its number cannot be another process's.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            self._over.set()
            self._process.wait()

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    def _watch(self) -> None:
        """Read answers and enforce limits until the process is over; then every job that it had has ended."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._stdout, selectors.EVENT_READ)
                while True:
                    if selector.select(_POLL_SECONDS if self.busy else _IDLE_POLL_SECONDS):
                        self._read()
                    self._check()
        except EngineFailure as failure:
            self._give_up(failure)
        except Exception as problem:  # noqa: BLE001 - whatever it is, nobody may wait for ever for a job's end
            self._give_up(EngineFailure("broke", f"the engine could not be watched ({type(problem).__name__})"))

    def _give_up(self, failure: EngineFailure) -> None:
        self.kill()
        with self._lock:
            self._end = failure
            left, self._pending = list(self._pending.values()), {}
        if not left:
            # Nobody may come for a long time who would remove it.
            clear(self.folder, frozenset())
        for one in left:
            one.end(failure=failure if len(left) == 1 else _interrupted(failure))

    def _read(self) -> None:
        chunk = os.read(self._stdout.fileno(), 1 << 16)
        if not chunk:
            raise self._death()
        self._buffer += chunk
        if len(self._buffer) > _MOST_ANSWER_BYTES:
            raise EngineFailure("broke", "the engine's answer has no end")
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            try:
                answer = json.loads(line)
                number = int(answer.pop("job"))
            except (ValueError, TypeError, KeyError, AttributeError) as problem:
                raise EngineFailure("broke", "the engine's answer is not JSON, or names no job") from problem
            with self._lock:
                pending = self._pending.pop(number, None)
            if pending is None:
                raise EngineFailure("broke", "the engine answered a job that it does not have")
            if number == _LOADING:
                self._lasting = files_in(self.folder)
            if "failure" in answer:
                pending.end(failure=EngineFailure(*_reason(answer["failure"])))
            else:
                pending.end(answer=answer)

    def _check(self) -> None:
        """Hold it to its limits; one that has nothing to do has the same ones, but for the time."""
        with self._lock:
            pending = list(self._pending.values())
        now = time.monotonic()
        cut(self._errors)
        look = now >= self._look
        if pending or look:
            self._check_memory("" if pending else " while it had nothing to do")
        if look:
            self._look = now + _LOOK_SECONDS
            most = self._card.resources.disk_mb
            if size_of(self.folder, most << 20) > most << 20:
                raise EngineFailure("overran-disk", f"the engine wrote more than {most} MB to its temporary folder")
        late = next((one for one in pending if now > one.deadline), None)
        if late is not None:
            raise EngineFailure("overran-time", f"the engine gave no answer within {late.seconds:g} s")

    def _check_memory(self, when: str) -> None:
        said = self._card.resources.memory_mb
        limit = min(said, self._memory_mb)
        resident = tree_resident_bytes(self.pid, limit * 2**20)
        if resident > limit * 2**20:
            whose = "" if limit == said else f" here, less than the {said} MB of its card"
            raise EngineFailure(
                "overran-memory", f"the engine held {resident // 2**20} MB{when}; its limit is {limit} MB{whose}"
            )

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


def _interrupted(failure: EngineFailure) -> EngineFailure:
    return EngineFailure("interrupted", f"it ran beside others when this happened: {failure.text}")


def _reason(failure: object) -> tuple[str, str]:
    if isinstance(failure, list) and len(failure) == 2:
        return str(failure[0]), str(failure[1])
    return "broke", "the engine's answer makes no sense"
