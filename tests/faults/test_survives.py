"""Killed at any moment and started again: what was acknowledged is there, and every result is out once.

The node is killed with SIGKILL: its whole group, its parent alone, each of its processes; at every arrow of
``node/workflow/steps.py`` (seen in the change feed by another process, as it happens) and at random.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]
from sqlalchemy import func, select

from demo.peers import wait_until
from storage import schema
from storage.headers import read_header
from tests.system import Node, Site, chest_ct, results_in

#: Each arrow as the change feed shows it: kind and the state that it leads to.
ARROWS = [
    ("instance", "STORED"),
    ("study", "COMPLETE"),
    ("revision", "ROUTED"),
    ("attempt", "RUNNING"),
    ("workitem", "COMPLETED"),
    ("delivery", "DELIVERED"),
    ("notification", "PENDING"),
    ("notification", "ACKNOWLEDGED"),
]
PROCESSES = ["receiver-0", "receiver-1", "web", "workflow", "performer-0", "engine"]


@dataclass
class Sender:
    """A modality: sends files one by one, remembers what was acknowledged, and comes again for what was not."""

    port: int
    acknowledged: set[str] = field(default_factory=set)

    def send(self, files: list[Path]) -> bool:
        """Send what is not acknowledged yet; returns whether all is."""
        entity = AE(ae_title="MODALITY")
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = 5
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            association = entity.associate("127.0.0.1", self.port, ae_title="OVERREAD")
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
            association.release()
        return all(str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) in self.acknowledged for file in files)


@pytest.fixture
def patient_site(site: Site) -> Site:
    """Give the module's site, running; it is started anew where a test has left it dead."""
    if site.node._process is None:
        site.node.start()
    return site


def _seen(node: Node, kind: str, after: str, study_uid: str) -> Callable[[], bool]:
    database = node.database()
    c, s = schema.change.c, schema.study.c

    def seen() -> bool:
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

    return seen


def _finish(site: Site, sender: Sender, study_uid: str, files: list[Path]) -> None:
    """Let the sender come again, and hold everything to what was promised."""
    wait_until(lambda: sender.send(files), 60, "everything to be acknowledged", interval=0.2)
    site.wait_for_report(study_uid)
    wait_until(_seen(site.node, "notification", "ACKNOWLEDGED", study_uid), 30, "the acknowledgement")
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 1}
    messages = site.messages_about(study_uid)
    assert len({one["control_id"] for one in messages}) == 1
    assert len({one["raw"] for one in messages}) == 1


def _all_acknowledged_is_there(node: Node, sender: Sender) -> None:
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
    on_disk = {path.name for path in (node.data_dir / "blobs").glob("??/*")}
    assert on_disk == {row.blob for row in rows}
    assert parked == 0


@pytest.mark.timeout(600)
def test_it_survives_being_killed_at_every_arrow_and_at_random(patient_site: Site, tmp_path: Path) -> None:
    site, dice = patient_site, random.Random(20)
    sender = Sender(site.node.dimse_port)
    kills = 0
    moments: list[tuple[str, str] | float] = [*ARROWS, *(dice.uniform(0.0, 4.0) for _ in range(6))]
    for number, moment in enumerate(moments):
        study_uid, files = chest_ct(tmp_path / f"ct-{number}", seed=100 + number)
        pushing = threading.Thread(target=sender.send, args=(files,))
        pushing.start()
        if isinstance(moment, tuple):
            wait_until(_seen(site.node, *moment, study_uid), 60, f"{moment}", interval=0.002)
        else:
            with contextlib.suppress(TimeoutError):
                wait_until(_seen(site.node, "notification", "ACKNOWLEDGED", study_uid), moment, "a random moment")
        # The parent alone must take its processes with it just as the whole group does.
        site.node.kill(everything=number % 2 == 0)
        kills += 1
        pushing.join()
        site.node.start()
        _finish(site, sender, study_uid, files)
    assert kills >= 14
    site.node.stop()
    site.node.start()
    _all_acknowledged_is_there(site.node, sender)


@pytest.mark.timeout(300)
def test_it_survives_the_death_of_each_of_its_processes(patient_site: Site, tmp_path: Path) -> None:
    site = patient_site
    sender = Sender(site.node.dimse_port)
    for number, name in enumerate(PROCESSES):
        study_uid, files = chest_ct(tmp_path / f"ct-{number}", seed=200 + number)
        moment = ("instance", "STORED") if name.startswith("receiver") else ("attempt", "RUNNING")
        pushing = threading.Thread(target=sender.send, args=(files,))
        pushing.start()
        wait_until(_seen(site.node, *moment, study_uid), 60, f"{moment}", interval=0.002)
        victims = [one for member, one in site.node.members().items() if member.startswith(name)]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        pushing.join()
        _finish(site, sender, study_uid, files)
    site.node.stop()
    site.node.start()
    _all_acknowledged_is_there(site.node, sender)


@pytest.mark.timeout(300)
def test_twenty_deaths_of_the_node_park_nothing_that_is_healthy(patient_site: Site, tmp_path: Path) -> None:
    site = patient_site
    sender = Sender(site.node.dimse_port)
    study_uid, files = chest_ct(tmp_path / "ct", seed=300)
    assert sender.send(files)
    a = schema.attempt.c

    def attempts() -> int:
        with site.node.database().read() as connection:
            return connection.execute(
                select(func.count())
                .select_from(schema.attempt.join(schema.workitem).join(schema.study))
                .where(schema.study.c.study_instance_uid == study_uid, a.state.in_(("RUNNING", "LOST")))
            ).scalar_one()

    for death in range(20):
        wait_until(lambda death=death: attempts() > death, 60, f"attempt {death + 1}", interval=0.002)  # type: ignore[misc]
        # The performer is what the node's death is to an attempt; its parent starts it anew.
        site.node.members()["performer-0"].send_signal(signal.SIGKILL)
    _finish(site, sender, study_uid, files)
    with site.node.database().read() as connection:
        lost = connection.execute(
            select(func.count())
            .select_from(schema.attempt.join(schema.workitem).join(schema.study))
            .where(schema.study.c.study_instance_uid == study_uid, a.state == "LOST")
        ).scalar_one()
    assert lost == 20
