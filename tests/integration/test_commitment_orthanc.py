"""Storage Commitment with a real PACS, both ways, by a whole node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from tests.peers import Orthanc, free_port, wait_until
from tests.system import Node, chest_ct


def test_orthanc_asks_the_node_and_the_node_asks_orthanc(
    start_orthanc: Callable[..., Orthanc], start_node: Callable[..., Node], tmp_path: Path
) -> None:
    pacs, port = start_orthanc(), free_port()
    pacs.add_modality("node", "OVERREAD", port)
    node = start_node(
        pacs=pacs,
        dimse_port=port,
        options={
            "peers": {
                "pacs": {
                    "ae_title": pacs.ae_title,
                    "host": "127.0.0.1",
                    "port": pacs.dimse_port,
                    "services": ["echo", "store", "commit"],
                }
            },
            "destinations": {"pacs": {"kind": "dimse", "peer": "pacs", "commit": True}},
        },
    )
    study_uid, files = chest_ct(tmp_path / "ct")
    ids = [
        httpx.post(f"{pacs.http_url}/instances", content=file.read_bytes()).raise_for_status().json()["ID"]
        for file in files
    ]
    httpx.post(f"{pacs.http_url}/modalities/node/store", json=ids, timeout=60).raise_for_status()
    asked = httpx.post(
        f"{pacs.http_url}/modalities/node/storage-commitment", json={"Resources": ids}, timeout=30
    ).raise_for_status()
    path = asked.json()["Path"]

    def report() -> Any:
        found = pacs.get(path)
        return None if found["Status"] == "Pending" else found

    heard = wait_until(report, 30, "Orthanc to have its report")
    assert heard["Status"] == "Success", heard
    assert len(heard["Success"]) == len(files)
    assert heard["RemoteAET"] == "OVERREAD"

    def committed() -> bool:
        with node.database().read() as connection:
            states = [row.state for row in connection.execute(text("SELECT state FROM delivery"))]
        return bool(states) and set(states) == {"DELIVERED"}

    wait_until(committed, 90, "every document to be committed to", interval=0.5)
    told = deliveries(node.story(study_uid))
    assert {one["answer"] for one in told} == {"stored and committed"}
    with node.database().read() as connection:
        rows = list(connection.execute(text("SELECT state, answer FROM commitment")))
    assert [row.state for row in rows] == ["ACKNOWLEDGED"]
    assert "commitment:1 is ACKNOWLEDGED, not parked" in node.run("retry", "commitment:1").stdout
    stored = [one for one in node.story(study_uid)["events"] if one["after"] == "STORED" and one["before"] == "PENDING"]
    assert len(stored) == len(told), "each was stored first, and committed to after that"


def deliveries(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the deliveries of a story."""
    return [
        one for workitem in told["workitems"] for document in workitem["documents"] for one in document["deliveries"]
    ]
