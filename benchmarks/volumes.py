"""A 3-D UNet over a CT of 512 x 512 x 300, beside MONAI's SlidingWindowInferer on torch: time and peak memory.

Run it as ``python -m benchmarks.volumes``. Each side runs in a process of its own, over the same int16 volume, with the
same windows, overlap and blend, from the volume in memory to its uint8 mask; the model is loaded and warm. The volume
is noise, so that no window is like another. Peak memory is what the process held at most (VmHWM), less what it held
before it began with the volume loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

SIZE, OVERLAP = 96, 0.25
CHANNELS, STRIDES = (16, 32, 64, 128, 256), (2, 2, 2, 2)
LOW, HIGH = -1000.0, 1000.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--child", choices=["ours", "monai"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_ours(options.folder) if options.child == "ours" else _monai(options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, options.slices)
        told: dict[str, list[dict[str, float]]] = {"ours": [], "monai": []}
        for _ in range(options.runs):
            for side, results in told.items():
                command = [sys.executable, "-W", "ignore", "-m", "benchmarks.volumes", "--child", side]
                answer = subprocess.run(
                    [*command, "--folder", name], check=True, capture_output=True, text=True, timeout=900
                )
                results.append(json.loads(answer.stdout.strip().splitlines()[-1]))
        same = float((np.load(folder / "ours.npy") == np.load(folder / "monai.npy")).mean())
    table = Table(
        title=f"3-D UNet, windows of {SIZE}^3, overlap {OVERLAP:g}, 512 x 512 x {options.slices}, "
        f"{psutil.cpu_count()} cores, {options.runs} runs"
    )
    for column in ("figure", "Overread", "MONAI on torch", "ratio", "least", "most"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for title, key in (("seconds", "seconds"), ("peak memory above the volume (MB)", "peak_mb")):
        ours, peers = ([one[key] for one in told[side]] for side in ("ours", "monai"))
        ratios = [peer / own for own, peer in zip(ours, peers, strict=True)]
        table.add_row(
            title,
            f"{statistics.median(ours):.1f}",
            f"{statistics.median(peers):.1f}",
            *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
        )
    Console(width=120).print(table)
    print(f"{told['ours'][0]['provider']}; voxels with the same label: {same:.4%}")
    return 0


def _network() -> object:
    import torch
    from monai.networks.nets import UNet

    torch.manual_seed(7)
    return UNet(3, 1, 2, CHANNELS, STRIDES, num_res_units=2).eval()


def _prepare(folder: Path, slices: int) -> None:
    import torch

    rng = np.random.default_rng(7)
    np.save(folder / "volume.npy", rng.integers(-1000, 1000, (slices, 512, 512), dtype=np.int16))
    network = _network()
    torch.save(network.state_dict(), folder / "unet.pt")
    torch.onnx.export(
        network,
        (torch.zeros(1, 1, SIZE, SIZE, SIZE),),
        str(folder / "unet.onnx"),
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "n"}, "scores": {0: "n"}},
        dynamo=False,
    )
    code = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    category = {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"}
    card = {
        "name": folder.name.lower().replace("_", "-"),
        "version": "1",
        "title": "UNet",
        "task": "segmentation",
        "engine": "onnx",
        "files": {"unet.onnx": {"sha256": hashlib.sha256((folder / "unet.onnx").read_bytes()).hexdigest()}},
        **dict.fromkeys(
            ("intended_use", "limits", "licence", "training_data", "performance", "made_by"), "a benchmark"
        ),
        "inputs": [{"role": "ct", "kind": "volume", "match": {"Modality": "CT"}}],
        "tensors": {"image": "image", "output": "scores"},
        "layout": "ncdhw",
        "preprocess": [{"scale": {"low": LOW, "high": HIGH}}],
        "window": {"size": [SIZE] * 3, "overlap": OVERLAP},
        "outputs": [{"label": 1, "name": "liver", "code": code, "category": category}],
        "resources": {"seconds": 900, "memory_mb": 8192},
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")


def _ours(folder: Path) -> dict[str, object]:
    from inference.card import load_card
    from inference.engines.onnx import open_model
    from inference.grid import Grid
    from inference.labelling import label_by_window, marking_of

    card = load_card(folder)
    model = open_model(card)
    model.infer({"image": np.zeros((1, 1, SIZE, SIZE, SIZE), np.float32)})
    volume = np.load(folder / "volume.npy")
    source = Grid(volume.shape, np.diag([1.0, 0.7, 0.7, 1.0])[[2, 1, 0, 3]])
    before, began = _held_mb("VmRSS"), time.perf_counter()
    labels = label_by_window(card, lambda feeds: model.infer(feeds)["output"], [volume], source, marking_of(card))
    seconds = time.perf_counter() - began
    peak = _held_mb("VmHWM") - before
    np.save(folder / "ours.npy", labels)
    return {"seconds": seconds, "peak_mb": peak, "provider": f"{model.provider} {model.precision}"}


def _monai(folder: Path) -> dict[str, object]:
    import torch
    from monai.inferers import SlidingWindowInferer

    network = _network()
    network.load_state_dict(torch.load(folder / "unet.pt", weights_only=True))
    inferer = SlidingWindowInferer((SIZE,) * 3, sw_batch_size=1, overlap=OVERLAP, mode="gaussian")
    with torch.inference_mode():
        network(torch.zeros(1, 1, SIZE, SIZE, SIZE))
        volume = np.load(folder / "volume.npy")
        before, began = _held_mb("VmRSS"), time.perf_counter()
        image = torch.from_numpy(volume).to(torch.float32)[None, None].sub_(LOW).div_(HIGH - LOW)
        labels = inferer(image, network).argmax(1)[0].to(torch.uint8).numpy()
        seconds = time.perf_counter() - began
    peak = _held_mb("VmHWM") - before
    np.save(folder / "monai.npy", labels)
    return {"seconds": seconds, "peak_mb": peak}


def _held_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
