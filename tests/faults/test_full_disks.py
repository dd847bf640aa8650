"""A disk that fills loses nothing: what does not fit is refused, what was acknowledged is there, and it recovers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from sqlalchemy import select

from node.dimse.scu import send
from node.peers import Address
from storage import schema
from storage.database import Database
from storage.headers import read_header
from tests.dicom_factory import ct_series
from tests.peers import wait_until
from tests.receiver import receiving
from tests.small_disk import fill, small_disk
from tests.system import Node

OUT_OF_RESOURCES = 0xA700
_OFF = {"warn_free": "0", "refuse_free": "0", "warn_free_inodes": "0", "refuse_free_inodes": "0"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Give 40 CT images of half a megabyte."""
    return ct_series(tmp_path_factory.mktemp("ct"), np.zeros((40, 512, 512)))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(folder=tmp_path / "node", options={"storage": _OFF})
    yield one
    one.stop()


def statuses(port: int, files: Sequence[Path]) -> list[int | None]:
    return [one.status for one in send(list(files), Address("OVERREAD", "127.0.0.1", port), "CT1").sent]


def uid_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def assert_held(rows: Sequence[Any], blobs: Path, files: Sequence[Path]) -> None:
    """Every file has a row, and its row's bytes are those that were sent."""
    by_uid = {row["sop_instance_uid"]: row for row in rows}
    for path in files:
        row = by_uid[uid_of(path)]
        assert read_header(blobs / row["blob"][:2] / row["blob"]).digest == row["digest"] == read_header(path).digest


def rows_of(database_file: Path) -> list[Any]:
    database = Database(f"sqlite:///{database_file}")
    try:
        with database.read() as connection:
            return list(connection.execute(select(schema.instance)).mappings())
    finally:
        database.close()


def disk_lines(node: Node) -> list[str]:
    lines = [json.loads(line) for line in node.log.splitlines() if line.startswith("{")]
    return [line["event"] for line in lines if line["event"].startswith("disk ")]


def level(node: Node, disk: str = "data_dir") -> str:
    text = httpx.get(f"{node.url}/metrics", timeout=20).text
    return next(line for line in text.splitlines() if line.startswith(f'overread_disk_level{{disk="{disk}"}}'))[-3:]


def test_a_disk_that_fills_during_a_push_warns_then_refuses_then_recovers(
    tmp_path: Path, images: list[Path], node: Node
) -> None:
    with small_disk(tmp_path / "disk", size="48m") as disk:
        filler = disk / "filler"
        fill(filler, 30 << 20)
        marks = {**_OFF, "warn_free": "12 MB", "refuse_free": "8 MB"}
        node.options = {"data_dir": str(disk / "var"), "storage": marks}
        node.start()
        assert httpx.get(f"{node.url}/health/ready").json()["status"] == "ready"
        answers = statuses(node.dimse_port, images)
        taken = answers.index(OUT_OF_RESOURCES)
        assert 5 < taken < 35
        assert set(answers[:taken]) == {0x0000}
        assert set(answers[taken:]) == {OUT_OF_RESOURCES}
        ready = httpx.get(f"{node.url}/health/ready", timeout=20)
        assert ready.status_code == 503
        assert "bytes are free" in ready.json()["complaints"]["disk"]
        assert level(node) == "2.0"
        body = images[-1].read_bytes()
        kind = {"Content-Type": "application/dicom"}
        stow = httpx.post(f"{node.url}/dicom-web/studies", content=body, headers=kind, timeout=20)
        assert stow.status_code == 507
        streamed = httpx.post(f"{node.url}/dicom-web/studies", content=iter([body]), headers=kind, timeout=20)
        assert streamed.status_code == 507
        wait_until(lambda: "disk is full: nothing is taken in" in disk_lines(node), 10, "the line in the log")
        filler.unlink()
        wait_until(lambda: "disk has room again" in disk_lines(node), 10, "the line in the log")
        assert httpx.get(f"{node.url}/health/ready", timeout=20).json()["status"] == "ready"
        assert level(node) == "0.0"
        assert set(statuses(node.dimse_port, images[taken : taken + 5])) == {0x0000}
        assert len(disk_lines(node)) <= 3
        assert_held(rows_of(disk / "var" / "overread.sqlite"), disk / "var" / "blobs", images[: taken + 5])
        node.stop()


