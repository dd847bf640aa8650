"""A document is delivered once its destination has committed to keeping it; what a lying one says counts nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid
from pynetdicom.association import Association
from sqlalchemy import text

from inference.registry import Registry
from node.delivery.factory import make_destination
from node.delivery.port import Destination
from node.errors import ConfigurationError
from node.settings import Settings, load_settings
from node.workflow import control, steps
from node.workflow.models import Models
from node.workflow.way import Way
from storage import outbox, studies
from storage.database import Database
from storage.records import Delivery, Document
from tests.commitment import Archive, Pairs, call_with_report, report_on
from tests.peers import free_port, wait_until
from tests.receiver import Receiver
from tests.work import Holding

#: Two refusals park: what lies is found out quickly.
RETRY = {"first_seconds": 0.01, "maximum_seconds": 0.01, "refusals": 2}
PORT = free_port()
PEERS = {
    "pacs": {
        "ae_title": "ARCHIVE",
        "host": "127.0.0.1",
        "port": PORT,
        "services": ["echo", "store", "commit"],
        "timeout_seconds": 5,
    }
}


@dataclass(frozen=True)
class Desk:
    """A document that waits at a destination, and a node's receivers beside it."""

    way: Way
    holding: Holding
    destination: Destination
    receiver: Receiver
    document: Document
    revision_id: int

    @property
    def pair(self) -> list[tuple[str, str]]:
        return [(self.document.sop_class_uid, self.document.sop_instance_uid)]

    @property
    def delivery(self) -> Delivery:
        with self.way.database.read() as connection:
            [found] = outbox.deliveries_of(connection, self.document.id)
        return found

    def deliver(self) -> int:
        return steps.deliver(self.way, self.destination)

    def wait_for(self, state: str) -> None:
        wait_until(lambda: self.delivery.state == state or self.deliver() < 0, 15, f"the delivery to be {state}")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        running = Receiver(folder=Path(folder) / "node", peers=PEERS).start()
        yield running
        running.stop()


def desk_of(receiver: Receiver, folder: Path, commit_seconds: float) -> Iterator[Desk]:
    settings = Settings(
        peers=PEERS,
        destinations={"pacs": {"kind": "dimse", "peer": "pacs", "commit": True, "commit_seconds": commit_seconds}},
        retry=RETRY,
        routes=(),
    )
    database = Database(receiver.url)
    holding = Holding.at(receiver.folder, database)
    with database.write() as connection:
        connection.execute(text("UPDATE delivery SET state = 'DELIVERED'"))
    try:
        _, revision, _, document = holding.finished(folder)
        way = Way(
            settings=settings,
            database=database,
            blobs=holding.blobs,
            incoming=holding.incoming,
            scratch=folder,
            models=Models(Registry(()), Path("models")),
        )
        destination = make_destination("pacs", settings.destinations["pacs"], settings.peers, "OVERREAD")
        yield Desk(way, holding, destination, receiver, document, revision.id)
    finally:
        holding.close()
        database.close()


@pytest.fixture
def desk(receiver: Receiver, tmp_path: Path) -> Iterator[Desk]:
    yield from desk_of(receiver, tmp_path, 30)


@pytest.fixture
def hasty_desk(receiver: Receiver, tmp_path: Path) -> Iterator[Desk]:
    """Give one whose destination has hardly any time to report."""
    yield from desk_of(receiver, tmp_path, 0.05)


def at_once(association: Association, transaction_uid: str, pairs: Pairs) -> None:
    report_on(association, transaction_uid, pairs)


def test_a_report_on_the_same_association_makes_it_delivered(desk: Desk) -> None:
    with Archive(port=PORT, then=at_once).running() as archive:
        assert desk.deliver() == 1
    assert (desk.delivery.state, desk.delivery.answer) == ("DELIVERED", "stored and committed")
    assert [pairs for _, pairs in archive.asked] == [desk.pair]


def test_a_report_over_an_association_of_the_archives_own_makes_it_delivered(desk: Desk) -> None:
    with Archive(port=PORT).running() as archive:
        assert desk.deliver() == 1
        waiting = desk.delivery
        assert (waiting.state, waiting.stored_at is not None) == ("PENDING", True)
        with desk.way.database.read() as connection:
            assert not outbox.is_settled(connection, desk.revision_id)
            assert "not committed yet" in control.status(connection).waiting[-1].what
        [(transaction, _)] = archive.asked
        assert call_with_report(desk.receiver.port, transaction, desk.pair) == 0x0000
        assert desk.delivery.state == "DELIVERED"
        # Told twice: acknowledged, and nothing more happens.
        assert call_with_report(desk.receiver.port, transaction, desk.pair) == 0x0000
        assert call_with_report(desk.receiver.port, transaction, [], desk.pair) == 0x0000
    assert desk.delivery.state == "DELIVERED"
    assert len(archive.stored) == 1


def test_a_report_under_a_wrong_transaction_uid_counts_for_nothing(desk: Desk) -> None:
    with Archive(port=PORT).running():
        desk.deliver()
        assert call_with_report(desk.receiver.port, generate_uid(), desk.pair) == 0x0115
    assert desk.delivery.state == "PENDING"


