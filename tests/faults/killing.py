"""Support of the tests that kill: a modality that comes again, and what everything is held to afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]
from sqlalchemy import func, select

from demo.peers import wait_until
from node.dimse.requestor import Entity
from node.peers import Address
from storage import schema
from storage.headers import read_header
from tests.system import Node, Site, results_in

__all__ = ["Sender", "all_acknowledged_is_there", "finish", "patient_site", "seen"]


@pytest.fixture
def patient_site(site: Site) -> Site:
    """Give the module's site, running; it is started anew where a test has left it dead."""
    if site.node._process is None:
        site.node.start()
    return site


@dataclass
class Sender:
    """A modality: sends files one by one, remembers what was acknowledged, and comes again for what was not."""

    port: int
    acknowledged: set[str] = field(default_factory=set)

    def send(self, files: list[Path]) -> bool:
        """Send what is not acknowledged yet; returns whether all is."""
        node = Address(ae_title="OVERREAD", host="127.0.0.1", port=self.port)
        wanted = [build_context(CTImageStorage, ExplicitVRLittleEndian)]
        with (
            contextlib.suppress(OSError, RuntimeError, ValueError),
            Entity("MODALITY", timeout=5).association(node, wanted) as association,
        ):
            if not association.is_established:
                return False
            for file in files:
                dataset = dcmread(file)
                if dataset.SOPInstanceUID in self.acknowledged:
                    continue
                status = association.send_c_store(dataset)
                if "Status" not in status:
                    return False
                assert status.Status == 0x0000
                self.acknowledged.add(str(dataset.SOPInstanceUID))
        return all(str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) in self.acknowledged for file in files)


def seen(node: Node, kind: str, after: str, study_uid: str) -> Callable[[], bool]:
    database = node.database()
    c, s = schema.change.c, schema.study.c

    def is_there() -> bool:
        with database.read() as connection:
            return (
                connection.execute(
                    select(c.sequence)
                    .select_from(schema.change.join(schema.study, c.study_id == s.id))
                    .where(c.kind == kind, c.after == after, s.study_instance_uid == study_uid)
                    .limit(1)
                ).first()
                is not None
            )

    return is_there


def finish(site: Site, sender: Sender, study_uid: str, files: list[Path]) -> None:
    """Let the sender come again, and hold everything to what was promised."""
    wait_until(lambda: sender.send(files), 60, "everything to be acknowledged", interval=0.2)
    site.wait_for_report(study_uid)
    wait_until(seen(site.node, "notification", "ACKNOWLEDGED", study_uid), 30, "the acknowledgement")
    results = results_in(site.pacs, study_uid)
    assert results == {"SR": 1, "SEG": 1}, results
    messages = site.messages_about(study_uid)
    assert len({one["control_id"] for one in messages}) == 1
    assert len({one["raw"] for one in messages}) == 1


def all_acknowledged_is_there(node: Node, sender: Sender) -> None:
    with node.database().read() as connection:
        rows = connection.execute(
            select(schema.instance.c.sop_instance_uid, schema.instance.c.blob, schema.instance.c.digest)
        ).all()
        parked = connection.execute(
            select(func.count()).select_from(schema.workitem).where(schema.workitem.c.parked.is_(True))
        ).scalar_one()
    assert sender.acknowledged <= {row.sop_instance_uid for row in rows}
    for row in rows:
        assert read_header(node.data_dir / "blobs" / row.blob[:2] / row.blob).digest == row.digest
    named = {row.blob for row in rows}

    def nothing_more() -> bool:
        return {path.name for path in (node.data_dir / "blobs").glob("??/*")} == named

    # What an attempt had written and not committed is removed in the background.
    wait_until(nothing_more, 40, "every file to be named by a row")
    assert parked == 0
