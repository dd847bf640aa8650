"""DenseNet121 on a CPU: torch eager beside each way that Overread can run it, and loading a model to its first answer.

Run it as ``python -m benchmarks.engines``. The network is torchvision's DenseNet121 with one input channel, 18
probabilities and seeded weights, exported once; the inputs are smooth noise of 224 x 224. Torch and the engines run in
processes of their own, in turn, on all cores; each figure is the median of the rounds with the least and the most. The
ratio is torch's time over a way's, round by round. The difference is the largest of any probability from torch's, over
inputs that no way has been calibrated on: with seeded weights it shows that nothing is broken, no more; what a lower
precision does to a trained model only that model's images can tell. "our default" is what ``overread models test``
and ``tune`` choose.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from inference.engines.machine import CACHE_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
SIZE, FINDINGS = 224, 18
WAYS = ("torch", "cpu/fp32", "openvino/fp32", "openvino/bf16", "cpu/int8", "openvino/int8", "our default")
LOADS = ("torch", "our default, first time", "our default")
Answer = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="How long each way runs a round, for each batch.")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_load(options.child[5:], options.folder) if options.child.startswith("load ")
                         else _run(options.child, options.folder, options.seconds)))  # fmt: skip
        return 0
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        told: dict[str, list[Answer]] = {way: [] for way in WAYS}
        loads: dict[str, list[Answer]] = {way: [] for way in LOADS}
        for number in track(range(options.rounds), "rounds"):
            for way, answers in told.items():
                answers.append(_child(way, folder, folder / "cache", options.seconds))
            for way, answers in loads.items():
                # Nothing compiled yet, but the choice: what a node does at its first start with a model.
                cache = folder / f"cache-{number}" if way.endswith("first time") else folder / "cache"
                if cache.name != "cache":
                    _only_choices(folder / "cache", cache)
                answers.append(_child(f"load {way}", folder, cache, 0))
        _print_runs(console, told, folder)
        _print_loads(console, loads)
    return 0


def _print_runs(console: Console, told: dict[str, list[Answer]], folder: Path) -> None:
    table = Table(
        title=f"DenseNet121, {SIZE} x {SIZE}, {psutil.cpu_count()} cores, {len(told['torch'])} rounds; ms a run"
    )
    for column in ("way", "really", "one image", "torch / way", "batch of 8", "torch / way", "apart"):
        table.add_column(column, justify="left" if column in ("way", "really") else "right", no_wrap=True)
    exact = np.load(folder / "torch.npy")
    for way, answers in told.items():
        cells = [way, answers[0].get("really", "")]
        if "problem" in answers[0]:
            table.add_row(way, answers[0]["problem"][:60])
            continue
        for batch in ("1", "8"):
            times = [answer[batch] for answer in answers]
            ratios = [first[batch] / answer[batch] for first, answer in zip(told["torch"], answers, strict=True)]
            cells += [_spread(times, 1), _spread(ratios, 2)]
        difference = float(np.abs(np.load(folder / f"{_file_name(way)}.npy") - exact).max())
        table.add_row(*cells, f"{difference:.5f}")
    console.print(table)


def _print_loads(console: Console, loads: dict[str, list[Answer]]) -> None:
    table = Table(title="A new process: to the first answer, and of that what follows the start of Python (s)")
    for column in ("way", "whole", "import, load, first answer", "torch / way"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, answers in loads.items():
        ratios = [a["whole"] / b["whole"] for a, b in zip(loads["torch"], answers, strict=True)]
        table.add_row(
            way,
            _spread([a["whole"] for a in answers], 2),
            _spread([a["inside"] for a in answers], 2),
            _spread(ratios, 1),
        )
    console.print(table)


def _spread(values: Sequence[float], digits: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{statistics.median(values):.{digits}f} ({low}-{high})"


def _child(way: str, folder: Path, cache: Path, seconds: float) -> Answer:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engines", "--child", way, "--folder", str(folder)]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--seconds", str(seconds)],
        env=os.environ | {CACHE_VARIABLE: str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    whole = time.perf_counter() - began
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"problem": f"its process ended with {done.returncode}: {done.stderr.strip()[-200:]}"}
    return {**json.loads(lines[-1]), "whole": whole}


# --- what is measured, each in a process of its own


def _run(way: str, folder: Path, seconds: float) -> Answer:
    infer, really = _opened(way, folder)
    inputs = np.load(folder / "inputs.npy")
    answers = np.concatenate([infer(inputs[n : n + 8]) for n in range(0, len(inputs), 8)])
    np.save(folder / f"{_file_name(way)}.npy", answers)
    return {"really": really, "1": _timed(infer, inputs[:1], seconds), "8": _timed(infer, inputs[:8], seconds)}


def _timed(infer: Callable[[Any], Any], batch: Any, seconds: float) -> float:
    infer(batch)
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        began = time.perf_counter()
        infer(batch)
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def _load(way: str, folder: Path) -> Answer:
    began = time.perf_counter()
    infer, really = _opened("torch" if way == "torch" else "our default", folder)
    infer(np.zeros((1, 1, SIZE, SIZE), np.float32))
    return {"really": really, "inside": time.perf_counter() - began}


def _opened(way: str, folder: Path) -> tuple[Callable[[Any], Any], str]:
    if way == "torch":
        import torch

        net = _network()
        net.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        net.eval()

        def infer(batch: Any) -> Any:
            with torch.inference_mode():
                return net(torch.from_numpy(batch)).numpy()

        return infer, "torch eager, fp32"
    from inference.card import load_card
    from inference.engines.choice import Way
    from inference.engines.modelfile import check_file
    from inference.engines.onnx import open_model, open_way

    card = load_card(folder / ("densenet-int8" if way.endswith("int8") else "densenet"))
    if way == "our default":
        model = open_model(card)
    else:
        provider, _, precision = way.partition("/")
        contents = check_file(card, "model.onnx", "auto")
        model = open_way(card, Way(provider, precision), contents)  # type: ignore[arg-type]
    return (lambda batch: model.infer({"image": batch})["output"]), f"{model.provider}, {model.precision}"


# --- what it is measured on


def _network() -> Any:
    from inference.engines.torchvision_schemas import import_torchvision

    import_torchvision()
    import torch
    from torchvision.models import densenet121

    torch.manual_seed(7)
    net = densenet121(weights=None, num_classes=FINDINGS)
    net.features.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return torch.nn.Sequential(net, torch.nn.Sigmoid())


def _prepare(folder: Path) -> None:
    """Export, quantise and choose in a process of its own, since torch stays in memory."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from benchmarks.engines import _make; import sys; _make(sys.argv[1])",
    ]
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, timeout=900)


