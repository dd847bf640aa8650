"""What a process of the node has started and left behind is ended, however it has freed itself; nothing else is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from demo.peers import wait_until

#: A parent with one process, which starts what starts a daemon: its own session, no environment, no parent. It may
#: have children from before, as `helper & exec overread serve` leaves one.
_NODE = """
import ctypes, os, sys, time
from pathlib import Path
from node.app import _Parent

def note(name, pid):
    Path(name + ".new").write_text(str(pid))
    os.rename(name + ".new", name)

def performer(stop):
    if os.path.exists("engine"):
        stop.wait()
        return
    engine = os.fork()
    if engine == 0:
        # As engines do: PR_SET_CHILD_SUBREAPER.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                note("daemon", os.getpid())
                os.closerange(0, 100)
                os.execve(sys.executable, ["left-behind", "-c", "import time; time.sleep(60)"], {})
            os._exit(0)
        time.sleep(60)
    note("engine", engine)
    stop.wait()

def child(name, then=lambda: None):
    if (pid := os.fork()) == 0:
        then()
        time.sleep(60)
        os._exit(0)
    note(name, pid)

if sys.argv[1:] == ["helper"]:
    child("other")
    child("helper", lambda: child("inner"))
sys.exit(_Parent({"performer": performer}).run(lambda: None))
"""


def test_a_daemon_of_an_engine_that_was_killed_does_not_outlive_it(tmp_path: Path) -> None:
    with _node(tmp_path, "engine", "daemon") as (node, (engine, daemon)):
        engine.kill()
        wait_until(lambda: not daemon.is_running(), 10, "the daemon is ended")
        assert node.poll() is None
        assert len(psutil.Process(node.pid).children()) == 1
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0


def test_what_the_node_had_as_a_child_before_is_not_ended_nor_what_that_leaves_behind(tmp_path: Path) -> None:
    with _node(tmp_path, "engine", "daemon", "other", "helper", "inner") as (node, found):
        engine, daemon, other, helper, inner = found
        helper.kill()
        wait_until(lambda: inner.ppid() == node.pid and not helper.is_running(), 10, "the node has buried the helper")
        # It has looked at what is below it once it buries the next.
        assert other.is_running()
        other.kill()
        wait_until(lambda: not other.is_running(), 10, "the node has buried the other")
        engine.kill()
        wait_until(lambda: not daemon.is_running(), 10, "the daemon is ended, which is the node's own")
        assert inner.is_running()
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
        assert inner.is_running()


@contextlib.contextmanager
def _node(folder: Path, *names: str) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """Run the parent until all that have these names are there; nothing is left of them."""
    root = Path(__file__).parents[2]
    node = subprocess.Popen(
        [sys.executable, "-c", _NODE, *({"helper"} & set(names))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
    )
    try:
        wait_until(lambda: all((folder / name).exists() for name in names), 60, "they are there")
        found = [psutil.Process(int((folder / name).read_text())) for name in names]
        engine, daemon = found[:2]
        wait_until(lambda: daemon.cmdline()[:1] == ["left-behind"], 10, "the daemon has freed itself")
        wait_until(lambda: daemon.ppid() == engine.pid, 10, "it hangs below its engine, which is not asked about it")
        yield node, found
    finally:
        node.kill()
        for name in names:
            with contextlib.suppress(OSError):
                os.kill(int((folder / name).read_text()), signal.SIGKILL)
        node.communicate()
