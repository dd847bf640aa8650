"""What is measured: this node, a tuned Orthanc and dcmtk's storescp, each as processes that can be weighed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil

from demo.peers import Process, find_orthanc, free_port, tcp_open, wait_until

__all__ = ["RECEIVERS", "Running", "start_node"]

#: dcmtk, alone and within Orthanc, turns Nagle's algorithm off only where it is told so.
_NO_NAGLE = {"TCP_NODELAY": "1"}
_STORESCP = "/usr/bin/storescp"


@dataclass(frozen=True, kw_only=True)
class Running:
    """A receiver that listens."""

    port: int
    process: Process

    def family(self) -> list[psutil.Process]:
        """Return its processes."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return the processor time that its processes have used, those that have ended too."""
        total = 0.0
        for one in self.family():
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue  # ended since: its parent has its time
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def stop(self) -> None:
        """End it; its folder goes too, so that it need not end in order."""
        self.process.stop(10)


def start_node(folder: Path, receivers: int = 2) -> Running:
    """Start the whole node with its default settings."""
    dimse_port, http_port = free_port(), free_port()
    config = folder / "node.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "data_dir": str(folder / "var"),
        "dimse": {"port": dimse_port, "receivers": receivers},
        "http": {"port": http_port},
        "models": str(folder / "models"),
        "routes": [],
    }
    (folder / "models").mkdir(exist_ok=True)
    config.write_text(json.dumps(values), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("overread")), "serve", "--config", str(config)]
    process = Process(command=command, log_path=folder / "node.log")
    process.start()
    url = f"http://127.0.0.1:{http_port}/health/ready"
    return _ready(process, dimse_port, lambda: httpx.get(url, timeout=5).status_code == 200)


def _start_orthanc(folder: Path, *, as_shipped: bool = False) -> Running:
    """Start Orthanc without plugins and scripts, with large PDUs, a thread an association and no MD5 of files.

    ``as_shipped`` leaves it its own four threads and the MD5. Its files are synchronised with the disk (its default),
    its index is as durable as SQLite's WAL mode makes it.
    """
    dimse_port, http_port = free_port(), free_port()
    binary = find_orthanc()
    assert binary is not None, "Orthanc is not installed (Debian packages orthanc, orthanc-dicomweb)"
    config = folder / "orthanc.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http_port,
        "AuthenticationEnabled": False,
        "DicomPort": dimse_port,
        "DicomAet": "OVERREAD",
        "DicomAlwaysAllowStore": True,
        "MaximumPduLength": 131072,
        "StorageCompression": False,
        "SaveJobs": False,
    }
    if not as_shipped:
        values |= {"DicomThreadsCount": ORTHANC_THREADS, "StoreMD5ForAttachments": False}
    config.write_text(json.dumps(values), encoding="utf-8")
    process = Process(command=[binary, str(config)], log_path=folder / "orthanc.log", environment=_NO_NAGLE)
    process.start()
    url = f"http://127.0.0.1:{http_port}/system"
    return _ready(process, dimse_port, lambda: httpx.get(url, timeout=5).status_code == 200)


def _start_storescp(folder: Path) -> Running:
    """Start storescp: a process an association, the bytes as they came; nothing is indexed or made durable."""
    (folder / "files").mkdir(parents=True)
    port = free_port()
    command = [_STORESCP, "--fork", "-pdu", "131072", "+B", "-aet", "OVERREAD", "-od", str(folder / "files"), str(port)]
    process = Process(command=command, log_path=folder / "storescp.log", environment=_NO_NAGLE)
    process.start()
    return _ready(process, port, lambda: True)


def _ready(process: Process, port: int, answers: Callable[[], bool]) -> Running:
    def ready() -> bool:
        assert process.running, process.log_tail()
        return answers() and tcp_open(port)

    wait_until(ready, 60, f"a receiver on port {port}", interval=0.02)
    return Running(port=port, process=process)


#: More threads than its default of 4: sixteen associations would wait for each other.
ORTHANC_THREADS = 16
RECEIVERS: dict[str, Callable[[Path], Running]] = {
    "overread": start_node,
    "orthanc": _start_orthanc,
    "orthanc-as-shipped": partial(_start_orthanc, as_shipped=True),
    "storescp": _start_storescp,
}
