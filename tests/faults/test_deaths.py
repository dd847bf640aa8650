"""Each of the node's processes is killed, and the node itself twenty times: nothing healthy is parked or lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from demo.peers import wait_until
from storage import schema
from tests.faults.killing import Sender, all_acknowledged_is_there, finish, patient_site, seen
from tests.system import Site, chest_ct

__all__ = ["patient_site"]

PROCESSES = ["receiver-0", "receiver-1", "web", "workflow", "performer-0", "engine"]


@pytest.mark.timeout(300)
def test_it_survives_the_death_of_each_of_its_processes(patient_site: Site, tmp_path: Path) -> None:
    site = patient_site
    sender = Sender(site.node.dimse_port)
    for number, name in enumerate(PROCESSES):
        study_uid, files = chest_ct(tmp_path / f"ct-{number}", seed=200 + number)
        moment = ("instance", "STORED") if name.startswith("receiver") else ("attempt", "RUNNING")
        pushing = threading.Thread(target=sender.send, args=(files,))
        pushing.start()
        wait_until(seen(site.node, *moment, study_uid), 60, f"{moment}", interval=0.002)
        victims = [one for member, one in site.node.members().items() if member.startswith(name)]
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
        pushing.join()
        finish(site, sender, study_uid, files)
    site.node.stop()
    site.node.start()
    all_acknowledged_is_there(site.node, sender)


@pytest.mark.timeout(400)
def test_twenty_deaths_of_the_node_park_nothing_that_is_healthy(patient_site: Site, tmp_path: Path) -> None:
    """Each time the whole node is killed while the model runs, and started again."""
    site = patient_site
    sender = Sender(site.node.dimse_port)
    study_uid, files = chest_ct(tmp_path / "ct", seed=300)
    assert sender.send(files)
    a = schema.attempt.c

    def attempts(*states: str) -> int:
        with site.node.database().read() as connection:
            return connection.execute(
                select(func.count())
                .select_from(schema.attempt.join(schema.workitem).join(schema.study))
                .where(schema.study.c.study_instance_uid == study_uid, a.state.in_(states))
            ).scalar_one()

    for death in range(20):
        wait_until(lambda death=death: attempts("RUNNING", "LOST") > death, 60, f"attempt {death + 1}", interval=0.002)  # type: ignore[misc]
        site.node.kill(everything=death % 2 == 0)
        site.node.start()
    finish(site, sender, study_uid, files)
    assert attempts("LOST") == 20
    all_acknowledged_is_there(site.node, sender)
