"""A node that is killed still owes what it has agreed to: the report of a commitment, and that a study is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import CTImageStorage
from sqlalchemy import text

from tests.commitment import Reports, ask, asking, listening, request, told
from tests.dicom_factory import ct_series
from tests.integration.test_availability import Listener
from tests.peers import free_port, wait_until
from tests.system import Node, push


def test_a_node_that_is_killed_before_it_could_report_reports_after_its_next_start(
    start_node: Callable[..., Node], tmp_path: Path
) -> None:
    reports, ris, port = Reports(), Listener(), free_port()
    modality = {
        "ae_title": "MODALITY",
        "host": "127.0.0.1",
        "port": port,
        "services": ["echo", "store", "commit"],
        "commitment_report": "new",
    }
    node = start_node(options={"peers": {"ct": modality, "ris": ris.peer()}})
    files = ct_series(tmp_path / "ct", np.zeros((3, 4, 4)))
    push(files, node.dimse_port)
    uids = {str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files}
    with asking(node.dimse_port, Reports()) as association:
        assert ask(association, request([(str(CTImageStorage), uid) for uid in uids])).Status == 0x0000

    def revision_is_open() -> bool:
        with node.database().read() as connection:
            return bool(connection.execute(text("SELECT count(*) FROM availability")).scalar_one())

    wait_until(revision_is_open, 30, "the study to be judged")
    node.kill()
    with listening(reports, port=port), ris.running():
        node.start()
        assert told(reports.wait(seconds=30)) == (uids, {})
        wait_until(lambda: ris.heard, 30, "the notification of availability")

        def done() -> bool:
            with node.database().read() as connection:
                states = connection.execute(
                    text("SELECT state FROM commitment UNION ALL SELECT state FROM availability")
                )
                return {row.state for row in states} == {"ACKNOWLEDGED"}

        wait_until(done, 10, "both to be acknowledged")
    assert len(reports.heard) == 1
    assert len(ris.heard) == 1
