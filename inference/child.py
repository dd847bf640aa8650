"""The engine's process: loads one card, then answers jobs from its standard input until that closes.

Started by :class:`inference.host.EngineHost` as ``python -m inference.child CARD DIGEST PARENT``. It may hang, grow or
die at any moment; nothing in here enforces a limit, since a process that misbehaves cannot be trusted to.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from inference.card import load_card
from inference.engine import open_engine
from inference.errors import EngineFailure, InferenceError
from inference.wire import findings_to, job_from

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Answer jobs; return the exit status."""
    card_path, digest, parent = Path(arguments[0]), arguments[1], int(arguments[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    _be_first_out_of_memory()
    # Answers get a descriptor of their own: what a library prints must not end up among them.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        card = load_card(card_path)
        if card.digest != digest:
            raise EngineFailure("broke", f"{card.path} was changed since it was loaded: restart the node")
        engine = open_engine(card)
    except Exception as problem:  # noqa: BLE001 - told to the supervisor, whatever it is
        _say(answers, {"failure": _failure(problem)})
        return 1
    _say(answers, {"ready": True})
    for line in sys.stdin:
        request = json.loads(Path(line.rstrip("\n")).read_text(encoding="utf-8"))
        try:
            findings = engine.run(job_from(request["job"]))
            answer: dict[str, Any] = {"findings": findings_to(findings, Path(request["mask"]))}
        except Exception as problem:  # noqa: BLE001 - told to the supervisor, whatever it is
            answer = {"failure": _failure(problem)}
        _say(answers, answer)
    return 0


def _say(answers: IO[str], values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _failure(problem: Exception) -> list[str]:
    """Return (reason, text); an unforeseen error gives its type and place only, since its words may name a patient."""
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


def _end_with(parent: int) -> None:
    """Die with the parent: by the kernel's signal on Linux, and by watching on any system."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _be_first_out_of_memory() -> None:
    """When the machine runs out of memory, let the kernel take this process and not the node."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
