"""Trained MeshNets over a whole real head: what they cost, and whether every voxel is where their own makers put it.

Run it as ``python -m benchmarks.meshnet`` (``--nets model5_gw_ae model11_gw_ae ...`` for others, ``--all`` for all
nine; ``--memory`` for time and memory alone). Each net is converted, the sample head is written as a DICOM MR series,
and the card's whole way runs over it in an engine's process. Its voxels are compared with the bare graph over the
file's own array, and model5_gw_ae's with the counts that its first check gave. Then it is given a scanner's series of
a wrist, which its card refuses. Exit status 1 where voxels differ.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import MRImageStorage
from rich.console import Console
from rich.table import Table

from inference.bring.folder import write_card
from inference.bring.meshnet import MODEL_FILE, convert_meshnet
from inference.card import Card
from inference.engine import ImageFile, Job
from inference.findings import Findings
from inference.grid import Grid
from inference.host import EngineHost
from inference.nifti import read_nifti
from node.evidence.documents import make_documents, model_of
from tests.dicom_factory import ct_series
from tests.evidence_factory import NODE, NOW

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODELS = SHARED / "models" / "brainchop_meshnet"
NETS = (
    *("model5_gw_ae", "model11_gw_ae", "model20chan3cls", "model18cls", "model30chan18cls"),
    *("model30chan50cls", "v3_model11_50class", "model21_104class", "mindgrab"),
)
#: The file that names the classes, where the net's own folder has none or several.
LABELS = {"model11_gw_ae": "model5_gw_ae/colormap3.json", "v3_model11_50class": "v3_model11_50class/labels.json"}
#: Voxels of classes 1 and 2 of the sample head, from the net's first check (ONNX Runtime, fp32).
KNOWN = {"model5_gw_ae": (518540, 735212)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["model5_gw_ae"])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--memory", action="store_true", help="Leave out the bare graph, the documents and the wrist.")
    chosen = parser.parse_args(arguments)
    console = Console()
    table = Table(
        *("net", "whole way, s", "of it the net, s", "bare graph, s", "peak MB", "card's MB", "voxels that differ"),
        "mL of each label",
    )
    wrong = False
    with tempfile.TemporaryDirectory(prefix="meshnet-") as held:
        folder = Path(held)
        head, grid = read_nifti(MODELS / "sample_t1_crop.nii.gz")
        images, order = _series(folder / "head", head, grid)
        for net in NETS if chosen.all else chosen.nets:
            card = _converted(folder, net)
            began = time.perf_counter()
            with EngineHost(card) as host:
                host.load()
                began = time.perf_counter()
                findings = host.run(Job(card.path, {"t1": images}))
                whole = time.perf_counter() - began
                peak = _peak_mb(host)
            assert findings.segmentation is not None, findings.not_analysed
            console.print(f"{net}: {whole:.1f} s, at most {peak:.0f} MB of {card.resources.memory_mb}", highlight=False)
            if chosen.memory:
                continue
            bare, seconds = _bare(card, head)
            differ = int((findings.segmentation.labels[order] != bare).sum())
            counts = tuple(int((bare == label).sum()) for label in (1, 2))
            wrong |= differ > bare.size // 10_000 or counts != KNOWN.get(net, counts)
            told = ", ".join(f"{s.name} {s.volume_ml:.0f}" for s in findings.segmentation.segments[:3])
            memory = (f"{peak:.0f}", str(card.resources.memory_mb))
            table.add_row(net, f"{whole:.1f}", f"{findings.seconds:.1f}", f"{seconds:.1f}", *memory, str(differ), told)
            console.print(f"{net}: {findings.provider}, {findings.precision}; classes 1, 2: {counts}", highlight=False)
            _documents(console, card, findings, images)
        if chosen.memory:
            return 0
        console.print(table)
        _wrist(console, _converted(folder, "model5_gw_ae"))
    return int(wrong)


def _peak_mb(host: EngineHost) -> float:
    """Return the most that the engine's process has held: the kernel's own record, which misses no moment."""
    status = Path(f"/proc/{host.pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def _converted(folder: Path, net: str) -> Card:
    target = folder / net
    if not target.exists():
        target.mkdir()
        labels = MODELS / LABELS[net] if net in LABELS else None
        name = net.replace("_", "-")
        described = convert_meshnet(MODELS / net, target, name=name, labels=labels, codes=[])
        write_card(target, described.values, [MODEL_FILE])
    from inference.card import load_card

    return load_card(target)


def _series(folder: Path, head: np.ndarray, grid: Grid) -> tuple[tuple[ImageFile, ...], slice]:
    """Write the head as it lies, plane by plane; gives the images, and how their masks come into the file's order."""
    order = slice(None)
    affine = grid.affine
    if np.linalg.det(affine[:3, [2, 1, 0]]) < 0:
        order = slice(None, None, -1)
        affine = affine @ np.array([[-1, 0, 0, grid.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    spacing = grid.spacing_mm
    paths = ct_series(
        folder,
        head[order].astype(np.int64),
        spacing=spacing,
        orientation=(*(affine[:3, 2] / spacing[2]), *(affine[:3, 1] / spacing[1])),
        origin=tuple(affine[:3, 3]),
        intercept=0.0,
        SOPClassUID=MRImageStorage,
        Modality="MR",
        RescaleType=None,
        KVP=None,
        ConvolutionKernel=None,
    )
    return tuple(ImageFile(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID), path) for path in paths), order


def _bare(card: Card, head: np.ndarray) -> tuple[np.ndarray, float]:
    """Run the graph alone over the file's own array: the axes of the file are the net's."""
    import onnxruntime

    values = head.transpose(2, 1, 0).astype(np.float32)
    scale = next(step.scale for step in card.preprocess if step.scale)
    assert scale.percentiles is not None
    low, high = np.percentile(values, scale.percentiles)
    values = (values - np.float32(low)) / np.float32(high - low)
    session = onnxruntime.InferenceSession(str(card.directory / MODEL_FILE), providers=["CPUExecutionProvider"])
    began = time.perf_counter()
    labels = session.run(None, {"image": values[None, None]})[0][0, 0]
    return labels.transpose(2, 1, 0), time.perf_counter() - began


def _documents(console: Console, card: Card, findings: Findings, images: tuple[ImageFile, ...]) -> None:
    began = time.perf_counter()
    documents = make_documents(
        findings, model_of(card), [image.path for image in images], node=NODE, revision=1, now=NOW
    )
    told = ", ".join(f"{one.kind} {len(one.data) / 1e6:.1f} MB" for one in documents)
    console.print(f"  {told}, written and checked in {time.perf_counter() - began:.1f} s", highlight=False)


def _wrist(console: Console, card: Card) -> None:
    """Give it what is no head."""
    paths = sorted((SHARED / "data" / "mr_series" / "dcm4che_MR16").glob("*.dcm"))
    with EngineHost(card) as host:
        findings = host.run(Job(card.path, {"t1": tuple(ImageFile(path.stem, path) for path in paths)}))
    assert findings.not_analysed is not None
    console.print(f"a wrist: not analysed, {findings.not_analysed.text}", highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
