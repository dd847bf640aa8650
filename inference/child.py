"""The engine's process: loads one card, then answers jobs from its standard input until that closes.

Started by :class:`inference.process.EngineProcess` as ``python -m inference.child CARD DIGEST PARENT CONCURRENCY``. It
works at so many jobs at once, each in a thread: while one infers, the next is read and prepared. It may hang, grow or
die at any moment; nothing in here enforces a limit, since a process that misbehaves cannot be trusted to.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from inference import lean  # noqa: F401 - before anything that imports pydicom
from inference.batching import SharedEngine
from inference.card import load_card
from inference.engine import Engine, open_engine
from inference.errors import EngineFailure, InferenceError
from inference.lacking import LACKING
from inference.processtree import end_with
from inference.wire import findings_to, job_from

#: The number of what is not a job: loading the model.
_LOADING = 0
#: A disk with less free is full, where an error does not say what it is (numpy's, when it cannot write).
_FULL_BYTES = 1 << 20


def main(arguments: list[str]) -> int:
    """Answer jobs; return the exit status."""
    began = time.monotonic()
    card_path, digest, parent, concurrency = Path(arguments[0]), arguments[1], int(arguments[2]), int(arguments[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    # Also when that is full: what is written anywhere else would stay there.
    tempfile.tempdir = os.environ.get("TMPDIR")
    _be_first_out_of_memory()
    # Answers get a descriptor of their own: what a library prints must not end up among them.
    answers = _Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    try:
        card = load_card(card_path)
        if card.digest != digest:
            raise EngineFailure("broke", f"{card.path} was changed since it was loaded: restart the node")
        engine = open_engine(card)
    except Exception as problem:  # noqa: BLE001 - told to the supervisor, whatever it is
        answers.say(_LOADING, {"failure": _failure(problem)})
        return 1
    model = getattr(engine, "model", None)
    said = {name: str(getattr(model, name, "")) for name in ("provider", "precision")}
    answers.say(_LOADING, {"seconds": round(time.monotonic() - began, 3), **said})
    with ThreadPoolExecutor(concurrency, thread_name_prefix="job") as pool:
        for line in sys.stdin:
            number, _, request = line.rstrip("\n").partition(" ")
            pool.submit(_answer, engine, answers, int(number), Path(request))
    return 0


def _answer(engine: Engine, answers: _Answers, number: int, path: Path) -> None:
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
        if request.get("rehearse"):
            answer: dict[str, Any] = _rehearsed(engine)
        else:
            findings = engine.run(job_from(request["job"]))
            answer = {"findings": findings_to(findings, Path(request["mask"]))}
            if isinstance(engine, SharedEngine):
                answer["batching"] = engine.model.chosen()
    except Exception as problem:  # noqa: BLE001 - told to the supervisor, whatever it is
        answer = {"failure": _failure(problem)}
    answers.say(number, answer)


def _rehearsed(engine: Engine) -> dict[str, Any]:
    # A server is asked nothing that no study needs, and a program reads DICOM.
    if not isinstance(engine, SharedEngine):
        return {}
    from inference.rehearsal import rehearse

    with engine.model.under_way():
        rehearse(engine.card, engine.model)
    return {"rehearsed": True}


class _Answers:
    """The way back to the supervisor: one line an answer, whichever job it is of."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, number: int, values: dict[str, Any]) -> None:
        line = json.dumps({"job": number, **values}) + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()


def _failure(problem: Exception) -> list[str]:
    """Return (reason, text); an unforeseen error gives its type and place only, since its words may name a patient."""
    lacking = _lacking(problem)
    if lacking is not None:
        return ["no-room", f"{lacking}; it is tried again later"]
    if isinstance(problem, EngineFailure):
        return [problem.reason, problem.text]
    if isinstance(problem, InferenceError):
        return ["broke", str(problem)]
    if isinstance(problem, MemoryError):
        return ["overran-memory", "the engine could not get the memory that it asked for"]
    if isinstance(problem, FileNotFoundError):
        return ["broke", "a file of the input set is not there"]
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "an unknown place"
    return ["broke", f"{type(problem).__name__} at {where}"]


def _lacking(problem: BaseException | None) -> str | None:
    """Say what the machine lacks, where that is behind an error; None where it is another one."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        if isinstance(problem, OSError):
            if problem.errno in LACKING:
                return LACKING[problem.errno]
            if problem.errno is None and _is_full(tempfile.gettempdir()):
                return LACKING[errno.ENOSPC]
        problem = problem.__cause__ or problem.__context__
    return None


def _is_full(folder: str) -> bool:
    try:
        return shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return False


def _be_first_out_of_memory() -> None:
    """When the machine runs out of memory, let the kernel take this process and not the node."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
