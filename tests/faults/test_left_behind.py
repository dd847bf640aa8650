"""What a process of the node has started and left behind is ended, however it has freed itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from demo.peers import wait_until

#: A parent with one process, which starts what starts a daemon: its own session, no environment, no parent.
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

sys.exit(_Parent({"performer": performer}).run(lambda: None))
"""


def test_a_daemon_of_an_engine_that_was_killed_does_not_outlive_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    node = subprocess.Popen(
        [sys.executable, "-c", _NODE], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE
    )
    try:
        names = [tmp_path / "engine", tmp_path / "daemon"]
        wait_until(lambda: all(name.exists() for name in names), 60, "the daemon is there")
        engine, daemon = (psutil.Process(int(name.read_text())) for name in names)
        wait_until(lambda: daemon.cmdline()[:1] == ["left-behind"], 10, "the daemon has freed itself")
        wait_until(lambda: daemon.ppid() == engine.pid, 10, "it hangs below its engine, which is not asked about it")
        engine.kill()
        wait_until(lambda: not daemon.is_running(), 10, "the daemon is ended")
        assert node.poll() is None
        assert len(psutil.Process(node.pid).children()) == 1
        node.send_signal(signal.SIGTERM)
        assert node.wait(30) == 0
    finally:
        node.kill()
        node.communicate()
        with contextlib.suppress(OSError):
            os.kill(int((tmp_path / "daemon").read_text()), signal.SIGKILL)