def test_a_disk_between_the_marks_is_degraded_and_goes_on(tmp_path: Path, images: list[Path], node: Node) -> None:
    with small_disk(tmp_path / "disk", size="48m") as disk:
        node.options = {"data_dir": str(disk / "var"), "storage": {**_OFF, "warn_free": "49 MB", "refuse_free": "1 MB"}}
        node.start()
        assert statuses(node.dimse_port, images[:2]) == [0x0000, 0x0000]
        ready = httpx.get(f"{node.url}/health/ready", timeout=20)
        assert ready.status_code == 200
        assert ready.json()["status"] == "degraded"
        assert "data_dir" in ready.json()["warnings"]["disk"]
        assert level(node) == "1.0"
        node.stop()


def test_the_databases_own_disk_is_watched_and_when_it_is_full_nothing_acknowledged_is_lost(
    tmp_path: Path, node: Node
) -> None:
    small = ct_series(tmp_path / "ct", np.zeros((120, 8, 8)))
    with small_disk(tmp_path / "disk", size="10m") as disk:
        url = f"sqlite:///{disk / 'overread.sqlite'}"
        node.options = {"database": {"url": url}, "storage": {**_OFF, "refuse_free": "1 MB"}}
        node.start()
        filler = disk / "filler"
        assert set(statuses(node.dimse_port, small[:5])) == {0x0000}
        fill(filler, 1 << 30)
        wait_until(lambda: level(node, "database") == "2.0", 10, "the disk to be seen as full")
        assert set(statuses(node.dimse_port, small[5:10])) == {OUT_OF_RESOURCES}
        filler.unlink()
        wait_until(lambda: level(node, "database") == "0.0", 10, "the room to be seen")
        assert set(statuses(node.dimse_port, small[5:10])) == {0x0000}
        node.stop()
        # Without a mark, the database itself says that it is full.
        node.options = {"database": {"url": url}, "storage": _OFF}
        node.start()
        fill(filler, 1 << 30)
        answers = statuses(node.dimse_port, small[10:])
        assert OUT_OF_RESOURCES in answers
        assert set(answers) <= {0x0000, OUT_OF_RESOURCES}
        filler.unlink()
        again = [path for path, answer in zip(small[10:], answers, strict=True) if answer]
        assert set(statuses(node.dimse_port, again)) == {0x0000}
        assert_held(rows_of(disk / "overread.sqlite"), node.data_dir / "blobs", small)
        # Where a COMMIT failed, the bytes stayed: only a start can say what is to become of them.
        node.stop()
        node.start()
        wait_until(lambda: len(list((node.data_dir / "blobs").glob("*/*"))) == len(small), 60, "the rest to be removed")
        node.stop()


@pytest.mark.parametrize("of", ["bytes", "inodes"])
def test_a_disk_that_is_full_to_the_last_takes_what_fits_and_refuses_the_rest(
    tmp_path: Path, images: list[Path], of: str
) -> None:
    inodes = 565 if of == "inodes" else 100_000
    with (
        small_disk(tmp_path / "disk", size="32m", inodes=inodes) as disk,
        receiving(disk / "r", options={"receivers": 1}) as receiver,
    ):
        filler = disk / "filler"
        filler.mkdir()
        if of == "bytes":
            fill(filler / "f", 20 << 20)
        else:
            for number in range(20):
                (filler / str(number)).touch()
        answers = statuses(receiver.port, images)
        assert set(answers) == {0x0000, OUT_OF_RESOURCES}
        assert not list(receiver.incoming.glob("*.part"))
        for one in filler.iterdir():
            one.unlink()
        refused = [path for path, answer in zip(images, answers, strict=True) if answer][:10]
        assert set(statuses(receiver.port, refused)) == {0x0000}
        taken = [path for path, answer in zip(images, answers, strict=True) if not answer]
        assert_held(receiver.instances(), disk / "r" / "blobs", [*taken, *refused])
        assert len(receiver.instances()) == len(taken) + len(refused)
