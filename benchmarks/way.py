"""How long the whole way takes beside the bare model: from the last C-STORE to SR and SEG present in Orthanc.

Run it as ``python -m benchmarks.way``. Prints a table of medians with their spread: the way minus the quiet time,
the model alone in the same run on the same files, start to ready, and the memory of the node's processes, idle, at
most while the runs went on, and after them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pydicom
from pydicom.uid import generate_uid
from rich.console import Console
from rich.table import Table

from demo.peers import MllpReceiver, Orthanc, Process, free_port, wait_until
from inference.card import load_card
from inference.engine import ImageFile, Job
from inference.host import EngineHost
from phantoms.thorax import make_thorax
from tests.dicom_factory import ct_series

ROOT = Path(__file__).resolve().parent.parent
QUIET_SECONDS = 2.0
SLICES, SIZE = 64, 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slices", type=int, default=SLICES, help="300 is a whole chest CT of 1 mm.")
    options = parser.parse_args(arguments)
    runs, slices = options.runs, options.slices
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pacs = Orthanc(folder=folder / "pacs")
        stack.callback(pacs.stop, kill=True)
        emr = MllpReceiver(folder=folder / "emr")
        stack.callback(emr.stop)
        pacs.start()
        emr.start()
        starts = [_start_and_stop(folder / f"start-{n}", pacs, emr) for n in range(3)]
        config, dimse_port, http_port = _configure(folder / "node", pacs, emr)
        node = _node(config, folder / "node")
        stack.callback(node.stop)
        node.start()
        _wait_ready(http_port)
        idle = _memory_mb(node.pid)
        ways, bare, peaks = [], [], []
        host = EngineHost(load_card(ROOT / "conf" / "models" / "lung-ct"))
        stack.callback(host.close)
        for n in range(runs):
            study_uid, files = _study(folder / f"ct-{n}", n, slices)
            bare.append(_bare(host, files))
            with _peak_of(node.pid) as held:
                ways.append(_way(study_uid, files, dimse_port, pacs) - QUIET_SECONDS)
            peaks.append(max(held))
        after = _memory_mb(node.pid)
    table = Table(title=f"Chest CT, {slices} slices of {SIZE} x {SIZE}, {psutil.cpu_count()} cores, {runs} runs")
    for column in ("figure", "median", "least", "most"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    rows = [
        ("last C-STORE to SR and SEG in Orthanc, minus the quiet time (s)", ways),
        ("bare model: the same files to Findings, engine loaded (s)", bare),
        ("the way's share beside the model (ratio)", [a / b for a, b in zip(ways, bare, strict=True)]),
        ("start to ready, empty data directory (s)", starts),
        ("resident memory of all processes, idle, proportional share (MB)", [idle]),
        ("the same, at most from the first C-STORE to SR and SEG (MB)", peaks),
        ("the same after the runs, engine loaded (MB)", [after]),
    ]
    for name, values in rows:
        table.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}")
    Console(width=110).print(table)
    return 0


def _configure(folder: Path, pacs: Orthanc, emr: MllpReceiver) -> tuple[Path, int, int]:
    folder.mkdir(parents=True)
    dimse_port, http_port = free_port(), free_port()
    route = {"name": "ct", "match": {"Modality": "CT"}, "models": ["lung-ct"], "deliver": ["pacs"], "notify": ["emr"]}
    values = {
        "data_dir": str(folder / "var"),
        "dimse": {"port": dimse_port},
        "http": {"port": http_port},
        "completion": {"quiet_seconds": QUIET_SECONDS},
        "peers": {"pacs": {"ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.dimse_port}},
        "destinations": {"pacs": {"kind": "dimse", "peer": "pacs"}},
        "notifiers": {"emr": {"kind": "hl7", "host": "127.0.0.1", "port": emr.port}},
        "models": str(ROOT / "conf" / "models"),
        "routes": [route],
    }
    path = folder / "node.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path, dimse_port, http_port


def _node(config: Path, folder: Path) -> Process:
    command = [str(Path(sys.executable).with_name("overread")), "serve", "--config", str(config)]
    return Process(command=command, log_path=folder / "node.log")


def _wait_ready(http_port: int) -> None:
    url = f"http://127.0.0.1:{http_port}/health/ready"
    wait_until(lambda: httpx.get(url, timeout=5).status_code == 200, 60, "the node", interval=0.02)


def _start_and_stop(folder: Path, pacs: Orthanc, emr: MllpReceiver) -> float:
    config, _, http_port = _configure(folder, pacs, emr)
    node = _node(config, folder)
    begin = time.perf_counter()
    node.start()
    try:
        _wait_ready(http_port)
        return time.perf_counter() - begin
    finally:
        node.stop()


def _study(folder: Path, seed: int, slices: int) -> tuple[str, list[Path]]:
    # The same extent from feet to head, however many slices it is cut into, as long as a scanner would cut so thin.
    spacing = (max(5.0 * SLICES / slices, 0.5), 0.75, 0.75)
    coarse = make_thorax(seed, shape=(slices, SIZE // 2, SIZE // 2), spacing=(spacing[0], 1.5, 1.5))
    hu = np.repeat(np.repeat(np.rint(coarse.hu).astype(np.int16), 2, axis=1), 2, axis=2)
    study_uid = generate_uid()
    files = ct_series(folder, hu, spacing=spacing, origin=(-190.0, -190.0, -160.0), study_uid=study_uid)
    return study_uid, files


def _bare(host: EngineHost, files: Sequence[Path]) -> float:
    images = tuple(
        ImageFile(str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID), file) for file in files
    )
    job = Job(card_path=ROOT / "conf" / "models" / "lung-ct" / "card.yaml", input_set={"ct": images})
    if host.pid is None:
        host.run(job)  # loads the model, as the node does once
    begin = time.perf_counter()
    host.run(job)
    return time.perf_counter() - begin


def _way(study_uid: str, files: Sequence[Path], port: int, pacs: Orthanc) -> float:
    subprocess.run(
        ["/usr/bin/storescu", "-aec", "OVERREAD", "127.0.0.1", str(port), *map(str, files)],
        check=True,
        capture_output=True,
    )
    begin = time.perf_counter()

    def present() -> bool:
        held = pacs.find("Instance", {"StudyInstanceUID": study_uid})
        return len(held) >= 2

    wait_until(present, 600, "SR and SEG in Orthanc", interval=0.02)
    return time.perf_counter() - begin


def _memory_mb(pid: int) -> float:
    """Sum what each process of the node holds by itself and its share of what they hold together (Linux PSS)."""
    parent = psutil.Process(pid)
    held = 0
    for one in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
            held += one.memory_full_info().pss
    return held / 1e6


@contextmanager
def _peak_of(pid: int) -> Iterator[list[float]]:
    """Look at the node's memory ten times a second meanwhile."""
    held, done = [_memory_mb(pid)], threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            held.append(_memory_mb(pid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield held
    finally:
        done.set()
        looking.join()


if __name__ == "__main__":
    sys.exit(main())
