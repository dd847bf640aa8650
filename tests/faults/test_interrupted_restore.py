"""No node starts on half a restore, nor on objects without their database: it would send everything again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from node.errors import AlreadyRunning
from node.ops.backup import backup
from node.ops.directory import DataDirectory
from node.ops.restore import restore
from node.settings import Settings
from storage.database import Database
from tests.peers import need_program, wait_until
from tests.system import OVERREAD, ROOT, Node
from tests.work import Holding


def _settings(root: Path) -> Settings:
    return Settings(data_dir=root, routes=[])  # type: ignore[arg-type]


def _command(node: Node, *arguments: str, wrap: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command, *rest = arguments
    return subprocess.run(
        [*wrap, OVERREAD, command, "--config", str(node.config), *rest],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def new_node(tmp_path: Path) -> Node:
    node = Node(folder=tmp_path / "new")
    node.write_config()
    return node


@pytest.mark.parametrize("at", ["rename:signal=KILL:when=1", "rename:signal=KILL:when=2", "rmdir:signal=KILL"])
def test_a_restore_that_was_killed_keeps_a_node_from_starting_until_it_is_run_again(
    embedded: Holding, tmp_path: Path, quick_path: Path, new_node: Node, at: str
) -> None:
    embedded.finished(tmp_path)
    backup(_settings(embedded.root), quick_path / "node.tar")
    strace = need_program("/usr/bin/strace", "strace")
    call = at.partition(":")[0]
    wrap = (strace, "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={at}")
    killed = _command(new_node, "restore", str(quick_path / "node.tar"), wrap=wrap)
    assert killed.returncode != 0, "it was killed"
    refused = _command(new_node, "serve")
    said = refused.stdout + refused.stderr
    assert (refused.returncode, "a restore was interrupted" in said) == (1, True), said
    assert "Traceback" not in said
    again = _command(new_node, "restore", str(quick_path / "node.tar"))
    assert again.returncode == 0, again.stderr
    names = {one.name for one in new_node.data_dir.iterdir()}
    assert names == {"blobs", "node.lock", "overread.sqlite"}
    restored = Holding.at(new_node.data_dir, Database(f"sqlite:///{new_node.data_dir / 'overread.sqlite'}"))
    assert len(list(restored.blobs.names())) == len(list(embedded.blobs.names()))
    assert restored.states("delivery") == ["PARKED"]
    restored.close()


def test_a_node_starts_on_what_was_restored(
    embedded: Holding, tmp_path: Path, quick_path: Path, new_node: Node
) -> None:
    embedded.finished(tmp_path)
    backup(_settings(embedded.root), quick_path / "node.tar")
    assert _command(new_node, "restore", str(quick_path / "node.tar")).returncode == 0
    new_node.start()
    try:
        wait_until(lambda: '"adopted":' in new_node.log, 30, "files and rows to be compared")
        assert '"adopted": 0' in new_node.log
    finally:
        new_node.stop()


def test_a_node_does_not_start_on_objects_whose_database_is_missing(
    embedded: Holding, tmp_path: Path, new_node: Node
) -> None:
    embedded.finished(tmp_path)
    shutil.copytree(embedded.root / "blobs", new_node.data_dir / "blobs")
    before = sorted(new_node.data_dir.rglob("*"))
    refused = _command(new_node, "serve")
    said = refused.stdout + refused.stderr
    assert refused.returncode == 1
    assert "overread.sqlite is missing" in said
    assert "restore a backup" in said
    assert "Traceback" not in said
    assert sorted(one for one in new_node.data_dir.rglob("*") if one.name != "node.lock") == before


def test_nothing_is_restored_over_an_interrupted_restore_in_which_a_node_has_worked(
    embedded: Holding, quick_path: Path
) -> None:
    backup(_settings(embedded.root), quick_path / "node.tar")
    (embedded.root / "restoring").mkdir()
    before = sorted(embedded.root.rglob("*"))
    (embedded.incoming).mkdir(exist_ok=True)
    with pytest.raises(Exception, match="not empty: it holds incoming"):
        restore(_settings(embedded.root), quick_path / "node.tar")
    assert sorted(one for one in embedded.root.rglob("*") if one.name != "incoming") == before


def test_nothing_is_restored_where_a_node_runs(embedded: Holding, quick_path: Path) -> None:
    backup(_settings(embedded.root), quick_path / "node.tar")
    with DataDirectory(quick_path / "held").lock(), pytest.raises(AlreadyRunning, match="is held by another"):
        restore(_settings(quick_path / "held"), quick_path / "node.tar")
