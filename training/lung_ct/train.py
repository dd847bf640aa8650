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
from scipy import ndimage
from torch import nn
from torch.nn import functional

from training.lung_ct.data import LEFT, OTHER_AIR, RIGHT, prepare
from training.lung_ct.export import export
from training.lung_ct.net import OFFSETS, LungNet, normalise

Pair = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]  # HU and classes

SEED = 7
BATCH = 8


def load(paths: list[Path]) -> list[Pair]:
    """Read the volumes into memory."""
    out = []
    for path in paths:
        with np.load(path) as z:
            out.append((z["hu"], z["classes"]))
    return out


def _sample(
    volume: Pair, rng: np.random.Generator, size: tuple[int, int]
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


def batch(volumes: list[Pair], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random batch (input, classes)."""
    size = (int(rng.choice([80, 96, 112])), int(rng.choice([80, 112, 128])))
    pairs = [_sample(volumes[int(rng.integers(len(volumes)))], rng, size) for _ in range(BATCH)]
    x = torch.from_numpy(np.stack([p[0] for p in pairs]))
    y = torch.from_numpy(np.stack([p[1] for p in pairs])).long()
    return normalise(x), y


def pixel_weights(y: npt.NDArray[np.int64], enclosed: float) -> torch.Tensor:
    """Return the weight of each pixel: lung 1.5, air that the body encloses (airway, bowel) `enclosed`, else 1."""
    weights = np.where((y == RIGHT) | (y == LEFT), 1.5, 1.0).astype(np.float32)
    if enclosed != 1.0:
        for k, plane in enumerate(y):
            labels, _ = ndimage.label(plane == OTHER_AIR)
            outside = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
            inner = (labels > 0) & ~np.isin(labels, outside)
            weights[k][ndimage.binary_dilation(inner)] = enclosed
    return torch.from_numpy(weights)


def loss_of(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted cross entropy plus soft Dice of the four classes."""
    ce = (functional.cross_entropy(logits, y, reduction="none") * weight).sum() / weight.sum()
    p = logits.softmax(1)
    one = functional.one_hot(y, p.shape[1]).movedim(-1, 1).float()
    both = (p * one).sum((0, 2, 3))
    dice = 1 - ((2 * both + 50) / (p.sum((0, 2, 3)) + one.sum((0, 2, 3)) + 50)).mean()
    return ce + dice


def run_cycle(net: LungNet, volumes: list[Pair], *, steps: int, rate: float, enclosed: float, seed: int) -> None:
    """Train for one cycle of the learning rate, up to `rate` and down again."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    began = time.monotonic()
    net.train()
    for step in range(1, steps + 1):
        x, y = batch(volumes, rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x.to(memory_format=torch.channels_last))
        loss = loss_of(logits.float(), y, pixel_weights(y.numpy(), enclosed))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - began:.0f} s", flush=True)
    net.eval()


def train(volumes: list[Pair], steps: int) -> LungNet:
    """Train and return the network: a long cycle, then a short one that looks harder at airway and bowel."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    net = LungNet().to(memory_format=torch.channels_last)
    run_cycle(net, volumes, steps=steps, rate=3e-3, enclosed=1.0, seed=SEED)
    run_cycle(net, volumes, steps=max(20, steps // 4), rate=1.5e-3, enclosed=5.0, seed=SEED + 1)
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
    net = train(load(paths), arguments.steps)
    torch.save(net.state_dict(), arguments.work / "net.pt")
    digest = export({k: v.float().numpy() for k, v in net.state_dict().items()}, arguments.out)
    print(f"{arguments.out}: sha256 {digest}")


if __name__ == "__main__":
    main()
