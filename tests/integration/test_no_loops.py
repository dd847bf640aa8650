"""What the node made is never evidence, however it comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from demo.peers import MllpReceiver, Orthanc, free_port, wait_until
from storage import schema
from storage.database import Database, now
from tests.system import Node, chest_ct, push, results_in

#: Longer than a disk that many share may hold up a commit: a study that is judged in the middle has two revisions.
QUIET_SECONDS = 4.0
#: So long after the report nothing more has come of it.
LONG_AFTER = 3 * QUIET_SECONDS
QUIET = {"completion": {"quiet_seconds": QUIET_SECONDS}}


def _let_pass(database: Database, seconds: float) -> None:
    """Wait on the database's own clock, by which quiet periods are counted."""
    with database.read() as connection:
        begin = now(connection)

    def passed() -> bool:
        with database.read() as connection:
            return (now(connection) - begin).total_seconds() >= seconds

    wait_until(passed, seconds + 30, f"{seconds} s to pass", interval=0.5)


def test_a_pacs_that_sends_everything_back_ends_with_one_of_each(
    start_orthanc: Callable[..., Orthanc], mllp_receiver: MllpReceiver, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    port = free_port()
    pacs = start_orthanc()
    pacs.forward_to("OVERREAD", port, mode="instances")
    node = start_node(pacs=pacs, emr=mllp_receiver, dimse_port=port, options=QUIET)
    study_uid, files = chest_ct(tmp_path / "ct")
    push(files, pacs.dimse_port, called="ORTHANC")
    wait_until(mllp_receiver.messages, 90, "the report", interval=0.2)
    database = node.database()
    _let_pass(database, LONG_AFTER)
    assert results_in(pacs, study_uid) == {"SR": 1, "SEG": 1}
    assert len(mllp_receiver.messages()) == 1
    with database.read() as connection:
        came_back = connection.execute(schema.instance.select().where(schema.instance.c.made_here.is_(True))).all()
        assert len(came_back) == 2
    assert len(node.story(study_uid)["revisions"]) == 1


def test_two_nodes_that_forward_to_each_other_end_with_one_of_each(
    mllp_receiver: MllpReceiver, start_orthanc: Callable[..., Orthanc], start_node: Callable[..., Node], tmp_path: Path
) -> None:
    """A delivers to its PACS and to B; B's PACS sends whatever it gets to A, and A's to B."""
    port_a, port_b = free_port(), free_port()
    pacs_a, pacs_b = start_orthanc(ae_title="PACSA"), start_orthanc(ae_title="PACSB")
    pacs_a.forward_to("NODEB", port_b, mode="instances")
    pacs_b.forward_to("NODEA", port_a, mode="instances")
    other = {"destinations": {"other": {"kind": "dimse", "peer": "other"}}, **QUIET}
    peer_b = {"ae_title": "NODEB", "host": "127.0.0.1", "port": port_b}
    peer_a = {"ae_title": "NODEA", "host": "127.0.0.1", "port": port_a}
    node_a = start_node(
        pacs=pacs_a,
        emr=mllp_receiver,
        ae_title="NODEA",
        dimse_port=port_a,
        options={"peers": {"other": peer_b}, **other},
    )
    node_b = start_node(pacs=pacs_b, ae_title="NODEB", dimse_port=port_b, options={"peers": {"other": peer_a}, **other})
    study_uid, files = chest_ct(tmp_path / "ct")
    push(files, port_a, called="NODEA")
    wait_until(mllp_receiver.messages, 90, "the report", interval=0.2)
    _let_pass(node_a.database(), LONG_AFTER)
    assert results_in(pacs_a, study_uid) == {"SR": 1, "SEG": 1}
    assert len(mllp_receiver.messages()) == 1
    assert len(node_a.story(study_uid)["revisions"]) == 1
    with node_b.database().read() as connection:
        made = connection.execute(schema.workitem.select()).all()
        assert made == []
