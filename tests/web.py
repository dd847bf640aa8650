"""Pytest fixtures that run the node's web side for real: uvicorn on a free port, an archive on disk."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from dicomweb_client.api import DICOMwebClient

from demo.peers import wait_until
from node.listening import listen
from node.settings import Settings
from node.web.application import Services, run_web
from storage.blobs import FileBlobs
from storage.database import Database, migrate
from storage.index import Origin
from storage.intake import Archive, Receipt
from storage.space import Disk, Room

__all__ = ["WebNode", "running_web"]


@dataclass(frozen=True)
class WebNode:
    """A running web side and what it stands on."""

    url: str
    folder: Path
    services: Services
    http: httpx.Client

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def take_in(self, path: Path) -> Receipt:
        """Put a copy of a file into the archive, as any receiver would."""
        copy = self.services.incoming / f"{path.name}.copy"
        copy.write_bytes(path.read_bytes())
        return self.services.archive.receive(copy, Origin(calling_ae_title="TEST"))


@contextmanager
def running_web(
    folder: Path, *, http: dict[str, Any] | None = None, url: str | None = None, **services: Any
) -> Iterator[WebNode]:
    """Run a web side whose data is in a folder."""
    with ExitStack() as stack:
        node = _started(stack, folder, http or {}, url, services)
        wait_until(lambda: node.http.get("/health/live").status_code == 200, 20, "the web side")
        yield node


@pytest.fixture
def start_web(tmp_path: Path) -> Iterator[Callable[..., WebNode]]:
    """Give a function that starts one more web side: ``start_web(http={"token": "x"}, room=room)``."""
    numbers = itertools.count(1)
    with ExitStack() as stack:

        def start(**options: Any) -> WebNode:
            return stack.enter_context(running_web(tmp_path / f"web-{next(numbers)}", **options))

        yield start


@pytest.fixture
def web(start_web: Callable[..., WebNode]) -> WebNode:
    """Give a running web side with an empty archive."""
    return start_web()


@pytest.fixture
def dicomweb_client(web: WebNode) -> Iterator[DICOMwebClient]:
    """Give a client of another maker, of the running web side."""
    with requests.Session() as session:
        yield DICOMwebClient(web.dicomweb, session=session)


def _started(
    stack: ExitStack, folder: Path, http: dict[str, Any], url: str | None, services: dict[str, Any]
) -> WebNode:
    incoming = folder / "incoming"
    incoming.mkdir(parents=True)
    url = url or f"sqlite:///{folder / 'overread.sqlite'}"
    migrate(url)
    database = Database(url)
    stack.callback(database.close)
    blobs = FileBlobs(folder / "objects")
    archive = Archive(database, blobs, FileBlobs(folder / "refused"))
    stack.callback(archive.close)
    more = services.pop("settings", {})
    settings = Settings(data_dir=folder, routes=(), http={"port": 1, **http}, **more)
    listening = listen("http", settings.http.bind, 0)
    port = listening.getsockname()[1]
    wired = Services(
        settings=settings,
        database=database,
        archive=archive,
        blobs=blobs,
        incoming=incoming,
        room=services.pop("room", None) or Room([Disk("data_dir", folder)]),
        started_at=datetime.now(UTC),
        **services,
    )
    stop = threading.Event()
    thread = threading.Thread(target=run_web, args=(listening, wired, stop))
    thread.start()
    stack.callback(thread.join)
    stack.callback(stop.set)
    client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
    return WebNode(f"http://127.0.0.1:{port}", folder, wired, client)
