"""Transcodes in a process of its own: a decoder that crashes, hangs or holds the interpreter harms no association.

Decoders are C libraries that meet hostile bytes, and most hold the global interpreter lock while they decode: in a
receiver, every other association would stand still. The process reads requests from its standard input and ends with
it, and so with whoever started it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from node.errors import NotTranscoded

__all__ = ["Transcoder", "Transcoders"]

#: How long one object may take.
_SECONDS = 300.0
#: An object is in memory as a whole, some three times over.
_MEMORY_BYTES = 16 << 30
_WAIT_SECONDS = 0.1
_NICE = 5


class Transcoder:
    """A process that transcodes one object after the other; started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def uncompressed(
        self, source: Path, transfer_syntax_uid: str, target: Path, given_up: Callable[[], bool] = lambda: False
    ) -> None:
        """Write ``source`` into the existing file ``target``, as :func:`node.transcoding.write_uncompressed` does.

        Raises
        ------
        NotTranscoded
            When it cannot be decoded, took too long, or nobody waits for it any more.
        """
        process = self._running()
        asked = json.dumps([str(source), transfer_syntax_uid, str(target)]).encode() + b"\n"
        try:
            cast(IO[bytes], process.stdin).write(asked)
            answer = self._answer(cast(IO[bytes], process.stdout), given_up)
        except OSError:
            answer = b""
        if not answer:
            self.close()
            raise NotTranscoded("the decoder died")
        reason = json.loads(answer)
        if reason is not None:
            raise NotTranscoded(str(reason))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                cast(IO[bytes], pipe).close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "node.transcoder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What a library says of an object may hold its values.
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        return self._process

    def _answer(self, pipe: IO[bytes], given_up: Callable[[], bool]) -> bytes:
        deadline = time.monotonic() + _SECONDS
        readable = select.poll()
        readable.register(pipe, select.POLLIN | select.POLLHUP)
        while not readable.poll(_WAIT_SECONDS * 1000):
            if given_up() or time.monotonic() > deadline:
                self.close()
                raise NotTranscoded("nobody waits any more" if given_up() else f"more than {_SECONDS:g} s")
        return pipe.readline()


class Transcoders:
    """Those of one process: each is used by one association at a time, and one is kept for the next."""

    def __init__(self) -> None:
        self._idle: list[Transcoder] = []
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[Transcoder]:
        """Give a transcoder for as long as the block runs."""
        with self._lock:
            transcoder = self._idle.pop() if self._idle else Transcoder()
        try:
            yield transcoder
        finally:
            with self._lock:
                kept = not self._idle
                if kept:
                    self._idle.append(transcoder)
            if not kept:
                transcoder.close()

    def close(self) -> None:
        """End what waits for work."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()


def main() -> None:
    """Answer each request line with null, or with why not, until the input ends."""
    import warnings

    from node.transcoding import write_uncompressed

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    os.nice(_NICE)
    warnings.simplefilter("ignore")
    # A library that prints must not answer in our place.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        source, syntax, target = json.loads(line)
        reason: str | None = None
        try:
            with Path(target).open("r+b") as file:
                file.truncate()
                write_uncompressed(Path(source), syntax, file)
        except Exception as error:  # noqa: BLE001 - decoders and hostile bytes raise anything
            reason = type(error).__name__
        answers.write(json.dumps(reason).encode() + b"\n")


if __name__ == "__main__":
    main()
