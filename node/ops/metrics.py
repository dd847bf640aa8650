"""Metrics for Prometheus, read from the database at the moment they are asked for: state lives nowhere else.

No label names a patient, a study or anything else that grows with the archive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Table, func, select

from node.ops.stability import Weighing
from storage import attempts, chores, damage, lifecycle, models, schema
from storage.database import Database, now
from storage.space import Room

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BY_STATE: dict[str, tuple[str, Table]] = {
    "studies": ("study", schema.study),
    "revisions": ("revision", schema.revision),
    "workitems": ("workitem", schema.workitem),
    "attempts": ("attempt", schema.attempt),
    "deliveries": ("delivery", schema.delivery),
    "notifications": ("notification", schema.notification),
    "commitments": ("commitment", schema.commitment),
    "availability_notifications": ("availability", schema.availability),
}


def render(database: Database, room: Room, weighing: Weighing) -> bytes:
    """Return everything in the Prometheus text format."""
    registry = CollectorRegistry()
    registry.register(_FromState(database, room, weighing))
    return generate_latest(registry)


class _FromState(Collector):
    def __init__(self, database: Database, room: Room, weighing: Weighing) -> None:
        self._database = database
        self._room = room
        self._weighing = weighing

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Say nothing beforehand: the registry would otherwise collect once to find out."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read everything in one view of the database."""
        with self._database.read() as connection:
            yield from self._states(connection)
            yield from self._amounts(connection)
            yield from self._waiting(connection)
            yield from self._damage(connection)
            yield from self._stability(connection)
            yield self._models(connection)
        yield from self._disks()
        yield self._gauge("wal_bytes", "Size of SQLite's write-ahead log.", _wal_size(self._database.url))

    @staticmethod
    def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"overread_{name}", text, value=value)

    @staticmethod
    def _damage(connection: Connection) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily("overread_damaged", "Files that are not what their rows say.", labels=["kind"])
        for kind, count in damage.counts(connection).items():
            gauge.add_metric([kind], count)
        yield gauge
        left = GaugeMetricFamily("overread_chore_left", "What a background task has still to do.", labels=["chore"])
        for one in chores.chores(connection):
            left.add_metric([one.name], 0 if one.ended_at else one.total - one.done)
        yield left

    def _models(self, connection: Connection) -> GaugeMetricFamily:
        unfit = self._weighing.unfit(connection)
        gauge = GaugeMetricFamily(
            "overread_model_version",
            "The part of the studies that a version reads (1: all of them; 0: it cannot run here), by its stage.",
            labels=["model", "version", "stage"],
        )
        for one in models.versions(connection):
            if one.state in (lifecycle.LIVE, lifecycle.CANARY, lifecycle.SHADOW):
                reads = 0 if (one.model, one.version) in unfit else one.share or 1
                gauge.add_metric([one.model, one.version, one.state], reads)
        return gauge

    def _stability(self, connection: Connection) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "overread_model_psi",
            "Population stability index of what a model reads and says; above 0.25 it is not what it was.",
            labels=["model", "version", "feature"],
        )
        counts = GaugeMetricFamily(
            "overread_model_observations", "Inputs that a model was given.", labels=["model", "version"]
        )
        seen: set[tuple[str, str]] = set()
        for one in self._weighing.weigh(connection):
            # One version has one series: of two behaviours under one number the last observed.
            if (one.model, one.version) in seen:
                continue
            seen.add((one.model, one.version))
            counts.add_metric([one.model, one.version], one.observations)
            for feature in one.features:
                if feature.psi is not None:
                    gauge.add_metric([one.model, one.version, feature.name], feature.psi)
        yield from (gauge, counts)

    def _disks(self) -> Iterator[GaugeMetricFamily]:
        free = GaugeMetricFamily("overread_disk_free_bytes", "Free on a disk that the node writes to.", labels=["disk"])
        inodes = GaugeMetricFamily("overread_disk_free_inodes", "Inodes free, where they are counted.", labels=["disk"])
        level = GaugeMetricFamily(
            "overread_disk_level", "0: enough room; 1: warned of; 2: nothing is taken in.", labels=["disk"]
        )
        for one in self._room.readings():
            free.add_metric([one.disk], one.free)
            level.add_metric([one.disk], one.level)
            if one.inodes is not None:
                inodes.add_metric([one.disk], one.inodes)
        yield from (free, inodes, level)

    @staticmethod
    def _states(connection: Connection) -> Iterator[GaugeMetricFamily]:
        for name, (kind, table) in _BY_STATE.items():
            gauge = GaugeMetricFamily(f"overread_{name}", f"{name.capitalize()} by state.", labels=["state"])
            counts = dict.fromkeys(lifecycle.STATES[kind], 0)
            for state, count in connection.execute(select(table.c.state, func.count()).group_by(table.c.state)):
                counts[state] = count
            for state, count in counts.items():
                gauge.add_metric([state], count)
            yield gauge
        parked = connection.execute(
            select(func.count()).select_from(schema.workitem).where(schema.workitem.c.parked.is_(True))
        ).scalar_one()
        yield _FromState._gauge("workitems_parked", "Workitems that wait for an operator.", parked)
        held = GaugeMetricFamily(
            "overread_workitems_held", "Workitems that were given back again and again, and wait.", labels=["model"]
        )
        for model, (count, _) in attempts.held_up(connection).items():
            held.add_metric([model], count)
        yield held

    def _amounts(self, connection: Connection) -> Iterator[GaugeMetricFamily]:
        instances, size = connection.execute(select(func.count(), func.sum(schema.instance.c.size))).one()
        yield self._gauge("instances", "Instances stored.", instances)
        yield self._gauge("instance_bytes", "Bytes of the instances stored.", float(size or 0))
        refused = connection.execute(select(func.count()).select_from(schema.quarantine)).scalar_one()
        yield self._gauge("quarantined", "Objects refused and kept for an operator.", refused)
        variants = connection.execute(select(func.count()).select_from(schema.variant)).scalar_one()
        yield self._gauge("variants", "Objects set aside because their UID was taken.", variants)

    @staticmethod
    def _waiting(connection: Connection) -> Iterator[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(
            "overread_oldest_pending_seconds", "Age of the oldest that is not done yet.", labels=["kind"]
        )
        at = now(connection)
        for kind, table, state, since in (
            ("study", schema.study, lifecycle.RECEIVING, schema.study.c.first_received_at),
            ("workitem", schema.workitem, lifecycle.SCHEDULED, schema.workitem.c.created_at),
            ("delivery", schema.delivery, lifecycle.PENDING, schema.delivery.c.created_at),
            ("notification", schema.notification, lifecycle.PENDING, schema.notification.c.created_at),
            ("commitment", schema.commitment, lifecycle.PENDING, schema.commitment.c.created_at),
            ("availability", schema.availability, lifecycle.PENDING, schema.availability.c.created_at),
        ):
            oldest = connection.execute(select(since).where(table.c.state == state).order_by(since).limit(1)).scalar()
            gauge.add_metric([kind], max(0.0, (at - oldest).total_seconds()) if oldest else 0.0)
        yield gauge


def _wal_size(url: str) -> float:
    if not url.startswith("sqlite:///"):
        return 0.0
    log = Path(url.removeprefix("sqlite:///") + "-wal")
    return float(log.stat().st_size) if log.exists() else 0.0
