"""Engines that crash, hang or grow: the workitem is freed, tried three times and parked; the others go on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom.uid import generate_uid

from demo.peers import MllpReceiver, wait_until
from storage import schema
from tests.dicom_factory import ct_series
from tests.model_factory import endless, greedy, segmentation_card, thresholding, write_model
from tests.system import Node, push

WRONG = {
    "hangs": (endless, {"seconds": 2, "memory_mb": 1024}, "no answer within 2 s"),
    "grows": (lambda: greedy(4.0), {"seconds": 60, "memory_mb": 512}, "its limit is 512 MB"),
}


def _bright_ct(folder: Path) -> tuple[str, list[Path]]:
    hu = np.full((6, 32, 32), -1000)
    hu[2:4, 8:16, 8:16] = 500
    study_uid = generate_uid()
    return study_uid, ct_series(folder, hu, study_uid=study_uid)


def _node(start_node: Callable[..., Node], models: Path, emr: MllpReceiver, *names: str) -> Node:
    routes = [
        {"name": name, "match": {"Modality": "CT"}, "models": [name], "deliver": [], "notify": ["emr"]}
        for name in names
    ]
    return start_node(emr=emr, options={"models": str(models), "routes": routes})


def _attempts(node: Node, model: str) -> list[tuple[str, str]]:
    a, w = schema.attempt.c, schema.workitem.c
    with node.database().read() as connection:
        rows = connection.execute(
            schema.attempt.join(schema.workitem).select().where(w.model == model).order_by(a.id)
        ).mappings()
        return [(row["state"], row["outcome"]) for row in rows]


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_an_engine_that_never_answers_is_parked_after_three_tries_and_the_others_go_on(
    start_node: Callable[..., Node], mllp_receiver: MllpReceiver, tmp_path: Path, kind: str
) -> None:
    make, resources, word = WRONG[kind]
    write_model(tmp_path / "models", segmentation_card(kind, resources=resources), make())
    write_model(tmp_path / "models", segmentation_card("blobs"), thresholding())
    node = _node(start_node, tmp_path / "models", mllp_receiver, kind, "blobs")
    _, files = _bright_ct(tmp_path / "ct")
    push(files, node.dimse_port)
    (message,) = wait_until(mllp_receiver.messages, 120, "the report", interval=0.2)
    states = [state for state, _ in _attempts(node, kind)]
    assert states == ["FAILED"] * 3
    assert word in _attempts(node, kind)[-1][1]
    assert [state for state, _ in _attempts(node, "blobs")] == ["SUCCEEDED"]
    assert "given up after 3 tries" in message["text"]
    assert "given up after 3 tries" in node.run("status").stdout
    family = psutil.Process(node.process.pid).children(recursive=True)
    assert sum(one.memory_info().rss for one in family) < 2 * 1024**3


def test_an_engine_that_is_killed_each_time_is_parked_and_a_retry_is_a_new_workitem(
    start_node: Callable[..., Node], mllp_receiver: MllpReceiver, tmp_path: Path
) -> None:
    write_model(tmp_path / "models", segmentation_card("dies", resources={"seconds": 60, "memory_mb": 1024}), endless())
    node = _node(start_node, tmp_path / "models", mllp_receiver, "dies")
    study_uid, files = _bright_ct(tmp_path / "ct")
    push(files, node.dimse_port)
    done = threading.Event()

    def killer() -> None:
        killed: set[int] = set()
        while not done.wait(0.05):
            running = len([one for one in _attempts(node, "dies") if one[0] == "RUNNING"])
            for name, one in node.members().items():
                if running and name.startswith("engine") and one.pid not in killed:
                    killed.add(one.pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        (message,) = wait_until(mllp_receiver.messages, 120, "the report", interval=0.2)
    finally:
        done.set()
        thread.join()
    assert [state for state, _ in _attempts(node, "dies")] == ["FAILED"] * 3
    assert "given up after 3 tries" in message["text"]
    node.run("retry", study_uid)
    with node.database().read() as connection:
        first, second = connection.execute(schema.workitem.select().order_by(schema.workitem.c.id)).all()
    assert (first.state, second.replaces_id) == ("CANCELED", first.id)
    assert second.generation == 1


def test_a_loop_in_c_that_holds_the_interpreters_lock_is_ended_from_outside(
    start_node: Callable[..., Node], mllp_receiver: MllpReceiver, tmp_path: Path
) -> None:
    """The engine's Python never gets the lock back: only its supervisor can end it."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import ctypes, sys, threading, time\n"
        "def hold():\n"
        "    while not any(name.startswith('onnxruntime') for name in list(sys.modules)):\n"
        "        time.sleep(0.05)\n"
        "    time.sleep(0.5)\n"
        "    ctypes.PyDLL(None).pause()  # PyDLL keeps the lock while C runs\n"
        "if 'inference.child' in ' '.join(sys.orig_argv):\n"
        "    threading.Thread(target=hold, daemon=True).start()\n"
    )
    card = segmentation_card("held", resources={"seconds": 2, "memory_mb": 1024})
    write_model(tmp_path / "models", card, endless())
    write_model(tmp_path / "models", segmentation_card("blobs"), thresholding())
    node = Node(
        folder=tmp_path / "node",
        emr=mllp_receiver,
        environment={"PYTHONPATH": str(site)},
        options={
            "models": str(tmp_path / "models"),
            "routes": [{"name": "held", "match": {"Modality": "CT"}, "models": ["held"], "notify": ["emr"]}],
        },
    )
    node.start()
    try:
        _, files = _bright_ct(tmp_path / "ct")
        push(files, node.dimse_port)
        wait_until(mllp_receiver.messages, 120, "the report", interval=0.2)
        assert [state for state, _ in _attempts(node, "held")] == ["FAILED"] * 3
    finally:
        node.stop()
