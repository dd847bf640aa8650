"""Peers that are down, refuse or misbehave: what is to leave waits, and leaves once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.peers import MllpReceiver, Orthanc, wait_until
from storage import schema
from tests.system import Node, chest_ct, push, results_in


def test_a_pacs_that_is_down_gets_the_same_documents_when_it_is_back_across_a_restart(
    orthanc: Orthanc, mllp_receiver: MllpReceiver, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    orthanc.stop()
    node = start_node(pacs=orthanc, emr=mllp_receiver)
    study_uid, files = chest_ct(tmp_path / "ct")
    push(files, node.dimse_port)

    def refused_twice() -> bool:
        return node.log.count('"outcome": "Unreachable"') >= 2

    wait_until(refused_twice, 90, "two vain tries", interval=0.2)
    assert mllp_receiver.messages() == []  # what it would cite is not delivered yet
    made = {one.blob: node.data_dir.joinpath("blobs", one.blob[:2], one.blob).read_bytes() for one in _documents(node)}
    assert len(made) == 2
    assert node.stop() == 0
    orthanc.start()
    node.start()
    wait_until(mllp_receiver.messages, 60, "the report", interval=0.2)
    assert results_in(orthanc, study_uid) == {"SR": 1, "SEG": 1}
    assert len(_documents(node)) == 2
    again = {one.blob: node.data_dir.joinpath("blobs", one.blob[:2], one.blob).read_bytes() for one in _documents(node)}
    assert again == made


@pytest.mark.parametrize("rules", [("AE:1", "AR:1"), ("garbage:1", "silence:1")])
def test_a_receiver_that_misbehaves_gets_the_same_bytes_until_it_accepts(
    rules: tuple[str, ...],
    start_mllp_receiver: Callable[..., MllpReceiver],
    start_node: Callable[..., Node],
    tmp_path: Path,
) -> None:
    emr = start_mllp_receiver(*rules)
    node = start_node(emr=emr)
    study_uid, files = chest_ct(tmp_path / "ct")
    push(files, node.dimse_port)

    def three() -> bool:
        return len(emr.messages()) == 3 and "ACKNOWLEDGED" in str(node.story(study_uid))

    wait_until(three, 90, "two refusals and an acceptance", interval=0.3)
    assert len({(one["control_id"], one["raw"]) for one in emr.messages()}) == 1


def test_a_receiver_that_goes_on_refusing_is_parked_and_an_operator_can_retry(
    start_mllp_receiver: Callable[..., MllpReceiver], start_node: Callable[..., Node], tmp_path: Path
) -> None:
    emr = start_mllp_receiver("AR:3")
    node = start_node(emr=emr)
    study_uid, files = chest_ct(tmp_path / "ct")
    push(files, node.dimse_port)
    wait_until(lambda: "PARKED" in str(node.story(study_uid)), 90, "the notification to be parked", interval=0.3)
    assert len(emr.messages()) == 3
    assert "notification:1" in node.run("status").stdout
    node.run("retry", "notification:1")
    wait_until(lambda: "ACKNOWLEDGED" in str(node.story(study_uid)), 30, "the acknowledgement", interval=0.3)
    assert len({one["raw"] for one in emr.messages()}) == 1
    assert len(emr.messages()) == 4


def test_one_dead_destination_does_not_delay_another(
    orthanc: Orthanc, mllp_receiver: MllpReceiver, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    nowhere = {"ae_title": "NOWHERE", "host": "127.0.0.1", "port": 9, "timeout_seconds": 5}
    options = {"peers": {"nowhere": nowhere}, "destinations": {"dead": {"kind": "dimse", "peer": "nowhere"}}}
    node = start_node(pacs=orthanc, emr=mllp_receiver, options=options)
    node.stop()
    route = {
        "name": "ct",
        "match": {"Modality": "CT"},
        "models": ["lung-ct"],
        "deliver": ["dead", "pacs"],
        "notify": [],
    }
    node.options = {**node.options, "routes": [route]}
    node.start()
    study_uid, files = chest_ct(tmp_path / "ct")
    push(files, node.dimse_port)
    wait_until(lambda: results_in(orthanc, study_uid) == {"SR": 1, "SEG": 1}, 90, "both documents", interval=0.3)


def test_a_paused_destination_waits_and_goes_on(
    orthanc: Orthanc, mllp_receiver: MllpReceiver, start_node: Callable[..., Node], tmp_path: Path
) -> None:
    node = start_node(pacs=orthanc, emr=mllp_receiver)
    node.run("pause", "destination", "pacs")
    study_uid, files = chest_ct(tmp_path / "ct")
    push(files, node.dimse_port)
    wait_until(lambda: "COMPLETED" in str(node.story(study_uid)), 90, "the model", interval=0.3)
    assert results_in(orthanc, study_uid) == {"SR": 0, "SEG": 0}
    assert "PENDING" in str(node.story(study_uid))
    node.run("resume", "destination", "pacs")
    wait_until(mllp_receiver.messages, 30, "the report", interval=0.2)
    assert results_in(orthanc, study_uid) == {"SR": 1, "SEG": 1}


def _documents(node: Node) -> list[Any]:
    with node.database().read() as connection:
        return list(connection.execute(schema.document.select()).all())
