"""What was refused can be listed, looked at, taken in after all, and let go; beside a running node."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from sqlalchemy import select

from node.ops.dump import dump
from storage import quarantine, schema
from storage.errors import Mismatch, NotDicom, Unknown
from storage.index import Origin
from storage.reconcile import reconcile
from tests.dicom_factory import ct_series
from tests.system import Node
from tests.work import Holding


def _refuse(holding: Holding, content: bytes, announced: tuple[str, str] | None = None) -> None:
    path = holding.incoming / "refused"
    path.write_bytes(content)
    with pytest.raises(NotDicom):
        holding.archive.receive(path, Origin(calling_ae_title="CT1"), announced)


def _items(holding: Holding) -> list[Any]:
    with holding.database.read() as connection:
        return quarantine.listed(connection)


def _retry(holding: Holding, item: Any, **options: bool) -> Any:
    return quarantine.retry(
        holding.database, holding.archive, holding.refused, holding.incoming, item, by="me", **options
    )


def _events(holding: Holding) -> list[str]:
    c = schema.change.c
    with holding.database.read() as connection:
        return list(connection.execute(select(c.after).where(c.kind == "quarantine").order_by(c.sequence)).scalars())


def test_what_is_refused_again_stays_with_the_reason_of_now(holding: Holding) -> None:
    _refuse(holding, b"no DICOM at all")
    (item,) = _items(holding)
    assert (item.size, item.calling_ae_title) == (15, "CT1")
    with pytest.raises(NotDicom):
        _retry(holding, item)
    (again,) = _items(holding)
    assert (again.id, again.blob) == (item.id, item.blob)
    assert holding.refused.path(item.blob).read_bytes() == b"no DICOM at all"


def test_what_the_rules_now_allow_is_taken_in_under_its_senders_name(holding: Holding, tmp_path: Path) -> None:
    (path,) = ct_series(tmp_path, np.zeros((1, 4, 4)))
    _refuse(holding, path.read_bytes(), ("1.2.3", generate_uid()))
    # Refused in the name of a rule that has gone since: its file meta information names what it is.
    (item,) = _items(holding)
    receipt = _retry(holding, item)
    assert receipt.sop_instance_uid == path.stem
    assert _items(holding) == []
    assert list(holding.refused.names()) == []
    assert list(holding.incoming.iterdir()) == []
    with holding.database.read() as connection:
        row = connection.execute(select(schema.instance)).one()
    assert row.calling_ae_title == "CT1"
    assert _events(holding) == ["REFUSED", "TAKEN IN"]


def test_an_object_that_is_not_what_was_announced_is_taken_only_when_that_is_asked_for(
    holding: Holding, tmp_path: Path
) -> None:
    (path,) = ct_series(tmp_path, np.zeros((1, 4, 4)))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(path)
    announced = (str(dataset.SOPClassUID), str(dataset.file_meta.MediaStorageSOPInstanceUID))
    _refuse(holding, path.read_bytes(), announced)
    (item,) = _items(holding)
    with pytest.raises(Mismatch):
        _retry(holding, item)
    assert _retry(holding, item, as_it_is=True).sop_instance_uid == dataset.SOPInstanceUID


def test_what_is_dropped_does_not_come_back(holding: Holding) -> None:
    _refuse(holding, b"no DICOM at all")
    (item,) = _items(holding)
    content = holding.refused.path(item.blob).read_bytes()
    quarantine.drop(holding.database, holding.refused, item, by="me")
    assert _items(holding) == []
    assert list(holding.refused.names()) == []
    assert _events(holding) == ["REFUSED", "DROPPED"]
    # Killed between the commit and the removal.
    holding.refused.path(item.blob).write_bytes(content)
    assert reconcile(holding.database, holding.blobs, holding.refused, holding.incoming).removed == 1
    assert _items(holding) == []
    with holding.database.read() as connection, pytest.raises(Unknown):
        quarantine.get(connection, item.id)


def test_a_dump_shows_what_can_be_read_and_no_control_characters(tmp_path: Path, shared_data: Path) -> None:
    (path,) = ct_series(tmp_path, np.zeros((1, 4, 4)), PatientName="\x1b[2JDoe^Jane")
    lines = list(dump(path))
    assert any("(0010,0010)" in line and "Doe^Jane" in line for line in lines)
    assert any("(0002,0010)" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    cut = tmp_path / "cut"
    cut.write_bytes(path.read_bytes()[:700])
    assert 5 < len(list(dump(cut))) < len(lines)
    junk = tmp_path / "junk"
    junk.write_bytes(b"\x1b]0;%PDF-1.7 no dataset")
    assert any("PDF" in line for line in dump(junk))
    assert len(list(dump(path, lines=3))) == 4
    for malformed in sorted((shared_data / "malformed").iterdir()):
        assert all(line.isprintable() for line in dump(malformed)), malformed


def test_the_commands_work_beside_a_running_node(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node = start_node()
    (image,) = ct_series(tmp_path / "ct", np.zeros((1, 8, 8)))
    dataset = pydicom.dcmread(image)
    del dataset.StudyInstanceUID
    dataset.save_as(tmp_path / "nameless.dcm")
    kind = {"Content-Type": "application/dicom"}
    for content in (b"no DICOM at all", (tmp_path / "nameless.dcm").read_bytes()):
        answer = httpx.post(f"{node.url}/dicom-web/studies", content=content, headers=kind)
        assert answer.status_code == 409
    listed = json.loads(node.run("quarantine", "list", "--json").stdout)
    assert [one["id"] for one in httpx.get(f"{node.url}/api/v1/quarantine").json()] == [one["id"] for one in listed]
    junk, nameless = (str(one["id"]) for one in listed)
    assert "no DICM prefix" in node.run("quarantine", "list").stdout
    copy = tmp_path / "copy.dcm"
    shown = node.run("quarantine", "show", nameless, "--to", str(copy)).stdout
    assert "StudyInstanceUID" in shown
    assert "(0010,0020)" in shown
    assert copy.read_bytes() == (tmp_path / "nameless.dcm").read_bytes()
    assert copy.stat().st_mode & 0o077 == 0
    assert node.run("quarantine", "show", nameless, "--to", str(copy), check=False).returncode == 1
    assert node.run("quarantine", "retry", "--all", check=False).returncode == 1
    assert "deleted" in node.run("quarantine", "drop", junk, "--yes").stdout
    assert [str(one["id"]) for one in json.loads(node.run("quarantine", "list", "--json").stdout)] == [nameless]
    unknown = node.run("quarantine", "drop", junk, "--yes", check=False)
    assert unknown.returncode == 1
    assert "nothing in quarantine has the number" in unknown.stderr
    assert node.run("quarantine", "drop", check=False).returncode == 2