@pytest.mark.parametrize("other", ["instance", "class"])
def test_a_report_for_something_else_counts_for_nothing(desk: Desk, other: str) -> None:
    [(sop_class, instance)] = desk.pair
    said = (sop_class, generate_uid()) if other == "instance" else ("1.2.840.10008.5.1.4.1.1.4", instance)
    with Archive(port=PORT).running() as archive:
        desk.deliver()
        assert call_with_report(desk.receiver.port, archive.asked[0][0], [said]) == 0x0000
    assert desk.delivery.state == "PENDING"


def test_a_report_that_says_both_counts_as_failed(desk: Desk) -> None:
    with Archive(port=PORT).running() as archive:
        desk.deliver()
        call_with_report(desk.receiver.port, archive.asked[0][0], desk.pair, desk.pair)
        assert desk.deliver() == 1
    assert (desk.delivery.state, desk.delivery.stored_at, desk.delivery.refusals) == ("PENDING", None, 1)


def test_what_is_reported_as_failed_is_sent_again_and_then_parked_with_the_reason(desk: Desk) -> None:
    def failing(association: Association, transaction_uid: str, pairs: Pairs) -> None:
        report_on(association, transaction_uid, [], pairs)

    with Archive(port=PORT, then=failing).running() as archive:
        desk.wait_for("PARKED")
        assert len(archive.stored) == RETRY["refusals"]
        assert "does not commit to it (0x0112: no such object instance)" in desk.delivery.answer
        archive.then = at_once
        control.retry(desk.way.database, f"delivery:{desk.delivery.id}", by="me")
        desk.wait_for("DELIVERED")
    assert len(archive.stored) == RETRY["refusals"] + 1  # type: ignore[operator]


def test_an_archive_that_never_reports_is_asked_again_and_then_parked(hasty_desk: Desk) -> None:
    desk = hasty_desk
    with Archive(port=PORT).running() as archive:
        desk.wait_for("PARKED")
        transactions = [uid for uid, _ in archive.asked]
        assert len(set(transactions)) == len(transactions) == RETRY["refusals"]
        assert len(archive.stored) == 1, "it is asked about again, not sent again"
        assert "did not report within 0.05 s" in desk.delivery.answer
        with desk.way.database.write() as connection:
            revision = studies.revision(connection, desk.revision_id)
            assert revision.state == "ROUTED"
        # Very late, and about the first request: it is still the archive's word.
        assert call_with_report(desk.receiver.port, transactions[0], desk.pair) == 0x0000
    assert desk.delivery.state == "DELIVERED"


def test_an_archive_that_refuses_the_request_is_parked_with_its_answer(desk: Desk) -> None:
    with Archive(port=PORT, action_status=0x0110).running() as archive:
        desk.wait_for("PARKED")
    assert "refused to commit: 0x0110" in desk.delivery.answer
    assert len(archive.stored) == 1


def test_an_archive_that_is_gone_after_taking_it_is_waited_for(desk: Desk) -> None:
    with Archive(port=PORT, action_status=0x0110).running():
        desk.deliver()
    for _ in range(RETRY["refusals"] + 2):  # type: ignore[operator]
        wait_until(desk.deliver, 5, "the next try")
    assert (desk.delivery.state, desk.delivery.refusals) == ("PENDING", 1)
    with Archive(port=PORT, then=at_once).running() as archive:
        desk.wait_for("DELIVERED")
    assert archive.stored == []


def test_an_archive_that_aborts_in_place_of_an_answer_is_asked_again_without_end(desk: Desk) -> None:
    with Archive(port=PORT, aborts=True).running() as archive:
        for _ in range(RETRY["refusals"] + 1):  # type: ignore[operator]
            wait_until(desk.deliver, 10, "the next try")
        assert (desk.delivery.state, desk.delivery.refusals) == ("PENDING", 0)
        archive.aborts = False
        archive.then = at_once
        desk.wait_for("DELIVERED")
    assert len(archive.stored) == 1


def test_what_waits_for_commitment_survives_a_restart(receiver: Receiver, desk: Desk) -> None:
    with Archive(port=PORT).running() as archive:
        desk.deliver()
        receiver.stop()
        receiver.start()
        assert desk.deliver() == 0, "it is not asked again before its time"
        assert call_with_report(receiver.port, archive.asked[0][0], desk.pair) == 0x0000
    assert desk.delivery.state == "DELIVERED"


def test_a_destination_that_no_longer_has_to_commit_is_done_with_what_it_has(hasty_desk: Desk) -> None:
    desk = hasty_desk
    with Archive(port=PORT).running():
        desk.deliver()
        plain = Settings(peers=PEERS, destinations={"pacs": {"kind": "dimse", "peer": "pacs"}}, routes=())
        destination = make_destination("pacs", plain.destinations["pacs"], plain.peers, "OVERREAD")
        wait_until(lambda: steps.deliver(desk.way, destination), 5, "the delivery to be due")
    assert desk.delivery.state == "DELIVERED"


def test_a_destination_that_cannot_report_is_refused_at_the_start(tmp_path: Path) -> None:
    import yaml

    peer: dict[str, Any] = {**PEERS["pacs"], "services": ["echo", "store"]}
    file = tmp_path / "node.yaml"
    values = {"peers": {"pacs": peer}, "destinations": {"pacs": {"kind": "dimse", "peer": "pacs", "commit": True}}}
    file.write_text(yaml.safe_dump({**values, "routes": []}))
    with pytest.raises(ConfigurationError, match=r"add commit to peers\.pacs\.services"):
        load_settings(file)
