"""What is done by the clock and not by an event: leases that ran out, and keeping the database's log short."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MAX_INSTANCES, JobEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from node.dimse.commitment_scp import reported_to
from node.workflow.leftovers import remove_leftovers
from node.workflow.way import Way
from storage import attempts, commitments, results

__all__ = ["sweeping", "tell_of_waits"]

_log = structlog.get_logger("overread.sweeps")
_CHECKPOINT_SECONDS = 60.0
_RESULTS_SECONDS = 600.0
#: A file of a result, or one kept for a workitem, is an orphan once its row has not come for so long.
_ORPHAN_NANOSECONDS = 3600 * 10**9
_LEFTOVERS_SECONDS = 3600.0


@contextmanager
def sweeping(way: Way) -> Iterator[None]:
    """Sweep in the background for as long as the block lasts."""
    scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, timezone="UTC")
    tell_of_waits(scheduler)
    every = max(1.0, way.settings.perform.lease_seconds / 3)
    options = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
    scheduler.add_job(_expire_leases, "interval", [way], seconds=every, **options)
    scheduler.add_job(_park_unreachable, "interval", [way], seconds=every, **options)
    scheduler.add_job(way.database.checkpoint, "interval", seconds=_CHECKPOINT_SECONDS, **options)
    if way.settings.perform.results_mb:
        scheduler.add_job(_tidy_results, "interval", [way], seconds=_RESULTS_SECONDS, **options)
        scheduler.add_job(_tidy_results, args=[way])
    scheduler.add_job(_remove_leftovers, "interval", [way], seconds=_LEFTOVERS_SECONDS, **options)
    scheduler.add_job(_remove_leftovers, args=[way])
    scheduler.start()
    try:
        yield
    finally:
        scheduler.shutdown()


def tell_of_waits(scheduler: BackgroundScheduler) -> None:
    """Say once, in our own words, that sweeps cannot keep up, and once that they can again.

    The library's own line comes for every turn that is left out (:mod:`node.ops.logging` keeps it away).
    """
    waiting: set[str] = set()

    def tell(event: JobEvent) -> None:
        late = bool(waiting)
        if event.code == EVENT_JOB_MAX_INSTANCES:
            waiting.add(event.job_id)
            if not late:
                _log.warning("sweeps wait, most likely for the database: expired leases are taken back late")
        else:
            waiting.discard(event.job_id)
            if late and not waiting:
                _log.info("sweeps go on")

    scheduler.add_listener(tell, EVENT_JOB_MAX_INSTANCES | EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)


def _park_unreachable(way: Way) -> None:
    """Park reports of commitment whose association is gone and whose peer cannot be called."""
    callable_now = {peer.ae_title.strip() for peer in reported_to(way.settings.peers).values()}
    with way.database.read() as connection:
        if not commitments.are_unreachable(connection, callable_now):
            return
    with way.database.write() as connection:
        parked = commitments.park_unreachable(connection, callable_now)
    _log.warning("commitments parked", commitments=parked)


def _tidy_results(way: Way) -> None:
    """Keep the kept results within their bounds, and remove files of which a crash has lost the row."""
    forgotten = results.evict(way.database, way.results, way.settings.perform.results_mb * 2**20)
    removed = results.sweep(way.database, way.results, time.time_ns() - _ORPHAN_NANOSECONDS)
    if forgotten or removed:
        _log.info("results tidied", forgotten=forgotten, orphans=removed)


def _remove_leftovers(way: Way) -> None:
    """Remove heat maps and masks of what was deleted, or of which a crash has lost the row."""
    before = time.time_ns() - _ORPHAN_NANOSECONDS
    removed = sum(remove_leftovers(way.database, folder, before) for folder in (way.heat_maps, way.shadows))
    if removed:
        _log.info("leftovers removed", files=removed)


def _expire_leases(way: Way) -> None:
    with way.database.write() as connection:
        lost = attempts.lose_expired(connection, limit=way.settings.perform.losses)
    if lost:
        _log.warning("leases ran out", attempts=lost)
