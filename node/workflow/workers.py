"""The loops that walk the steps: one thread for each thing that can wait without making the others wait."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence

import structlog

from inference.card import Card
from inference.engine import Job
from inference.findings import Findings
from inference.host import EngineHost
from node.delivery.port import Destination
from node.dimse.commitment_scp import reported_to
from node.notify.receivers import Receiver
from node.workflow import steps
from node.workflow.sweeps import sweeping
from node.workflow.way import Way
from storage import attempts, outbox
from storage.database import Watch

__all__ = ["run_performer", "run_workflow"]

_log = structlog.get_logger("overread.workflow")

#: The longest pause of a loop that nothing wakes: what waits for a time, not for a commit, is that much late.
_IDLE_SECONDS = 0.25
#: The pause after the node's own trouble (a full disk, a database that does not answer), and how far it grows.
_TROUBLE_SECONDS = 2.0
_MOST_TROUBLE_SECONDS = 60.0


def run_workflow(
    way: Way, destinations: Sequence[Destination], receivers: Mapping[str, Receiver], stop: threading.Event
) -> None:
    """Judge, route, deliver and notify until ``stop``: every peer has a thread, so that none waits for another."""
    loops: list[tuple[str, Callable[[], int]]] = [("judge", lambda: steps.complete(way) + steps.route(way))]
    loops.append(("notify", lambda: steps.notify(way, receivers)))
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
    """Perform workitems until ``stop``, one at a time, each card's engine in a process of its own."""
    # The first study should not wait for a second of imports.
    import node.evidence.documents  # noqa: F401

    prefix = f"performer-{index}:"
    owner = f"{prefix}{os.getpid()}:{uuid.uuid4().hex[:8]}"
    losses = way.settings.perform.losses
    with way.database.write() as connection:
        attempts.lose(connection, prefix, limit=losses, reason="the node stopped while at it")
    # What a killed performer's engines have left is removed by the one that stands for it.
    scratch = way.scratch / f"performer-{index}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    hosts: dict[str, EngineHost] = {}

    def run(card: Card, job: Job, heartbeat: Callable[[], None]) -> Findings:
        def beat() -> None:
            if stop.is_set():
                raise _Stopping
            heartbeat()

        host = hosts.get(card.digest)
        if host is None:
            host = hosts[card.digest] = EngineHost(card, folder=scratch, cache=way.engine_cache)
        return host.run(job, heartbeat=beat)

    def once() -> int:
        performed = int(steps.perform(way, owner, run))
        if hosts:
            with way.database.read() as connection:
                serving = way.models.view(connection).digests(way.routes)
            for digest in set(hosts) - serving:
                # Promoted away, turned back or retired: its memory is for others now.
                hosts.pop(digest).close()
        return performed

    try:
        _loop(way, prefix, once, stop)
    finally:
        for host in hosts.values():
            host.close()


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
