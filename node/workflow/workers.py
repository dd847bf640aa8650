"""The loops that walk the steps: one thread for each thing that can wait without making the others wait."""

from __future__ import annotations

import os
import queue
import shutil
import threading
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from inference.card import Card
from inference.engine import Job
from inference.findings import Findings
from inference.sizing import concurrency_of, cores
from node.delivery.port import Destination
from node.dimse.commitment_scp import reported_to
from node.notify.receivers import Receiver
from node.workflow import steps
from node.workflow.engines import Engines, share_of_cores, share_of_memory
from node.workflow.models import View
from node.workflow.sweeps import sweeping
from node.workflow.way import Way
from storage import attempts, outbox
from storage.database import Watch
from storage.records import Attempt, Workitem

__all__ = ["run_performer", "run_workflow"]

_log = structlog.get_logger("overread.workflow")

#: The longest pause of a loop that nothing wakes: what waits for a time, not for a commit, is that much late.
_IDLE_SECONDS = 0.25
#: The pause after the node's own trouble (a full disk, a database that does not answer), and how far it grows.
_TROUBLE_SECONDS = 2.0
_MOST_TROUBLE_SECONDS = 60.0
#: Every so manyth workitem is the one that has waited longest, whatever its priority.
_OLDEST_EVERY = 8
#: How long a workitem waits for the performer that has its model, before any other takes it.
_OTHERS_AFTER_SECONDS = 2.0


def run_workflow(
    way: Way, destinations: Sequence[Destination], receivers: Mapping[str, Receiver], stop: threading.Event
) -> None:
    """Judge, route, deliver and notify until ``stop``: every peer has a thread, so that none waits for another."""

    def judge() -> int:
        way.models.prepare(way.database)
        return steps.complete(way) + steps.route(way)

    def notify() -> int:
        way.models.prepare(way.database)
        return steps.notify(way, receivers)

    loops: list[tuple[str, Callable[[], int]]] = [("judge", judge), ("notify", notify)]
    for name in (name for name, peer in way.settings.peers.items() if peer.count):
        loops.append((f"count-{name}", lambda name=name: steps.count(way, name)))  # type: ignore[misc]
    for destination in destinations:
        loops.append((f"deliver-{destination.name}", lambda destination=destination: steps.deliver(way, destination)))  # type: ignore[misc]
    for name, receiver in receivers.items():
        loops.append((f"send-{name}", lambda name=name, receiver=receiver: steps.send(way, name, receiver)))  # type: ignore[misc]
    peers = way.settings.peers
    for name, peer in reported_to(peers).items():
        loops.append((f"commit-{name}", lambda peer=peer: steps.commit(way, peer)))  # type: ignore[misc]
    told = {name: peer for name, peer in peers.items() if peer.availability}
    for name, peer in told.items():
        loops.append((f"announce-{name}", lambda name=name, peer=peer: steps.announce(way, name, peer)))  # type: ignore[misc]
    with way.database.write() as connection:
        outbox.park_unconfigured(connection, "availability", list(told))
        outbox.park_unconfigured(connection, "delivery", [one.name for one in destinations])
        outbox.park_unconfigured(connection, "notification", list(receivers))
    threads = [threading.Thread(target=_loop, args=(way, name, once, stop), name=name) for name, once in loops]
    with sweeping(way):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def run_performer(way: Way, index: int, stop: threading.Event) -> None:
    """Perform workitems until ``stop``, several at once, each card's engine in a process of its own."""
    # The first study should not wait for a second of imports.
    import node.evidence.documents  # noqa: F401

    prefix = f"performer-{index}:"
    owner = f"{prefix}{os.getpid()}:{uuid.uuid4().hex[:8]}"
    perform = way.settings.perform
    with way.database.write() as connection:
        attempts.lose(connection, prefix, limit=perform.losses, reason="the node stopped while at it")
    # What a killed performer's engines have left is removed by the one that stands for it.
    scratch = way.scratch / f"performer-{index}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    engines = Engines(
        scratch,
        cache=way.engine_cache,
        cores=share_of_cores(perform, cores()),
        memory_mb=share_of_memory(perform),
        idle_seconds=perform.idle_seconds,
    )
    performer = _Performer(way, index, owner, engines, stop)
    try:
        _loop(way, prefix, performer.once, stop)
    finally:
        performer.close()


