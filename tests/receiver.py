"""Starts real receivers in processes of their own, without the rest of the node."""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from demo.peers import Process, free_port, tcp_open, wait_until
from node.dimse.access import Access
from node.dimse.inlets import Inlet, bound
from node.dimse.providers import handlers
from node.dimse.scp import run_receiver
from node.ops.logging import configure_logging
from node.settings import Settings
from storage.blobs import FileBlobs
from storage.database import Database, migrate
from storage.intake import Archive
from storage.space import Least, Marks, Room, disks_of


@dataclass(kw_only=True)
class Receiver:
    """Receivers on a free port with a data directory of their own."""

    folder: Path
    port: int = field(default_factory=free_port)
    options: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, Any] = field(default_factory=dict)
    wrap: list[str] = field(default_factory=list)
    ae_title: str = "OVERREAD"
    minimum_free: int = 0
    _process: Process | None = None

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'overread.sqlite'}"

    @property
    def blobs(self) -> FileBlobs:
        return FileBlobs(self.folder / "blobs")

    @property
    def refused(self) -> FileBlobs:
        return FileBlobs(self.folder / "quarantine")

    @property
    def incoming(self) -> Path:
        return self.folder / "incoming"

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    def start(self) -> Receiver:
        self.folder.mkdir(parents=True, exist_ok=True)
        migrate(self.url)
        options = {"ae_title": self.ae_title, "port": self.port, **self.options}
        self._process = Process(
            command=[
                *self.wrap,
                sys.executable,
                "-m",
                "tests.receiver",
                "--folder",
                str(self.folder),
                "--minimum-free",
                str(self.minimum_free),
                "--peers",
                json.dumps(self.peers),
                json.dumps(options),
            ],
            log_path=self.folder / "receiver.log",
            cwd=Path(__file__).resolve().parent.parent,
        )
        self._process.start()

        def ready() -> bool:
            assert self.process.running, self.process.log_tail()
            return tcp_open(self.port if self.options.get("plain", True) else self.options["tls"]["port"])

        wait_until(ready, 30, f"a receiver on port {self.port}")
        return self

    def stop(self) -> int | None:
        return self.process.stop()

    def rows(self, query: str) -> list[Any]:
        database = Database(self.url)
        try:
            with database.read() as connection:
                return list(connection.execute(text(query)).mappings())
        finally:
            database.close()

    def instances(self) -> list[Any]:
        return self.rows("SELECT * FROM instance ORDER BY id")

    def log(self) -> list[dict[str, Any]]:
        # The last line may be half there; and a name may hold a separator that str.splitlines() knows.
        lines = self.process.log_path.read_text(errors="replace").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]


@contextmanager
def receiving(folder: Path, **options: Any) -> Iterator[Receiver]:
    """Run receivers for a while."""
    receiver = Receiver(folder=folder, **options).start()
    try:
        yield receiver
    finally:
        receiver.stop()


def _child(inlets: tuple[Inlet, ...], settings: Settings, minimum_free: int) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # However a test ends, no receiver outlives it.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    folder = settings.data_dir
    database, blobs = Database(settings.database_url), FileBlobs(folder / "blobs")
    archive = Archive(database, blobs, FileBlobs(folder / "quarantine"))
    room = Room(disks_of(folder, database), Marks(refuse=Least(minimum_free), refuse_inodes=Least()))
    run_receiver(
        inlets,
        archive,
        settings.dimse,
        Access(settings.dimse, settings.peers),
        folder / "incoming",
        room,
        stop,
        handlers=handlers(settings, database, blobs),
    )
    archive.close()
    database.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minimum-free", type=int, required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("settings")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    configure_logging()
    # To see where its threads are: kill -USR1.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    settings = Settings(
        data_dir=arguments.folder,
        dimse=json.loads(arguments.settings),
        peers=json.loads(arguments.peers),
        routes=(),
    )
    FileBlobs(arguments.folder / "blobs")
    FileBlobs(arguments.folder / "quarantine")
    (arguments.folder / "incoming").mkdir(exist_ok=True)
    children = []
    with bound(settings.dimse) as inlets:
        for _ in range(settings.dimse.receivers):
            pid = os.fork()
            if not pid:
                _child(inlets, settings, arguments.minimum_free)
                os._exit(0)
            children.append(pid)

    def forward(number: int, _frame: Any) -> None:
        for child in children:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, forward)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
