"""Runs an engine in a process of its own and watches it from outside: its time, its memory and its life.

::

    host = EngineHost(card)
    findings = host.run(job, heartbeat=lease.renew)
    host.close()

The process keeps its loaded model for the next job and takes several at once where the card allows: reading the images
of one overlaps with the inference of another. After any failure it is ended, once the other jobs in it are done, and
the next job gets a new one.

A process that dies, hangs or grows takes every job in it along, and nothing outside can tell for sure which of them did
it. So a failure in company is nobody's: each of them runs again by itself, and what fails then is what fails.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inference.errors import EngineFailure
from inference.process import EngineProcess, Pending
from inference.sizing import concurrency_of
from inference.wire import findings_from, job_to

if TYPE_CHECKING:
    from inference.card import Card
    from inference.engine import Job
    from inference.findings import Findings

__all__ = ["EngineHost"]

_HEARTBEAT_SECONDS = 1.0

Heartbeat = Callable[[], None] | None


class EngineHost:
    """One supervised engine process for one card; several threads may run jobs.

    Parameters
    ----------
    card
        Its ``resources`` are the limits of each job, and say how many run at once.
    folder
        Where the process's temporary folder is made; the system's own place by default.
    cache
        Where compiled models and measured choices are kept from one process to the next; nowhere by default.
    memory_mb
        What its process may hold, where that is less than what its card says.
    """

    def __init__(
        self,
        card: Card,
        *,
        folder: Path | None = None,
        cache: Path | None = None,
        cores: int | None = None,
        memory_mb: float | None = None,
    ) -> None:
        self._card = card
        self._memory_mb = memory_mb
        self._parent_folder = folder
        self._cache = cache
        self._cores = cores
        self._most = concurrency_of(card)
        self._child: EngineProcess | None = None
        self._loading = threading.Lock()
        self._door = _Door(self._most)
        self._loaded: dict[str, Any] = {}

    @property
    def card(self) -> Card:
        """The card whose model runs here."""
        return self._card

    @property
    def concurrency(self) -> int:
        """How many jobs run at once; further ones wait."""
        return self._most

    @property
    def pid(self) -> int | None:
        """The process that runs now, if there is one."""
        child = self._child
        return child.pid if child is not None and not child.ended else None

    @property
    def loaded(self) -> dict[str, Any]:
        """What the process says of itself: ``provider``, ``precision``, ``seconds`` to load, and its ``batching``."""
        return dict(self._loaded)

    @property
    def busy(self) -> int:
        """How many jobs are in it."""
        return self._door.inside

    def run(self, job: Job, *, heartbeat: Heartbeat = None) -> Findings:
        """Run one job to its end, beside others as far as the card allows.

        Parameters
        ----------
        heartbeat
            Called about once a second, while the job waits and while the engine works. If it raises, the job is
            abandoned, its process killed unless others run in it, and the exception passes on.

        Raises
        ------
        EngineFailure
            ``died``, ``overran-time``, ``overran-memory``, ``overran-disk`` or ``broke``: by this job's own doing,
            since one that was interrupted by what happened to another is run again by itself. ``interrupted``, if the
            engine was closed.
        """
        if job.card_path.resolve() not in (self._card.path.resolve(), self._card.directory):
            raise ValueError(f"a job for {job.card_path} came to the engine of {self._card.path}")
        try:
            return self._run(job, heartbeat, alone=False)
        except EngineFailure as failure:
            if failure.reason != "interrupted" or self._door.closed:
                raise
        try:
            return self._run(job, heartbeat, alone=True)
        except EngineFailure as failure:
            if failure.reason != "interrupted" or self._door.closed:
                raise
            # With no other job in it: a process that ends by itself as often as it is started has to count.
            raise EngineFailure("died", failure.text) from failure

    def load(self) -> None:
        """Start the process and wait until its model is loaded, within the limits of a job; the next job finds it so.

        Raises
        ------
        EngineFailure
            When the model cannot be loaded.
        """
        self._door.enter(None, alone=False)
        try:
            self._loaded_child(None)
        except BaseException:
            self._door.clear_out()
            raise
        finally:
            self._leave()

    def rehearse(self) -> None:
        """Run the model once on a made-up input, where it takes tensors (:mod:`inference.rehearsal`).

        Raises
        ------
        EngineFailure
            When it cannot answer, or not as its card says, within the limits of a job.
        """
        self._door.enter(None, alone=True)
        try:
            child = self._loaded_child(None)

            def request(number: int) -> Path:
                place = child.folder / f"job-{number}.json"
                place.write_text(json.dumps({"rehearse": True}), encoding="utf-8")
                return place

            pending = child.submit(request)
            _await(pending, None)
            pending.result()
        except BaseException:
            self._door.clear_out()
            raise
        finally:
            self._leave()

    def close(self) -> None:
        """End the process for good; a job that still runs in it fails with ``died``, or was ``interrupted``."""
        self._door.close()
        child = self._child
        if child is not None:
            child.kill()
        with self._loading:
            self._discard()

    def __enter__(self) -> EngineHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, job: Job, heartbeat: Heartbeat, *, alone: bool) -> Findings:
        self._door.enter(heartbeat, alone=alone)
        leave = self._leave
        try:
            child = self._loaded_child(heartbeat)
            places: list[Path] = []

            def request(number: int) -> Path:
                mask = child.folder / f"mask-{number}.npy"
                places.extend((child.folder / f"job-{number}.json", mask))
                with _writing("a job"):
                    places[0].write_text(json.dumps({"job": job_to(job), "mask": str(mask)}), encoding="utf-8")
                return places[0]

            pending = child.submit(request)
            try:
                _await(pending, heartbeat)
            except BaseException:
                if child.busy <= 1:
                    child.kill()
                else:
                    # Others must not pay for it: it keeps its place until it ends, by itself or by its limit.
                    pending.leave(self._leave_later)
                    leave = _nothing
                raise
            answer = pending.result()
            findings = _understood(answer, places[1])
            if isinstance(answer.get("batching"), dict):
                self._loaded["batching"] = answer["batching"]
            for place in places:
                place.unlink(missing_ok=True)
            return findings
        except BaseException:
            self._door.clear_out()
            raise
        finally:
            leave()

    def _leave(self) -> None:
        self._door.leave(self._discard_finished, self._tidy)

    def _tidy(self) -> None:
        child = self._child
        if child is not None and not child.ended:
            child.tidy()

    def _leave_later(self) -> None:
        # Not in the thread that watches the process: that one may have to be waited for.
        threading.Thread(target=self._leave, name=f"leave-{self._card.name}", daemon=True).start()

    def _loaded_child(self, heartbeat: Heartbeat) -> EngineProcess:
        with self._loading:
            if self._door.closed:
                raise EngineFailure("interrupted", "the engine was closed")
            if self._child is None or self._child.ended:
                # A process that died between two jobs took no job with it: no try is lost.
                self._discard()
                with _writing("its folder"):
                    folder = Path(tempfile.mkdtemp(prefix="engine-", dir=self._parent_folder))
                try:
                    self._child = EngineProcess(self._card, folder, self._cache, self._cores, self._memory_mb)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
            child = self._child
        # All that came while it loads wait for it; each looks after its own lease meanwhile.
        _await(child.loading, heartbeat)
        self._loaded = child.loading.result()
        return child

    def _discard_finished(self) -> None:
        with self._loading:
            self._discard()

    def _discard(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()
            shutil.rmtree(child.folder, ignore_errors=True)


class _Door:
    """Lets so many in at once, or one alone; after a failure nobody until all are out and the place was cleared."""

    def __init__(self, most: int) -> None:
        self.closed = False
        self._most = most
        self._changed = threading.Condition()
        self._inside = 0
        self._one_alone = False
        self._want_alone = 0
        self._clearing = False

    @property
    def inside(self) -> int:
        return self._inside

    def enter(self, heartbeat: Heartbeat, *, alone: bool) -> None:
        """Wait until there is room; who must be alone goes first, so that it comes to its turn at all."""
        with self._changed:
            self._want_alone += alone
        try:
            while True:
                with self._changed:
                    if self.closed:
                        raise EngineFailure("interrupted", "the engine was closed")
                    if self._changed.wait_for(lambda: self._room(alone), _HEARTBEAT_SECONDS):
                        self._inside += 1
                        self._one_alone = alone
                        return
                if heartbeat is not None:
                    heartbeat()
        finally:
            with self._changed:
                self._want_alone -= alone
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def clear_out(self) -> None:
        """Let nobody in until all that are inside have left."""
        with self._changed:
            self._clearing = True

    def leave(self, clear: Callable[[], None], tidy: Callable[[], None]) -> None:
        """Make room; the last one to leave calls ``clear`` where that was asked for, else ``tidy``."""
        with self._changed:
            if self._inside == 1 and self._clearing:
                clear()
                self._clearing = False
            elif self._inside == 1:
                tidy()
            self._inside -= 1
            self._one_alone = False
            self._changed.notify_all()

    def _room(self, alone: bool) -> bool:
        if self._clearing or self._one_alone or self.closed:
            return False
        return self._inside == 0 if alone else self._inside < self._most and not self._want_alone


def _nothing() -> None:
    pass


@contextmanager
def _writing(what: str) -> Iterator[None]:
    """Tell of a disk that takes nothing as of what the machine lacks: no try is lost by it."""
    try:
        yield
    except OSError as problem:
        raise EngineFailure("no-room", f"{what} cannot be written for the engine ({problem.strerror})") from problem


def _await(pending: Pending, heartbeat: Heartbeat) -> None:
    while not pending.wait(_HEARTBEAT_SECONDS):
        if heartbeat is not None:
            heartbeat()


def _understood(answer: dict[str, Any], mask: Path) -> Findings:
    try:
        return findings_from(answer["findings"], mask)
    except (KeyError, TypeError, ValueError, OSError) as problem:
        raise EngineFailure("broke", "the engine's answer makes no sense") from problem
