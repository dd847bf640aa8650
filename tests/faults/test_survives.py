"""Killed at any moment and started again: what was acknowledged is there, and every result is out once.

The node is killed with SIGKILL, its whole group or its parent alone: at every arrow of ``node/workflow/steps.py``
(seen in the change feed by another process, as it happens) and at random.
"""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path

import pytest

from demo.peers import wait_until
from tests.faults.killing import Sender, all_acknowledged_is_there, finish, patient_site, seen
from tests.system import Site, chest_ct

__all__ = ["patient_site"]

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


@pytest.mark.timeout(600)
def test_it_survives_being_killed_at_every_arrow_and_at_random(patient_site: Site, tmp_path: Path) -> None:
    site, dice = patient_site, random.Random(20)
    sender = Sender(site.node.dimse_port)
    kills = 0
    moments: list[tuple[str, str] | float] = [*ARROWS, *(dice.uniform(0.0, 4.0) for _ in range(2))]
    for number, moment in enumerate(moments):
        study_uid, files = chest_ct(tmp_path / f"ct-{number}", seed=100 + number)
        pushing = threading.Thread(target=sender.send, args=(files,))
        pushing.start()
        if isinstance(moment, tuple):
            wait_until(seen(site.node, *moment, study_uid), 60, f"{moment}", interval=0.002)
        else:
            with contextlib.suppress(TimeoutError):
                wait_until(seen(site.node, "notification", "ACKNOWLEDGED", study_uid), moment, "a random moment")
        # The parent alone must take its processes with it just as the whole group does.
        site.node.kill(everything=number % 2 == 0)
        kills += 1
        pushing.join()
        site.node.start()
        finish(site, sender, study_uid, files)
    assert kills >= 10
    site.node.stop()
    site.node.start()
    all_acknowledged_is_there(site.node, sender)
