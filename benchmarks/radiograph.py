"""Chest radiographs from the stored instance to Findings: studies an hour on two cores.

Run with ``python -m benchmarks.radiograph``. A radiograph of 2,500 x 2,000 pixels of 12 bits is made, stored
uncompressed and compressed, and read by a DenseNet121 (the layout of torchxrayvision's, with random weights, as ONNX)
through the node's own engines: as many processes as cores, one thread each, each given study after study. Counted is
everything between the file's path and the findings: parsing, decoding, the modality LUT, the input tensor, the network,
the answer's way back.

The figure follows from the processor time of all these processes, since the time on the wall of a machine that others
use says nothing; both are printed. Making the network needs the extras ``torch`` and ``convert``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import yaml

from inference.card import Card, load_card
from inference.engine import ImageFile, Job
from inference.host import EngineHost

ROWS, COLUMNS = 2500, 2000
WANTED, AIM = 10_000, 20_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--studies", type=int, default=40, help="of each kind")
    options.add_argument("--processes", type=int, default=2)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="radiograph-") as folder:
        place = Path(folder)
        card = densenet(place / "densenet121")
        print(
            "| stored as | MB | core-ms a study | an hour here | an hour on 2 cores | over 10,000 | over 20,000 |\n"
            "| --- | --- | --- | --- | --- | --- | --- |"
        )
        for name, path in radiographs(place).items():
            cpu, wall = measured(card, path, chosen.studies, chosen.processes)
            hourly = 2 * 3600 / cpu
            print(
                f"| {name} | {path.stat().st_size / 1e6:.1f} | {1000 * cpu:.0f} | {3600 / wall:,.0f} | {hourly:,.0f} | "
                f"{hourly / WANTED:.1f} | {hourly / AIM:.1f} |",
                flush=True,
            )


def measured(card: Card, path: Path, studies: int, processes: int) -> tuple[float, float]:
    """Return the seconds of a processor, and those on the wall, that one study takes."""
    hosts = [EngineHost(card) for _ in range(processes)]
    try:
        for host in hosts:
            host.load()
            host.run(Job(card.path, {"radiograph": (ImageFile("warm", path),)}))
        before = sum(_cpu(host.pid) for host in hosts) + time.process_time()
        began = time.perf_counter()
        share = -(-studies // processes)

        def work(host: EngineHost) -> None:
            for number in range(share):
                findings = host.run(Job(card.path, {"radiograph": (ImageFile(str(number), path),)}))
                assert findings.classifications, findings.not_analysed

        threads = [threading.Thread(target=work, args=(host,)) for host in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - began
        cpu = sum(_cpu(host.pid) for host in hosts) + time.process_time() - before
    finally:
        for host in hosts:
            host.close()
    return cpu / (share * processes), wall / (share * processes)


def _cpu(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def densenet(folder: Path) -> Card:
    """Make a DenseNet121 for 18 findings with its card."""
    from inference.bring.torchxrayvision import bring
    from inference.engines.torchvision_schemas import import_torchvision
    from inference.engines.torchxrayvision_catalogue import entry

    import_torchvision()
    import torch
    import torchxrayvision

    folder.mkdir()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    released = folder.parent / "released.pt"
    torch.save(torchxrayvision.models.DenseNet(weights=None, num_classes=18).eval(), released)
    bring(entry("densenet121-res224-all"), released, folder)
    values = yaml.safe_load((folder / "card.yaml").read_text())
    # A made-up network explains nothing worth timing; one thread a process is how two cores are kept busy.
    values.pop("explain")
    values["resources"] |= {"threads": 1}
    values["inputs"][0].pop("limits")
    (folder / "card.yaml").write_text(yaml.safe_dump(values))
    return load_card(folder)


def radiographs(folder: Path) -> dict[str, Path]:
    """Write one radiograph in several transfer syntaxes."""
    import gdcm

    from phantoms.radiograph import make_radiograph
    from tests.dicom_factory import radiograph

    pixels = make_radiograph(1, ["nodule"], shape=(ROWS, COLUMNS)).pixels
    plain = radiograph(folder, pixels, modality="DX")
    files = {"uncompressed": plain}
    for name, syntax in (
        ("JPEG Lossless", gdcm.TransferSyntax.JPEGLosslessProcess14_1),
        ("JPEG-LS", gdcm.TransferSyntax.JPEGLSLossless),
        ("RLE", gdcm.TransferSyntax.RLELossless),
        ("JPEG 2000", gdcm.TransferSyntax.JPEG2000Lossless),
    ):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        files[name] = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:8]}.dcm"
        writer.SetFileName(str(files[name]))
        writer.Write()
        assert np.array_equal(_stored(files[name]), pixels), name
    return files


def _stored(path: Path) -> np.ndarray:
    from inference.imagefile import open_image, stored_values

    return stored_values(open_image(ImageFile("x", path)))


if __name__ == "__main__":
    main()
