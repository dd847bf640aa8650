"""Where the parts are wired together: the parent that holds the ports and the lock, and its processes.

One parent binds each port once and forks receivers, the web, the workflow and the performers. It stays
single-threaded and opens no database while it forks. A process that dies is started anew; when the parent dies,
its processes end with it. What a process leaves behind that it has started itself (an engine that was killed, with a
daemon of a model's own) becomes the parent's child on Linux, and is ended; what the parent had as children before, or
adopts from those, is not the node's and left alone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NoReturn

import structlog

from inference.ownership import hand_over
from inference.processtree import children, kill_tree
from inference.registry import Registry
from node.delivery.factory import make_destination
from node.dimse.access import Access
from node.dimse.inlets import Inlet, bound
from node.dimse.providers import handlers
from node.dimse.retrieve import TRANSCODED
from node.dimse.scp import run_receiver
from node.listening import listen
from node.notify.receivers import Receiver, receiver_for
from node.ops.directory import DataDirectory, refuse_incomplete
from node.ops.logging import configure_logging
from node.ops.reconciling import reconciling
from node.ops.rooms import watching
from node.settings import Settings
from node.web.application import Services, run_web
from node.workflow import leaving
from node.workflow.engines import note_cores
from node.workflow.models import Models, installed, register, store_of
from node.workflow.way import Way
from node.workflow.workers import run_performer, run_workflow
from storage import models, receiving, studies
from storage.database import Database, migrate
from storage.intake import Archive
from storage.reconcile import clear_incoming
from storage.space import Room, disks_of

__all__ = ["prepare_database", "serve"]

_log = structlog.get_logger("overread.app")

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_GRACE_SECONDS: Final = 20.0
_RESTART_SECONDS: Final = 0.5


def serve(settings: Settings) -> int:
    """Run the node until it is told to stop (SIGTERM, SIGINT). Returns the exit status.

    Raises
    ------
    AlreadyRunning
        When the data directory or a port is taken.
    ConfigurationError
        When an address cannot be listened on, or a route names a model that is not there.
    BackupError
        When a restore was interrupted, or the database of what is in the data directory is missing.
    """
    started = time.monotonic()
    configure_logging()
    registry = installed(settings)
    directory = DataDirectory(settings.data_dir.absolute())
    with (
        directory.lock(),
        bound(settings.dimse) as dimse,
        listen("http", settings.http.bind, settings.http.port) as http,
    ):
        refuse_incomplete(directory.root, settings.database_url)
        _prepare(settings, directory, registry)
        note_cores(settings)
        parent = _Parent(_processes(settings, directory, registry, dimse, http, directory.moment()))
        return parent.run(lambda: _log.info("ready", seconds=round(time.monotonic() - started, 3)))


def prepare_database(settings: Settings) -> None:
    """Make the database of a node that has never run, and register its models, as its first start would.

    Raises
    ------
    AlreadyRunning, BackupError
        As :func:`serve` does.
    """
    directory = DataDirectory(settings.data_dir.absolute())
    with directory.lock():
        refuse_incomplete(directory.root, settings.database_url)
        # What a route names may be what is about to be added.
        _prepare(settings, directory, installed(settings, routed=False))
        for one in directory.root.iterdir():
            hand_over(one)


def _prepare(settings: Settings, directory: DataDirectory, registry: Registry) -> None:
    """Do what has to be done before anything is taken in, however much is held; the rest follows while it works."""
    shutil.rmtree(directory.root / TRANSCODED, ignore_errors=True)
    migrate(settings.database_url)
    removed = clear_incoming(directory.incoming)
    if removed:
        _log.info("half-written files removed", files=removed)
    database = Database(settings.database_url)
    try:
        with database.write() as connection:
            receiving.restart_quiet_periods(connection)
            studies.device_uid(connection)
            register(connection, registry, store_of(settings))
        if swept := leaving.sweep(settings, database):
            _log.info("files of removed versions taken away", versions=swept)
    finally:
        database.close()


Process = Callable[[threading.Event], None]


def _processes(
    settings: Settings,
    directory: DataDirectory,
    registry: Registry,
    dimse: Sequence[Inlet],
    http: socket.socket,
    moment: int,
) -> dict[str, Process]:
    """Return what each process does. Each runs after the fork and opens its own database.

    What lies in the data directory from before ``moment`` is compared with the rows in the background.
    """

    def archive(database: Database) -> Archive:
        return Archive(database, directory.blobs, directory.refused, models.KnownDevices(database))

    def room(database: Database) -> Room:
        return Room(disks_of(directory.root, database), settings.storage.marks)

    def receiver(stop: threading.Event) -> None:
        database = Database(settings.database_url)
        with database.write() as connection:
            # This receiver may stand for one that died in the middle of a study.
            receiving.restart_quiet_periods(connection)
        inlet = archive(database)
        try:
            access = Access(settings.dimse, settings.peers)
            run_receiver(
                dimse,
                inlet,
                settings.dimse,
                access,
                directory.incoming,
                room(database),
                stop,
                handlers=handlers(settings, database, directory.blobs),
            )
        finally:
            inlet.close()
            database.close()

    def web(stop: threading.Event) -> None:
        database = Database(settings.database_url)
        inlet = archive(database)
        try:
            services = Services(
                settings=settings,
                database=database,
                archive=inlet,
                blobs=directory.blobs,
                incoming=directory.incoming,
                room=room(database),
                started_at=datetime.now(UTC),
            )
            run_web(http, services, stop)
        finally:
            inlet.close()
            database.close()

    def way(database: Database) -> Way:
        return Way(
            settings=settings,
            database=database,
            blobs=directory.blobs,
            incoming=directory.incoming,
            scratch=directory.root / "scratch",
            models=Models(registry, store_of(settings)),
        )

    def workflow(stop: threading.Event) -> None:
        database = Database(settings.database_url)
        destinations = [
            make_destination(name, one, settings.peers, settings.dimse.ae_title)
            for name, one in settings.destinations.items()
        ]
        receivers: dict[str, Receiver] = {name: receiver_for(one) for name, one in settings.notifiers.items()}
        try:
            with (
                watching(room(database)),
                reconciling(database, directory, models.KnownDevices(database), moment),
            ):
                run_workflow(way(database), destinations, receivers, stop)
        finally:
            database.close()

    def performer(index: int, stop: threading.Event) -> None:
        database = Database(settings.database_url)
        try:
            run_performer(way(database), index, stop)
        finally:
            database.close()

    processes: dict[str, Process] = {f"receiver-{n}": receiver for n in range(settings.dimse.receivers)}
    processes |= {"web": web, "workflow": workflow}
    for n in range(settings.perform.workers):
        processes[f"performer-{n}"] = lambda stop, n=n: performer(n, stop)  # type: ignore[misc]
    return processes


class _Parent:
    """Starts the processes, starts a dead one anew, and ends them all."""

    _SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})

    def __init__(self, processes: Mapping[str, Process]) -> None:
        self._processes = processes
        self._running: dict[int, str] = {}
        #: Name to the monotonic time at which it is to be started.
        self._due = dict.fromkeys(processes, 0.0)
        #: What was last seen below the processes.
        self._below: set[int] = set()
        #: Whether all that is adopted comes from the processes: there is nobody else below, and no container around.
        self._alone = os.getpid() != 1 and not children(os.getpid(), depth=1)

    def run(self, ready: Callable[[], None]) -> int:
        """Keep every process running until a signal says to stop; then end them all."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._SIGNALS)
        _adopt()
        self._start_due()
        ready()
        while True:
            received = signal.sigtimedwait(self._SIGNALS, _RESTART_SECONDS)
            if received is not None and received.si_signo != signal.SIGCHLD:
                return self._end()
            self._bury_the_dead()
            self._end_adopted()
            self._start_due()

    def _start_due(self) -> None:
        for name, at in list(self._due.items()):
            if at <= time.monotonic():
                del self._due[name]
                self._start(name)

    def _start(self, name: str) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._SIGNALS)
            _child(name, self._processes[name], parent)
        self._running[pid] = name
        _log.info("process started", role=name, pid=pid)

    def _bury_the_dead(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            name = self._running.pop(pid, None)
            if name is not None:
                _log.error("process died; starting it anew", role=name, status=os.waitstatus_to_exitcode(status))
                # Not at once: one that dies at its start must not spin.
                self._due[name] = time.monotonic() + _RESTART_SECONDS

    def _end_adopted(self) -> None:
        """End what the processes have left behind: nothing is meant to outlive them.

        A wrapper that has started a helper and become the node (``helper & exec overread serve``) leaves a child that
        is not ours to end, and neither is what that one leaves behind, or what the first process of a container gets
        from others in it (``docker exec``). Where there may be such, only what was seen below a process of ours is.
        """
        # Asked for in this order: what is adopted meanwhile is among the children, or met the next time.
        below = self._seen_below()
        left = set(children(os.getpid(), depth=1)) - set(self._running)
        if not self._alone:
            left &= self._below | below
        for pid in left:
            kill_tree(pid)
            _log.warning("ended what a process had left behind", pid=pid)
        # Numbers come again: those that are gone are not kept.
        self._below = below

    def _seen_below(self) -> set[int]:
        """Look what lies below the processes where that tells what is ours to end; a look asks every thread."""
        if self._alone:
            return set()
        return {one for pid in self._running for one in children(pid)}

    def _end(self) -> int:
        _log.info("stopping", processes=len(self._running))
        self._below |= self._seen_below()
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._running and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, 0.2)
            self._below |= self._seen_below()
            while self._running and (pid := os.waitpid(-1, os.WNOHANG)[0]):
                self._running.pop(pid, None)
        for pid, name in self._running.items():
            _log.warning("process did not end in time; killed", role=name)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._running.clear()
        self._end_adopted()
        _log.info("stopped")
        return 0


def _child(name: str, process: Process, parent: int) -> NoReturn:
    """Be one of the processes: end on SIGTERM, and with the parent."""
    status = 1
    try:
        _end_with(parent)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
        # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        structlog.contextvars.bind_contextvars(process=name)
        process(stop)
        status = 0
    except BaseException:  # noqa: BLE001 - a child must never run on into its parent's code
        _log.exception("process failed", role=name)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _adopt() -> None:
    """Become the parent of whatever loses its own below this process (prctl(2)); elsewhere than on Linux init does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; elsewhere than on Linux, watch for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
