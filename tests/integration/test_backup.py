"""A backup is whole although the node goes on, and a restored node sends nothing by itself."""

from __future__ import annotations

import io
import os
import resource
import signal
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from node.errors import BackupError, ConfigurationError
from node.ops.backup import backup
from node.ops.restore import restore
from node.settings import Settings
from node.workflow import control, story
from storage import attempts, outbox, schema, studies
from storage.database import Database
from storage.headers import read_header
from storage.index import Origin
from storage.receiving import due_for_verdict
from storage.reconcile import reconcile
from storage.retention import delete_instance
from tests.dicom_factory import ct_series
from tests.work import Holding


def settings_of(root: Path) -> Settings:
    return Settings(data_dir=root, routes=[])  # type: ignore[arg-type]


@pytest.fixture
def reopen(quick_path: Path) -> Callable[[], Holding]:
    """Give a function that opens what was restored into ``restored``."""
    root = quick_path / "restored"
    return lambda: Holding.at(root, Database(f"sqlite:///{root / 'overread.sqlite'}"))


@pytest.mark.parametrize("name", ["node.tar", "node.tar.gz"])
def test_what_was_backed_up_is_there_after_restoring_byte_for_byte(
    embedded: Holding, tmp_path: Path, quick_path: Path, reopen: Callable[[], Holding], name: str
) -> None:
    study, *_, document = embedded.finished(tmp_path)
    (embedded.incoming / "letter").write_bytes(b"no dicom")
    with pytest.raises(Exception, match="DICM"):
        embedded.archive.receive(embedded.incoming / "letter", Origin(calling_ae_title="PRINTER"))
    report = backup(settings_of(embedded.root), quick_path / name)
    assert (report.studies, report.instances, report.files) == (1, 4, 5)
    assert (report.missing, report.damaged) == ([], [])
    restored = restore(settings_of(quick_path / "restored"), quick_path / name)
    assert (restored.instances, restored.files, restored.missing) == (4, 5, [])
    again = reopen()
    for blob in embedded.blobs.names():
        assert again.blobs.path(blob).read_bytes() == embedded.blobs.path(blob).read_bytes()
    with again.database.read() as connection:
        assert story.tell(connection, study.study_instance_uid).workitems[0].documents[0].sop_instance_uid == (
            document.sop_instance_uid
        )
        for row in connection.execute(select(schema.instance)):
            assert read_header(again.blobs.path(row.blob)).digest == row.digest
    found = reconcile(again.database, again.blobs, again.refused, again.incoming)
    assert (found.adopted, found.quarantined, found.removed, found.missing) == (0, 0, 0, [])
    assert len(again.receive(ct_series(tmp_path / "new", np.zeros((40, 4, 4))))) == 40, "it takes in anew"
    again.close()


def test_only_its_owner_may_read_a_backup_at_any_moment(embedded: Holding, tmp_path: Path, quick_path: Path) -> None:
    embedded.study(tmp_path)
    out = quick_path / "out"
    out.mkdir()
    modes: dict[str, int] = {}

    def look(_done: int, _total: int) -> None:
        modes.update({one.name: one.stat().st_mode & 0o777 for one in out.iterdir()})

    before = os.umask(0o022)
    try:
        backup(settings_of(embedded.root), out / "node.tar", look)
    finally:
        os.umask(before)
    look(0, 0)
    assert modes == {".node.tar.database": 0o600, ".node.tar.partial": 0o600, "node.tar": 0o600}


def test_a_backup_taken_while_the_node_receives_and_deletes_is_consistent(
    embedded: Holding, tmp_path: Path, quick_path: Path, reopen: Callable[[], Holding]
) -> None:
    for _ in range(3):
        embedded.study(tmp_path, slices=20)
    with embedded.database.write() as connection:
        connection.execute(schema.study.update().values(state="COMPLETE"))
        doomed = list(connection.execute(select(schema.instance.c.sop_instance_uid)).scalars())[:30]
    extra = ct_series(tmp_path / "extra", np.zeros((60, 4, 4)))

    def receive() -> None:
        for path in extra:
            embedded.receive([path])

    def delete() -> None:
        for uid in doomed:
            delete_instance(embedded.database, embedded.blobs, uid, "retention")

    threads = [threading.Thread(target=receive), threading.Thread(target=delete)]
    deleted = threading.Event()

    def step(_done: int, _total: int) -> None:
        # The first file is about to be copied: from here on the snapshot and what runs go apart.
        if not deleted.is_set():
            for thread in threads:
                thread.start()
            threads[1].join()
            deleted.set()

    report = backup(settings_of(embedded.root), quick_path / "node.tar", step)
    for thread in threads:
        thread.join()
    assert report.missing == []
    assert report.deleted_meanwhile >= 29, "the snapshot learnt of what was deleted after it"
    restore(settings_of(quick_path / "restored"), quick_path / "node.tar")
    again = reopen()
    found = reconcile(again.database, again.blobs, again.refused, again.incoming)
    assert found.missing == []
    again.close()


