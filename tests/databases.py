"""Databases for tests: every storage test runs on SQLite and on a PostgreSQL of its own, started as a user would."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from storage.database import Database, migrate
from tests.peers import free_port, need
from tests.work import Holding

_BIN = Path("/usr/lib/postgresql/15/bin")


class PostgreSQL:
    """A server in a folder of its own; ended and removed with the session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name

    def start(self) -> PostgreSQL:
        if os.geteuid() == 0:
            # The server refuses to run as root.
            owner = pwd.getpwnam("postgres")
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)
        data = str(self._folder / "data")
        self._run("initdb", "-D", data, "-A", "trust", "-U", self._user, "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", data, "-w", "-o", options, "-l", str(self._folder / "log"), "start")
        return self

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "stop")

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://{self._user}@127.0.0.1:{self._port}/{name}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(_BIN / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Give a running PostgreSQL 15."""
    need((_BIN / "initdb").exists(), f"PostgreSQL 15 is not installed in {_BIN} (Debian package postgresql)")
    with ExitStack() as stack:
        # A socket's path is at most 107 bytes long: pytest's own folders are longer.
        folder = Path(tempfile.mkdtemp(prefix="pg-"))
        stack.callback(shutil.rmtree, folder)
        server = PostgreSQL(folder).start()
        stack.callback(server.stop)
        yield server


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """Give a folder in memory where there is one: a data directory has 512 subfolders, slow to make and remove."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None, prefix="overread-") as folder:
        yield Path(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, quick_path: Path) -> str:
    """Give the URL of a database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{quick_path / 'overread.sqlite'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def database(empty_url: str) -> Iterator[Database]:
    """Give a migrated database."""
    migrate(empty_url)
    opened = Database(empty_url)
    yield opened
    opened.close()


@pytest.fixture
def holding(database: Database, quick_path: Path) -> Iterator[Holding]:
    """Give an empty data directory on either database."""
    opened = Holding.at(quick_path / "var", database)
    yield opened
    opened.close()


@pytest.fixture
def embedded(quick_path: Path) -> Iterator[Holding]:
    """Give an empty data directory as the embedded node has it: SQLite in it, beside the bytes."""
    root = quick_path / "var"
    root.mkdir()
    url = f"sqlite:///{root / 'overread.sqlite'}"
    migrate(url)
    database = Database(url)
    opened = Holding.at(root, database)
    yield opened
    opened.close()
    database.close()
