"""A node is ready at once, however much it holds, and puts files and rows in agreement while it works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from sqlalchemy import select

from node.ops.directory import DataDirectory
from storage import chores, damage, schema
from storage.reconcile import Reconciled, steps
from tests.dicom_factory import ct_series
from tests.peers import wait_until
from tests.system import Node, push
from tests.work import Holding


def _orphan(holding: Holding, path: Path) -> str:
    """Put a file where it would lie after a crash between its rename and its commit."""
    copy = holding.incoming / "orphan"
    shutil.copyfile(path, copy)
    return holding.blobs.adopt(copy)


def _step_through(holding: Holding, before: int | None) -> Reconciled:
    found = Reconciled()
    places = list(steps(holding.database, holding.blobs, holding.refused, (), found, before=before))
    assert places[-1] == (512, 512)
    return found


def test_what_other_processes_are_taking_in_is_left_alone(holding: Holding, tmp_path: Path) -> None:
    old, new = ct_series(tmp_path / "ct", np.zeros((2, 4, 4)))
    orphan = _orphan(holding, old)
    moment = DataDirectory(holding.root).moment()

    def clock_has_moved_on() -> bool:
        return DataDirectory(holding.root).moment() > moment

    wait_until(clock_has_moved_on, 5, "the file system's clock to move on", interval=0.001)
    arriving = _orphan(holding, new)
    found = _step_through(holding, moment + 1)
    assert found.adopted == 1
    with holding.database.read() as connection:
        assert list(connection.execute(select(schema.instance.c.blob)).scalars()) == [orphan]
    assert holding.blobs.path(arriving).is_file()
    assert _step_through(holding, None).adopted == 1


def test_damage_is_forgotten_once_the_bytes_are_back(holding: Holding, tmp_path: Path) -> None:
    holding.study(tmp_path, slices=2)
    first, second = sorted(holding.blobs.names())
    aside = tmp_path / "aside"
    shutil.move(holding.blobs.path(first), aside)
    holding.blobs.delete(second)
    assert sorted(_step_through(holding, None).missing) == [first, second]
    shutil.move(aside, holding.blobs.path(first))
    assert _step_through(holding, None).missing == [second]
    with holding.database.read() as connection:
        assert [one.blob for one in damage.listed(connection)] == [second]
        assert damage.counts(connection) == {"missing": 1, "changed": 0, "unreadable": 0}


def test_a_lost_object_that_comes_again_is_no_damage_any_more(holding: Holding, tmp_path: Path) -> None:
    paths = ct_series(tmp_path / "ct", np.zeros((1, 4, 4)))
    holding.receive(paths)
    (blob,) = holding.blobs.names()
    holding.blobs.delete(blob)
    assert _step_through(holding, None).missing == [blob]
    holding.receive(paths)
    with holding.database.read() as connection:
        assert damage.listed(connection) == []


def test_orphans_of_a_crash_are_adopted_and_lost_files_reported_while_the_node_works(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node()
    held = ct_series(tmp_path / "held", np.zeros((3, 8, 8)), StudyDescription="HEAD")
    push(held, node.dimse_port)
    node.kill()
    directory = DataDirectory(node.data_dir)
    orphan = ct_series(tmp_path / "orphan", np.zeros((1, 8, 8)), StudyDescription="HEAD")[0]
    copy = directory.incoming / "orphan"
    shutil.copyfile(orphan, copy)
    directory.blobs.adopt(copy)
    database = node.database()
    with database.read() as connection:
        lost = connection.execute(select(schema.instance.c.blob).order_by("id").limit(1)).scalar_one()
    directory.blobs.delete(lost)
    node.start()

    def done() -> bool:
        with database.read() as connection:
            chore = chores.get(connection, "reconcile")
            return chore is not None and chore.ended_at is not None and chore.found["adopted"] == 1

    wait_until(done, 30, "files and rows to be compared")
    with database.read() as connection:
        uids = set(connection.execute(select(schema.instance.c.sop_instance_uid)).scalars())
    database.close()
    assert uids == {path.stem for path in (*held, orphan)}
    ready = httpx.get(f"{node.url}/health/ready", timeout=20)
    assert ready.status_code == 200
    assert "1 missing" in ready.json()["warnings"]["bytes"]
    assert ready.json()["background"] == {}
    metrics = httpx.get(f"{node.url}/metrics", timeout=20).text
    assert 'overread_damaged{kind="missing"} 1.0' in metrics
    status = node.run("status").stdout
    assert "1 missing" in status
    assert held[0].stem in status
    checked = node.run("check", check=False)
    assert checked.returncode == 1
    assert "1 files missing" in checked.stdout
    push(held, node.dimse_port)
    assert 'overread_damaged{kind="missing"} 0.0' in httpx.get(f"{node.url}/metrics", timeout=20).text