def test_what_was_under_way_is_parked_after_restoring_and_a_retry_takes_it_up(
    embedded: Holding, tmp_path: Path, quick_path: Path, reopen: Callable[[], Holding]
) -> None:
    done_study, revision, _, _ = embedded.finished(tmp_path)
    embedded.message(done_study, revision)
    working = embedded.study(tmp_path)
    embedded.schedule(working, embedded.judge(working))
    embedded.claim()
    receiving = embedded.study(tmp_path)
    unrouted = embedded.study(tmp_path)
    embedded.judge(unrouted)
    backup(settings_of(embedded.root), quick_path / "node.tar")
    held = restore(settings_of(quick_path / "restored"), quick_path / "node.tar")
    assert (held.parked_studies, held.parked_workitems) == (2, 1)
    assert (held.parked_deliveries, held.parked_notifications) == (1, 1)
    again = reopen()
    with again.database.write() as connection:
        assert outbox.due_deliveries(connection, "pacs") == []
        assert outbox.due_notifications(connection, "emr") == []
        assert attempts.claim(connection, "worker", 30) is None
        assert due_for_verdict(connection, 0) == []
        assert studies.revisions_in(connection, "OPEN") == studies.revisions_in(connection, "ROUTED") == []
        parked = control.status(connection).parked
    assert len(parked) == 5
    assert all("restored from a backup" in one.reason for one in parked)
    for study in (done_study, working, receiving, unrouted):
        assert control.retry(again.database, study.study_instance_uid, by="ann").changed
    with again.database.write() as connection:
        assert len(outbox.due_deliveries(connection, "pacs")) == 1
        assert len(outbox.due_notifications(connection, "emr")) == 1
        assert attempts.claim(connection, "worker", 30) is not None
        assert {one.id for one in due_for_verdict(connection, 0)} == {receiving.id, unrouted.id}
        last = studies.last_revision(connection, unrouted.id)
        assert last is not None
        assert studies.get(connection, unrouted.id).evidence_changed, "it is judged anew"
    again.close()


def test_what_was_delivered_before_the_backup_stays_delivered(
    embedded: Holding, tmp_path: Path, quick_path: Path, reopen: Callable[[], Holding]
) -> None:
    study, revision, _, _ = embedded.finished(tmp_path)
    message = embedded.message(study, revision)
    with embedded.database.write() as connection:
        outbox.succeed(connection, "delivery", 1, study_id=study.id, answer="0x0000")
        outbox.succeed(connection, "notification", message.id, study_id=study.id, answer="AA")
    backup(settings_of(embedded.root), quick_path / "node.tar")
    held = restore(settings_of(quick_path / "restored"), quick_path / "node.tar")
    assert held.parked_deliveries == held.parked_notifications == held.parked_studies == held.parked_workitems == 0
    again = reopen()
    assert (again.states("delivery"), again.states("notification")) == (["DELIVERED"], ["ACKNOWLEDGED"])
    again.close()


def test_missing_and_damaged_files_are_named_and_the_rest_is_backed_up(
    embedded: Holding, tmp_path: Path, quick_path: Path
) -> None:
    embedded.study(tmp_path, slices=3)
    gone, broken, _ = sorted(embedded.blobs.names())
    embedded.blobs.path(gone).unlink()
    with embedded.blobs.path(broken).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\xff\xff")
    report = backup(settings_of(embedded.root), quick_path / "node.tar")
    assert (report.missing, report.damaged, report.files) == ([gone], [broken], 2)
    assert sorted(restore(settings_of(quick_path / "restored"), quick_path / "node.tar").missing) == [gone, broken]