class _Performer:
    """Takes workitems as long as there are free places, and works at each in a thread.

    A model's workitems go to one performer as long as it can take them: it has the model loaded, and many together
    fill a batch. Another one takes them once they have waited.
    """

    def __init__(self, way: Way, index: int, owner: str, engines: Engines, stop: threading.Event) -> None:
        self._way = way
        self._owner = owner
        self._engines = engines
        self._stop = stop
        self._places = threading.Semaphore(way.settings.perform.concurrency)
        self._pool = ThreadPoolExecutor(way.settings.perform.concurrency, thread_name_prefix="attempt")
        self._trouble: queue.SimpleQueue[Exception] = queue.SimpleQueue()
        self._turns = 0
        self._index = index

    def once(self) -> int:
        """Take one workitem and have a thread begin it. Returns whether there was any."""
        if not self._trouble.empty():
            raise self._trouble.get()
        self._way.models.prepare(self._way.database)
        with self._way.database.read() as connection:
            view = self._way.models.view(connection)
        # What was promoted away, turned back or retired has no use for its memory any more.
        self._engines.close_idle(view.digests(self._way.routes))
        if not self._places.acquire(timeout=_IDLE_SECONDS):
            return 1
        taken = None
        try:
            # Now and then what has waited longest comes first: nothing starves behind what is always more urgent.
            self._turns += 1
            choice = attempts.Choice(
                full_digests=self._engines.full(),
                own_models=self._own(view),
                others_after_seconds=_OTHERS_AFTER_SECONDS,
                oldest=self._turns % _OLDEST_EVERY == 0,
            )
            taken = steps.take(self._way, self._owner, choice)
            if taken is None:
                self._turns -= 1
                return 0
            card = view.of_digest(taken[0].model_digest)
            self._engines.begin(taken[0].model_digest, concurrency_of(card) if card is not None else 1)
            self._pool.submit(self._perform, taken)
        finally:
            if taken is None:
                self._places.release()
        return 1

    def close(self) -> None:
        """Give up what runs, and end the engines."""
        self._pool.shutdown(wait=True)
        self._engines.close()

    def _perform(self, taken: tuple[Workitem, Attempt]) -> None:
        try:
            steps.perform(self._way, taken, self._run, self._engines.identity)
        except _Stopping:
            return
        except Exception as trouble:  # noqa: BLE001 - the loop logs it, and pauses before it takes anything more
            self._trouble.put(trouble)
        finally:
            self._engines.end(taken[0].model_digest)
            self._places.release()

    def _own(self, view: View) -> list[str] | None:
        workers = self._way.settings.perform.workers
        if workers == 1:
            return None
        return sorted({name for name, _ in view.versions if zlib.crc32(name.encode()) % workers == self._index})

    def _run(self, card: Card, job: Job, heartbeat: Callable[[], None]) -> Findings:
        def beat() -> None:
            if self._stop.is_set():
                raise _Stopping
            heartbeat()

        return self._engines.run(card, job, beat)


class _Stopping(BaseException):
    """The node is being stopped: what runs is given up, and taken up again by the next start."""


def _loop(way: Way, name: str, once: Callable[[], int], stop: threading.Event) -> None:
    watch = Watch(way.database)
    pause = _TROUBLE_SECONDS
    try:
        while not stop.is_set():
            try:
                done = once()
            except _Stopping:
                return
            except Exception:  # noqa: BLE001 - logged with its trace; what was due stays due
                _log.exception("a step failed; it will be tried again", loop=name, seconds=pause)
                stop.wait(pause)
                pause = min(2 * pause, _MOST_TROUBLE_SECONDS)
                continue
            pause = _TROUBLE_SECONDS
            if not done:
                watch.wait(stop, _IDLE_SECONDS)
    finally:
        watch.close()
