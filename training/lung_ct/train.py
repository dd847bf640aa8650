"""Train the lung model from nothing but synthetic phantoms and write the ONNX file and its SHA-256.

One command makes the shipped weights again: ``python -m training.lung_ct.train`` (see docs/models/lung-ct.md).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from training.lung_ct.data import prepare
from training.lung_ct.export import export
from training.lung_ct.net import OFFSETS, LungNet, normalise

SEED = 7
BATCH = 8


def load(paths: list[Path]) -> list[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]]:
    """Read the volumes into memory."""
    out = []
    for path in paths:
        with np.load(path) as z:
            out.append((z["hu"], z["classes"]))
    return out


def _sample(
    volume: tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]], rng: np.random.Generator, size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return one slice with its neighbours [neighbour, row, column] and its classes [row, column]."""
    hu, classes = volume
    n = len(hu)
    k = int(rng.integers(0, n))
    # A third of the slices come from a short slab, where the neighbours beyond its ends repeat the last slice.
    low, high = 0, n - 1
    if rng.random() < 0.33:
        low, high = max(0, k - int(rng.integers(0, 6))), min(n - 1, k + int(rng.integers(0, 6)))
    index = np.clip([k + o for o in OFFSETS], low, high)
    if rng.random() < 0.25:  # thick slices: neighbours are mixtures
        w = float(rng.uniform(0.1, 0.5))
        near = np.clip(index + int(rng.choice([-1, 1])), low, high)
        x = (1 - w) * hu[index].astype(np.float32) + w * hu[near].astype(np.float32)
    else:
        x = hu[index].astype(np.float32)
    x = x * float(rng.uniform(0.95, 1.05)) + float(rng.normal(0, 12))
    y = classes[k]
    pads = [(max(0, s - d) + 24) for s, d in zip(size, y.shape, strict=True)]
    before = [int(rng.integers(0, p + 1)) for p in pads]
    pad = [(b, p - b) for b, p in zip(before, pads, strict=True)]
    fill = float(rng.choice([-1000, -1024, -2000, -1000]))
    x = np.pad(x, [(0, 0), *pad], constant_values=fill)
    y = np.pad(y, pad, constant_values=3)
    r, c = (int(rng.integers(0, d - s + 1)) for d, s in zip(y.shape, size, strict=True))
    x, y = x[:, r : r + size[0], c : c + size[1]], y[r : r + size[0], c : c + size[1]]
    if rng.random() < 0.3:
        x = x + rng.standard_normal(x.shape, dtype=np.float32) * float(rng.uniform(5, 70))
    return x.astype(np.float32), y


def batch(
    volumes: list[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random batch (input, classes)."""
    size = (int(rng.choice([80, 96, 112])), int(rng.choice([80, 112, 128])))
    pairs = [_sample(volumes[int(rng.integers(len(volumes)))], rng, size) for _ in range(BATCH)]
    x = torch.from_numpy(np.stack([p[0] for p in pairs]))
    y = torch.from_numpy(np.stack([p[1] for p in pairs])).long()
    return normalise(x), y


def loss_of(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus soft Dice of the four classes."""
    ce = functional.cross_entropy(logits, y, weight=weight)
    p = logits.softmax(1)
    one = functional.one_hot(y, p.shape[1]).movedim(-1, 1).float()
    both = (p * one).sum((0, 2, 3))
    dice = 1 - ((2 * both + 50) / (p.sum((0, 2, 3)) + one.sum((0, 2, 3)) + 50)).mean()
    return ce + dice


def train(volumes: list[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]], steps: int, out: Path) -> LungNet:
    """Train and return the network; a checkpoint is kept at `out`."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    rng = np.random.default_rng(SEED)
    net = LungNet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    weight = torch.tensor([1.0, 1.5, 1.5, 1.0])
    began, shown = time.monotonic(), 0.0
    net.train()
    for step in range(1, steps + 1):
        x, y = batch(volumes, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x.to(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), y, weight)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        shown = 0.98 * shown + 0.02 * loss.item() if shown else loss.item()
        if step % 100 == 0:
            print(f"step {step} loss {shown:.4f} {time.monotonic() - began:.0f} s", flush=True)
        if step % 400 == 0 or step == steps:
            torch.save(net.state_dict(), out)
    net.eval()
    return net


def main() -> None:
    """Make the data, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("var/training/lung-ct"), help="folder for data and checkpoints"
    )
    parser.add_argument("--volumes", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--out", type=Path, default=Path("conf/models/lung-ct/lung-ct.onnx"))
    arguments = parser.parse_args()
    paths = prepare(arguments.work / "volumes", arguments.volumes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    net = train(load(paths), arguments.steps, arguments.work / "net.pt")
    digest = export({k: v.float().numpy() for k, v in net.state_dict().items()}, arguments.out)
    print(f"{arguments.out}: sha256 {digest}")


if __name__ == "__main__":
    main()