def test_restoring_refuses_a_directory_that_is_not_empty_and_touches_nothing(
    embedded: Holding, tmp_path: Path, quick_path: Path
) -> None:
    backup(settings_of(embedded.root), quick_path / "node.tar")
    before = sorted(embedded.root.rglob("*"))
    with pytest.raises(BackupError, match="not empty"):
        restore(settings_of(embedded.root), quick_path / "node.tar")
    assert sorted(embedded.root.rglob("*")) == before


def test_a_backup_never_replaces_a_file(embedded: Holding, quick_path: Path) -> None:
    (quick_path / "node.tar").write_bytes(b"older")
    with pytest.raises(BackupError, match="there already"):
        backup(settings_of(embedded.root), quick_path / "node.tar")
    assert (quick_path / "node.tar").read_bytes() == b"older"


def _rewritten(source: Path, target: Path, change: Callable[[tarfile.TarInfo, bytes], bytes | None]) -> None:
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content is not None
            changed = change(member, content.read())
            if changed is not None:
                member.size = len(changed)
                new.addfile(member, io.BytesIO(changed))


def _outside(member: tarfile.TarInfo, content: bytes) -> bytes:
    if member.name.startswith("blobs/"):
        member.name = "../../outside"
    return content


def _flipped(member: tarfile.TarInfo, content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1]) if member.name.startswith("blobs/") else content


def _without_one(member: tarfile.TarInfo, content: bytes) -> bytes | None:
    return None if member.name.startswith("blobs/") else content


def _without_manifest(member: tarfile.TarInfo, content: bytes) -> bytes | None:
    return None if member.name == "manifest.json" else content


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_outside, "outside"),
        (_flipped, "not what was backed up"),
        (_without_one, "not what was backed up"),
        (_without_manifest, "no complete backup"),
    ],
)
def test_an_archive_that_is_not_whole_or_not_ours_leaves_nothing_behind(
    embedded: Holding,
    tmp_path: Path,
    quick_path: Path,
    change: Callable[[tarfile.TarInfo, bytes], bytes | None],
    why: str,
) -> None:
    embedded.study(tmp_path, slices=1)
    backup(settings_of(embedded.root), quick_path / "node.tar")
    _rewritten(quick_path / "node.tar", quick_path / "wrong.tar", change)
    with pytest.raises(BackupError, match=why):
        restore(settings_of(quick_path / "restored"), quick_path / "wrong.tar")
    assert not (quick_path / "restored").exists()
    assert not (quick_path.parent / "outside").exists()


def test_a_truncated_archive_and_a_file_that_is_none_are_refused(
    embedded: Holding, tmp_path: Path, quick_path: Path
) -> None:
    embedded.study(tmp_path, slices=3)
    backup(settings_of(embedded.root), quick_path / "node.tar")
    whole = (quick_path / "node.tar").read_bytes()
    (quick_path / "restored").mkdir()
    for content in (whole[: len(whole) // 2], b"", b"letter" * 1000):
        (quick_path / "wrong.tar").write_bytes(content)
        with pytest.raises(BackupError, match=r"wrong\.tar"):
            restore(settings_of(quick_path / "restored"), quick_path / "wrong.tar")
        assert list((quick_path / "restored").iterdir()) == []


def test_a_backup_of_a_newer_version_is_refused(embedded: Holding, quick_path: Path) -> None:
    with embedded.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    backup(settings_of(embedded.root), quick_path / "node.tar")
    with pytest.raises(Exception, match="9999"):
        restore(settings_of(quick_path / "restored"), quick_path / "node.tar")
    assert not (quick_path / "restored").exists()


def test_with_postgresql_the_error_says_how_it_is_done(quick_path: Path) -> None:
    settings = Settings(
        data_dir=quick_path,
        routes=[],  # type: ignore[arg-type]
        database={"url": "postgresql+psycopg://someone:secret@db/overread"},  # type: ignore[arg-type]
    )
    for act in (backup, restore):
        with pytest.raises(ConfigurationError, match="pg_dump") as caught:
            act(settings, quick_path / "node.tar")
        assert "secret" not in str(caught.value)


def test_a_full_disk_leaves_no_half_backup(embedded: Holding, tmp_path: Path, quick_path: Path) -> None:
    embedded.study(tmp_path, slices=3)
    target = quick_path / "away"
    target.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(BackupError, match=r"node\.tar: no backup could be made"):
            backup(settings_of(embedded.root), target / "node.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(target.iterdir()) == []