def _make(name: str) -> None:
    import torch

    from inference.bring.lowered import quantise_file
    from inference.card import load_card
    from inference.engines.tune import noise, tune

    folder = Path(name)
    rng = np.random.default_rng(11)
    net = _network()
    # Running statistics of its own inputs, and findings from rare to frequent: else all are near one half.
    inputs = np.stack([_picture(rng) for _ in range(16)])
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.inference_mode():
        net.train()
        net(torch.from_numpy(inputs))
        net.eval()
        head = net[0].classifier
        spread = torch.logit(torch.linspace(0.1, 0.9, FINDINGS))
        head.bias.add_(spread - net[0](torch.from_numpy(inputs)).mean(0))
    torch.save(net.state_dict(), folder / "weights.pt")
    np.save(folder / "inputs.npy", inputs)
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, SIZE, SIZE),),
        str(folder / "model.onnx"),
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_axes={"image": {0: "n"}, "probabilities": {0: "n"}},
        dynamo=False,
        opset_version=17,
    )
    feeds = [{"image": _picture(rng)[None]} for _ in range(24)]
    card = load_card(_card(folder / "densenet", (folder / "model.onnx").read_bytes(), "auto"))
    quantise_file(folder / "model.onnx", folder / "int8.onnx", feeds)
    _card(folder / "densenet-int8", (folder / "int8.onnx").read_bytes(), "int8")
    tune(card, folder / "cache", feeds=[noise(card), *feeds[:4]])


def _picture(rng: np.random.Generator) -> Any:
    """A smooth picture of 0 to 1 with its own contrast, (1, size, size), as a radiograph is given to a network."""
    picture = np.zeros((SIZE, SIZE))
    for cells in (4, 8, 16, 32, 64):
        coarse = rng.normal(size=(cells, cells))
        picture += np.kron(coarse, np.ones((SIZE // cells + 1, SIZE // cells + 1)))[:SIZE, :SIZE] / cells**0.5
    picture -= picture.min()
    return ((picture / picture.max()) ** rng.uniform(0.5, 2)).astype(np.float32)[None]


def _card(folder: Path, model: bytes, precision: str) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    code = {"scheme": "99BENCHMARK", "meaning": "Finding"}
    values = {
        "name": folder.name,
        "version": "1.0.0",
        "title": "DenseNet121",
        "task": "classification",
        "engine": "onnx",
        "onnx": {"precision": precision},
        "files": {"model.onnx": {"sha256": hashlib.sha256(model).hexdigest()}},
        **dict.fromkeys(("intended_use", "limits", "licence", "training_data", "performance", "made_by"), "benchmark"),
        "inputs": [{"role": "radiograph", "kind": "radiograph", "match": {"Modality": "DX"}}],
        "tensors": {"image": "image", "output": "probabilities"},
        "preprocess": [{"radiograph_input": {"size": SIZE}}],
        "outputs": [
            {"index": n, "name": f"finding {n}", "code": code | {"value": f"F{n}"}, "threshold": 0.5}
            for n in range(FINDINGS)
        ],
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def _only_choices(cache: Path, target: Path) -> None:
    import shutil

    shutil.copytree(cache / "choices", target / "choices")
    target.chmod(0o700)


def _file_name(way: str) -> str:
    return way.replace("/", "-").replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main())
