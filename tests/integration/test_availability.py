"""Peers that want it are told of each study once it has come in (Instance Availability Notification, PS3.4 Annex R)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    InstanceAvailabilityNotification,
    ModalityPerformedProcedureStep,
)
from sqlalchemy import text

from inference.registry import Registry
from node.settings import Settings
from node.workflow import control, steps
from node.workflow.models import Models
from node.workflow.way import Way
from storage import procedure_steps, studies
from storage.records import Study
from tests.peers import free_port, wait_until
from tests.work import Holding


@dataclass
class Listener:
    """An IAN SCP on pynetdicom; ``heard`` has the SOP Instance UID and dataset of each notification."""

    status: int = 0x0000
    port: int = field(default_factory=free_port)
    heard: list[tuple[str, Dataset]] = field(default_factory=list)
    made: set[str] = field(default_factory=set)

    @contextmanager
    def running(self) -> Iterator[Listener]:
        ae = AE(ae_title="RIS")
        ae.add_supported_context(InstanceAvailabilityNotification)
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_CREATE, self._create)])
        assert server is not None
        try:
            yield self
        finally:
            server.shutdown()

    def _create(self, event: evt.Event) -> tuple[int, None]:
        uid = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]
        known = uid in self.made
        self.heard.append((uid, event.attribute_list))
        if self.status == 0x0000:
            self.made.add(uid)
        return (0x0111 if known else self.status), None

    def peer(self, **more: Any) -> dict[str, Any]:
        where = {"ae_title": "RIS", "host": "127.0.0.1", "port": self.port, "timeout_seconds": 5}
        return {**where, "availability": True, **more}


def way_of(holding: Holding, **peers: Any) -> Way:
    return Way(
        settings=Settings(
            peers=peers,
            completion={"quiet_seconds": 0.01},
            retry={"first_seconds": 0.01, "maximum_seconds": 0.01, "refusals": 2},
            routes=(),
        ),
        database=holding.database,
        blobs=holding.blobs,
        incoming=holding.incoming,
        scratch=holding.root / "scratch",
        models=Models(Registry(()), Path("models")),
    )


def judged(way: Way, holding: Holding, study: Study) -> None:
    wait_until(
        lambda: steps.complete(way) or holding.again(study.study_instance_uid).state == "COMPLETE", 10, "the verdict"
    )


def states(holding: Holding) -> list[str]:
    return holding.states("availability")


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener().running() as running:
        yield running


def test_a_peer_is_told_once_which_instances_are_online_and_where(
    embedded: Holding, listener: Listener, tmp_path: Path
) -> None:
    way = way_of(embedded, ris=listener.peer(), silent={"ae_title": "OTHER", "host": "127.0.0.1", "port": 9})
    study = embedded.study(tmp_path, slices=3)
    with embedded.database.write() as connection:
        procedure_steps.create(
            connection,
            sop_instance_uid="1.2.3.4",
            study_instance_uid=study.study_instance_uid,
            performed_series={},
            attributes={},
            calling_ae_title="CT1",
        )
        procedure_steps.update(connection, "1.2.3.4", state="COMPLETED")
    judged(way, embedded, study)
    assert states(embedded) == ["PENDING"]
    assert steps.announce(way, "ris", way.settings.peers["ris"]) == 1
    assert steps.announce(way, "ris", way.settings.peers["ris"]) == 0
    [(_, said)] = listener.heard
    assert said.StudyInstanceUID == study.study_instance_uid
    [series] = said.ReferencedSeriesSequence
    items = series.ReferencedSOPSequence
    assert len(items) == 3
    assert {(one.ReferencedSOPClassUID, one.InstanceAvailability, one.RetrieveAETitle) for one in items} == {
        (CTImageStorage, "ONLINE", "OVERREAD")
    }
    [step] = said.ReferencedPerformedProcedureStepSequence
    assert (step.ReferencedSOPClassUID, step.ReferencedSOPInstanceUID) == (ModalityPerformedProcedureStep, "1.2.3.4")
    assert states(embedded) == ["ACKNOWLEDGED"]


def test_what_is_gone_from_the_disk_is_not_said_to_be_online(
    embedded: Holding, listener: Listener, tmp_path: Path
) -> None:
    way = way_of(embedded, ris=listener.peer())
    study = embedded.study(tmp_path, slices=2)
    judged(way, embedded, study)
    with embedded.database.read() as connection:
        embedded.blobs.path(studies.evidence(connection, study.id)[0].blob).unlink()
    steps.announce(way, "ris", way.settings.peers["ris"])
    [(_, said)] = listener.heard
    items = said.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert sorted(one.InstanceAvailability for one in items) == ["ONLINE", "UNAVAILABLE"]


def test_a_peer_that_is_down_is_told_when_it_is_back_and_a_second_try_is_the_same_notification(
    embedded: Holding, tmp_path: Path
) -> None:
    listener = Listener()
    way = way_of(embedded, ris=listener.peer())
    study = embedded.study(tmp_path)
    judged(way, embedded, study)
    for _ in range(4):
        wait_until(lambda: steps.announce(way, "ris", way.settings.peers["ris"]), 5, "the next try")
    assert states(embedded) == ["PENDING"]
    with listener.running():
        wait_until(lambda: steps.announce(way, "ris", way.settings.peers["ris"]), 5, "the next try")
        assert states(embedded) == ["ACKNOWLEDGED"]
        # As if the node had died before it wrote the acknowledgement down.
        with embedded.database.write() as connection:
            connection.execute(text("UPDATE availability SET state = 'PENDING'"))
        steps.announce(way_of(embedded, ris=listener.peer()), "ris", way.settings.peers["ris"])
    assert len({uid for uid, _ in listener.heard}) == 1
    assert states(embedded) == ["ACKNOWLEDGED"]


def test_a_peer_that_refuses_is_parked_and_told_when_an_operator_says_so(
    embedded: Holding, listener: Listener, tmp_path: Path
) -> None:
    listener.status = 0x0110
    way = way_of(embedded, ris=listener.peer())
    study = embedded.study(tmp_path)
    judged(way, embedded, study)
    wait_until(
        lambda: steps.announce(way, "ris", way.settings.peers["ris"]) * 0 or states(embedded) == ["PARKED"],
        5,
        "parking",
    )
    with embedded.database.read() as connection:
        [item] = control.status(connection).parked
    assert (item.target, item.study_instance_uid) == ("availability:1", study.study_instance_uid)
    assert "0x0110" in item.reason
    listener.heard.clear()
    listener.status = 0x0000
    control.retry(embedded.database, study.study_instance_uid, by="me")
    assert steps.announce(way, "ris", way.settings.peers["ris"]) == 1
    assert states(embedded) == ["ACKNOWLEDGED"]


def test_a_further_revision_is_a_further_notification_and_a_verdict_without_one_is_none(
    embedded: Holding, listener: Listener, tmp_path: Path
) -> None:
    way = way_of(embedded, ris=listener.peer())
    study = embedded.study(tmp_path)
    judged(way, embedded, study)
    embedded.reopened(study)
    judged(way, embedded, study)
    assert len(states(embedded)) == 1, "nothing new has come"
    control.rerun(embedded.database, study.study_instance_uid, by="me")
    assert len(states(embedded)) == 1, "the instances are those that the peer was told of"
