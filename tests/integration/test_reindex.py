"""The index can be made anew from the files: whole or not at all, and nothing runs on what it holds until asked."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pydicom
import pytest
from sqlalchemy import select

from node.errors import AlreadyRunning, BackupError, ReindexError
from node.ops.directory import DataDirectory, refuse_incomplete
from node.ops.reindex import ReindexReport, reindex
from node.settings import Settings
from node.workflow import control
from storage import lifecycle, models, receiving, schema, stages
from storage.database import Database, migrate
from storage.errors import NotDicom
from storage.retention import delete_instance
from storage.studies import device_uid
from tests.databases import PostgreSQL
from tests.dicom_factory import ct_series
from tests.peers import wait_until
from tests.system import OVERREAD, Node, push
from tests.work import Holding


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, holding: Holding) -> Settings:
    """Settings of a node on ``holding`` whose new index goes to either database."""
    if request.param == "sqlite":
        return Settings(data_dir=holding.root, routes=())
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return Settings(data_dir=holding.root, routes=(), database={"url": server.new_database()})  # type: ignore[arg-type]


@pytest.fixture
def opened(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


def _rows(database: Database, table: Any, *columns: str) -> list[tuple[Any, ...]]:
    with database.read() as connection:
        rows = connection.execute(select(*(table.c[one] for one in columns))).all()
    return sorted(tuple(map(str, row)) for row in rows)


def _filled(holding: Holding, folder: Path) -> None:
    """Hold a study with a document, one with a variant, a deleted object and refused bytes."""
    holding.finished(folder)
    paths = ct_series(folder / "ct", np.zeros((3, 4, 4)))
    holding.receive(paths, sender="CT7")
    dataset = pydicom.dcmread(paths[0])
    dataset.StudyDescription = "coerced"
    dataset.save_as(folder / "changed.dcm")
    holding.receive([folder / "changed.dcm"])
    bad = folder / "bad"
    bad.write_bytes(b"no DICOM at all")
    with pytest.raises(NotDicom):
        holding.receive([bad])
    offered = models.Found(
        model="lungs", version="1", digest="d" * 64, device_uid="2.25.5", card_sha256="c" * 64, origin=models.SHIPPED
    )
    with holding.database.write() as connection:
        device_uid(connection)
        stages.register(connection, [offered], by="the node")


def _made(holding: Holding, settings: Settings, **options: Any) -> ReindexReport:
    return reindex(settings, (), old_database_url=holding.database.url, **options)


def test_the_new_index_says_what_the_old_one_said(
    holding: Holding, settings: Settings, opened: Database, tmp_path: Path
) -> None:
    _filled(holding, tmp_path)
    report = _made(holding, settings)
    for table, columns in (
        (
            schema.instance,
            ("sop_instance_uid", "digest", "blob", "calling_ae_title", "received_at", "made_here", "size"),
        ),
        (schema.variant, ("digest", "blob", "calling_ae_title", "received_at", "difference")),
        (schema.study, ("study_instance_uid", "patient_id", "patient_name", "study_date")),
        (schema.series, ("series_instance_uid", "modality")),
        (schema.quarantine, ("blob", "size", "digest", "reason", "calling_ae_title", "received_at")),
        (schema.node_identity, ("key", "value")),
        (schema.model_version, ("model", "version", "state", "chosen", "added_at")),
        (schema.model_change, ("at", "model", "action", "before", "after", "by", "why")),
        (schema.model_device, ("device_uid", "model")),
    ):
        assert _rows(opened, table, *columns) == _rows(holding.database, table, *columns), table.name
    assert (report.found.studies, report.found.variants, report.found.quarantined) == (2, 1, 1)
    assert report.found.made_here == 1
    assert report.found.unknown == []


def test_a_file_that_is_not_what_came_does_not_become_right_by_it(
    holding: Holding, settings: Settings, opened: Database, tmp_path: Path
) -> None:
    _filled(holding, tmp_path)
    before = _rows(holding.database, schema.instance, "sop_instance_uid", "digest")
    with holding.database.read() as connection:
        blob = connection.execute(select(schema.instance.c.blob).where(schema.instance.c.made_here.is_(False))).scalar()
    assert isinstance(blob, str)
    content = bytearray(holding.blobs.path(blob).read_bytes())
    content[-5] ^= 1
    holding.blobs.path(blob).write_bytes(content)
    assert _made(holding, settings).found.changed == [blob]
    assert _rows(opened, schema.instance, "sop_instance_uid", "digest") == before
    assert _rows(opened, schema.damage, "blob", "kind") == [(blob, "changed")]


def test_nothing_runs_on_a_reindexed_study_until_an_operator_asks(
    holding: Holding, settings: Settings, opened: Database, tmp_path: Path
) -> None:
    study = holding.study(tmp_path)
    _made(holding, settings)
    assert _rows(opened, schema.study, "state", "historical") == [(lifecycle.COMPLETE, "True")]
    done = control.rerun(opened, study.study_instance_uid, by="me")
    assert "no longer historical" in done.changed[0]
    assert _rows(opened, schema.study, "state", "historical") == [(lifecycle.RECEIVING, "False")]
    with opened.write() as connection:
        receiving.restart_quiet_periods(connection)


def test_what_was_deleted_on_purpose_stays_deleted(
    holding: Holding, settings: Settings, opened: Database, tmp_path: Path
) -> None:
    paths = ct_series(tmp_path / "ct", np.zeros((2, 4, 4)))
    holding.receive(paths)
    with holding.database.write() as connection:
        connection.execute(schema.study.update().values(state=lifecycle.COMPLETE))
    gone = next(row for row in _rows(holding.database, schema.instance, "sop_instance_uid", "blob"))
    content = holding.blobs.path(gone[1]).read_bytes()
    delete_instance(holding.database, holding.blobs, gone[0], "asked for")
    # Killed between the commit and the removal.
    holding.blobs.path(gone[1]).write_bytes(content)
    report = _made(holding, settings)
    assert (report.found.instances, report.found.deleted) == (1, 1)
    assert _rows(opened, schema.tombstone, "blob") == [(gone[1],)]


def test_without_an_old_index_the_files_say_what_they_can(
    holding: Holding, settings: Settings, opened: Database, tmp_path: Path
) -> None:
    _filled(holding, tmp_path)
    old = _rows(holding.database, schema.instance, "sop_instance_uid", "digest")
    holding.blobs.path("ab" + "0" * 30).write_bytes(b"no DICOM")
    report = reindex(settings, (), old_database_url=None)
    assert _rows(opened, schema.instance, "sop_instance_uid", "digest") == old
    assert report.found.unreadable == ["ab" + "0" * 30]
    assert _rows(opened, schema.quarantine, "calling_ae_title") == [("",)]


def test_postgresql_has_to_be_empty_and_bears_a_mark_until_it_is_whole(
    holding: Holding, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    holding.study(tmp_path)
    url = postgresql.new_database()
    settings = Settings(data_dir=holding.root, routes=(), database={"url": url})  # type: ignore[arg-type]

    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _made(holding, settings, progress=interrupt)
    with pytest.raises(BackupError, match="run 'overread reindex' again"):
        refuse_incomplete(holding.root, url)
    assert _made(holding, settings).found.instances == 3
    refuse_incomplete(holding.root, url)
    with pytest.raises(ReindexError, match="holds an index already"):
        _made(holding, settings)


def test_a_directory_that_a_node_works_in_is_refused(holding: Holding, settings: Settings, tmp_path: Path) -> None:
    holding.study(tmp_path)
    with DataDirectory(holding.root).lock(), pytest.raises(AlreadyRunning):
        _made(holding, settings)
    with pytest.raises(ReindexError, match="holds no objects"):
        reindex(Settings(data_dir=tmp_path / "elsewhere", routes=()), ())


@pytest.mark.parametrize("damage", ["none", "garbage", "lost"])
def test_the_old_file_is_kept_and_its_log_is_not_taken_for_the_new_ones(
    embedded: Holding, tmp_path: Path, damage: str
) -> None:
    _filled(embedded, tmp_path)
    before = _rows(embedded.database, schema.instance, "sop_instance_uid", "digest")
    embedded.close()
    file = embedded.root / "overread.sqlite"
    if damage == "none":
        # A log beside the file, as a killed node leaves it.
        shutil.copy(f"{file}-wal", tmp_path / "log")
        embedded.database.close()
        shutil.copy(tmp_path / "log", f"{file}-wal")
    else:
        embedded.database.close()
    if damage == "garbage":
        file.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    elif damage == "lost":
        file.unlink()
    report = reindex(Settings(data_dir=embedded.root, routes=()), ())
    database = Database(f"sqlite:///{file}")
    assert _rows(database, schema.instance, "sop_instance_uid", "digest") == before
    database.close()
    if damage == "lost":
        assert report.old == ""
    else:
        assert Path(report.old).is_file()
        assert bool(report.found.unknown) == (damage == "garbage")
    assert not (embedded.root / "overread.sqlite.reindex").exists()


def test_killed_at_any_moment_it_leaves_the_old_index_or_the_new_and_can_be_run_again(tmp_path: Path) -> None:
    dice = Random(20261121)
    root = tmp_path / "var"
    root.mkdir()
    url = f"sqlite:///{root / 'overread.sqlite'}"
    migrate(url)
    database = Database(url)
    holding = Holding.at(root, database)
    holding.receive(ct_series(tmp_path / "ct", np.zeros((200, 4, 4))))
    holding.close()
    expected = _rows(database, schema.instance, "sop_instance_uid", "digest")
    database.close()
    config = tmp_path / "node.yaml"
    config.write_text(json.dumps({"data_dir": str(root), "routes": [], "models": str(tmp_path)}), encoding="utf-8")
    command = [OVERREAD, "reindex", "--config", str(config)]
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def began(process: subprocess.Popen[bytes] = process) -> bool:
            return (root / "overread.sqlite.reindex").exists() or process.poll() is not None

        wait_until(began, 30, "the new file to be begun", interval=0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        database = Database(url)
        assert _rows(database, schema.instance, "sop_instance_uid", "digest") == expected
        database.close()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "200 instances in 1 studies, all historical" in done.stdout
    assert not list(root.glob("overread.sqlite.reindex*"))


def test_the_command_is_refused_beside_a_node_and_a_node_starts_on_what_it_made(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node()
    paths = ct_series(tmp_path / "ct", np.zeros((3, 8, 8)), StudyDescription="HEAD")
    push(paths, node.dimse_port)
    refused = node.run("reindex", check=False)
    assert refused.returncode == 1
    assert "is held by another node" in refused.stderr
    node.stop()
    (node.data_dir / "overread.sqlite").unlink()
    lost = node.run("reindex")
    assert "3 instances in 1 studies" in lost.stdout
    node.start()
    listed = json.loads(node.run("studies", "--json").stdout)
    assert [one["outcome"] for one in listed] == ["historical"]
    study = listed[0]["study_instance_uid"]
    assert "historical" in node.story(study)["summary"]
    node.run("rerun", study)
    wait_until(lambda: node.story(study)["revisions"], 30, "the study to be judged")
