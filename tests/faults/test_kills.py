"""Killed in the middle of a push, at any moment: what was acknowledged is there, and files and rows agree.

The node (its whole group, or its parent alone), one receiver, the web process, or the database that a receiver
writes to. With SQLite the writer of the database is the receiver itself; with PostgreSQL it is a server process, and
the server ends all its others when one is killed.

``OVERREAD_KILLS`` says how often (20), ``OVERREAD_SEED`` at which instants.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import pytest
from sqlalchemy import create_engine, text

from demo.peers import wait_until
from tests.databases import PostgreSQL
from tests.faults.pushing import Pushed, differences, pushing
from tests.system import Node

KILLS = int(os.environ.get("OVERREAD_KILLS", "20"))
SEED = int(os.environ.get("OVERREAD_SEED", "20"))
ASSOCIATIONS = 4


@pytest.fixture
def bare(start_node: Callable[..., Node], tmp_path: Path) -> Callable[..., Node]:
    """Give a function that starts a node which only takes in: no models, no routes, no study ever complete."""
    models = tmp_path / "models"
    models.mkdir()

    def start(**options: object) -> Node:
        nothing = {"routes": [], "models": str(models), "demonstration_models": False}
        quiet = {"completion": {"quiet_seconds": 3600}, "dimse": {"receivers": 2}}
        return start_node(options={**nothing, **quiet, **options})

    return start


def all_go_on(pushed: list[Pushed]) -> None:
    """Wait until every sender has something acknowledged that was not before."""
    before = [len(one.acknowledged) for one in pushed]
    wait_until(
        lambda: all(len(one.acknowledged) > count for one, count in zip(pushed, before, strict=True)),
        60,
        f"every sender to be served again; {[(len(one.acknowledged), one.lost_connections) for one in pushed]}",
        interval=0.01,
    )


def pause(dice: Random) -> None:
    """Let a random moment pass while everything runs: the kill has to come at no particular instant."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: False, dice.uniform(0.0, 0.25), "a random instant", interval=0.005)


def kill_process(node: Node, name: str) -> None:
    member = node.members()[name]
    with contextlib.suppress(psutil.NoSuchProcess):
        member.send_signal(signal.SIGKILL)
    wait_until(lambda: node.members().get(name, member) != member, 30, f"{name} to be started anew")


def in_agreement(node: Node, pushed: list[Pushed]) -> None:
    """Start the node once more, which puts files and rows in agreement, and hold it to everything."""
    node.stop()
    node.start()
    database = node.database()
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: not differences(database, node.data_dir, pushed), 30, "files and rows to agree")
    assert differences(database, node.data_dir, pushed) == []
    database.close()


@pytest.mark.timeout(120 + 15 * KILLS)
def test_nothing_acknowledged_is_lost_when_processes_of_the_node_are_killed(bare: Callable[..., Node]) -> None:
    node, dice = bare(), Random(SEED)
    targets = ["everything", "parent", *["receiver-0", "receiver-1", "web"] * 5]
    killed: Counter[str] = Counter()
    with pushing([node.dimse_port] * ASSOCIATIONS, node.url) as pushed:
        for number in range(KILLS - KILLS // 4):
            all_go_on(pushed)
            pause(dice)
            target = targets[number % len(targets)]
            if target in ("everything", "parent"):
                node.kill(everything=target == "everything")
                node.start()
            else:
                kill_process(node, target)
            killed[target] += 1
        all_go_on(pushed)
    print(f"killed {dict(killed)}; acknowledged {sum(len(one.acknowledged) for one in pushed)}")
    in_agreement(node, pushed)


@pytest.mark.timeout(120 + 15 * KILLS)
def test_nothing_acknowledged_is_lost_when_the_databases_own_processes_are_killed(
    bare: Callable[..., Node], postgresql: PostgreSQL
) -> None:
    url = postgresql.new_database()
    node, dice = bare(database={"url": url}), Random(SEED)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with pushing([node.dimse_port] * ASSOCIATIONS, node.url) as pushed:
        for _ in range(KILLS // 4):
            all_go_on(pushed)
            pause(dice)
            with engine.connect() as connection:
                serving = connection.execute(
                    text(
                        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                        "AND pid <> pg_backend_pid() ORDER BY xact_start NULLS LAST, pid"
                    )
                ).scalars()
                victim = dice.choice(list(serving)[:3])
            engine.dispose()
            os.kill(victim, signal.SIGKILL)
        all_go_on(pushed)
    engine.dispose()
    print(f"killed {KILLS // 4}; acknowledged {sum(len(one.acknowledged) for one in pushed)}")
    in_agreement(node, pushed)
