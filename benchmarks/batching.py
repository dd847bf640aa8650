"""Throughput with 16 studies waiting over one study at a time, through the real engine process.

Run with ``python -m benchmarks.batching``. A DenseNet121 (random weights, ONNX) reads radiographs of 1,024 x 1,024 in
one engine process that may use every core. First one job is handed over after the other; then 16 threads keep 16 jobs
waiting, so that reading overlaps with inference and the process may join inputs, or not: it measures which is faster
and keeps to that. Runs of both alternate, so that what else the machine does hits both. Making the network needs the
extras ``torch`` and ``convert``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import yaml

from benchmarks.radiograph import _cpu as cpu_seconds
from benchmarks.radiograph import densenet
from inference.card import Card, load_card
from inference.engine import ImageFile, Job
from inference.host import EngineHost
from phantoms.radiograph import make_radiograph
from tests.dicom_factory import radiograph

WAITING = 16


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--studies", type=int, default=48, help="a run")
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--batch", type=int, default=8, help="the card's largest batch")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="batching-") as folder:
        place = Path(folder)
        card = _card(place / "densenet121", chosen.batch)
        files = [
            radiograph(place / str(seed), make_radiograph(seed, [], shape=(1024, 1024)).pixels) for seed in range(4)
        ]
        with EngineHost(card) as host:
            host.load()
            measured(host, files, WAITING, WAITING)
            alone: list[float] = []
            together: list[float] = []
            spent: dict[int, list[float]] = {1: [], WAITING: []}
            for _ in range(chosen.runs):
                for waiting, seconds in ((1, alone), (WAITING, together)):
                    before = cpu_seconds(host.pid)
                    seconds.append(measured(host, files, chosen.studies, waiting))
                    spent[waiting].append((cpu_seconds(host.pid) - before) / chosen.studies)
            batching = host.loaded["batching"]
        ratios = [one / many for one, many in zip(alone, together, strict=True)]
        print("| | studies a second, median | core-ms a study |\n| --- | --- | --- |")
        print(f"| one at a time | {1 / statistics.median(alone):.1f} | {1000 * statistics.median(spent[1]):.0f} |")
        told = 1000 * statistics.median(spent[WAITING])
        print(f"| {WAITING} waiting | {1 / statistics.median(together):.1f} | {told:.0f} |")
        print(f"| ratio | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | |")
        print(f"\nchosen: batches of {batching['batch']}; measured: {batching}")


def measured(host: EngineHost, files: list[Path], studies: int, waiting: int) -> float:
    """Return the seconds that a study takes with so many waiting."""
    numbers = iter(range(studies))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            findings = host.run(Job(host.card.path, {"radiograph": (ImageFile("x", files[number % len(files)]),)}))
            assert findings.classifications, findings.not_analysed

    threads = [threading.Thread(target=work) for _ in range(waiting)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) / studies


def _card(folder: Path, batch: int) -> Card:
    densenet(folder)
    values = yaml.safe_load((folder / "card.yaml").read_text())
    values["resources"].pop("threads")
    values["resources"]["concurrency"] = WAITING
    values["batch"] = {"maximum": batch, "wait_ms": 5}
    (folder / "card.yaml").write_text(yaml.safe_dump(values))
    return load_card(folder)


if __name__ == "__main__":
    main()
