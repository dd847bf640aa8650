"""Train `chest-radiograph-demo` and write its ONNX file and thresholds.

Run by `python -m training.chest_radiograph.train`. Needs the extra `train` (torch, onnx). Seeds are fixed; the weights
are the same on the same machine with the same number of threads. `evaluate` writes the card.
Thresholds maximise Youden's index on a validation set of the training family.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from phantoms.radiograph import FINDINGS
from training.chest_radiograph.augment import moved, toned
from training.chest_radiograph.data import SIZE, Radiographs, load
from training.chest_radiograph.measure import auc, predict, youden
from training.chest_radiograph.network import Net, Shipped

MODEL = Path("conf/models/chest-radiograph-demo/chest-radiograph-demo.onnx")
CACHE = Path("build/chest-radiograph")
_BATCH = 32


def _discs(part: Radiographs, chosen: np.ndarray) -> Tensor:
    """Draw where the nodules are: [n, 1, 256, 256], 1 inside a disc of the nodule's size, at least 8 mm wide."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    out = np.zeros((len(chosen), 1, SIZE, SIZE), np.float32)
    for k, i in enumerate(chosen):
        if part.labels[i, 0]:
            radius = max(part.sizes[i, 0] / 2, 4) / 1.56
            row, column = part.places[i, 0]
            out[k, 0] = np.hypot(rows - row, columns - column) <= radius
    return torch.from_numpy(out)


def _place_loss(logits: Tensor, inside: Tensor) -> Tensor:
    """Focal loss of the nodule map, over the number of places inside a nodule: they are one in a thousand."""
    chance = torch.sigmoid(logits)
    hit = inside * (1 - chance) ** 2 * nn.functional.logsigmoid(logits)
    miss = (1 - inside) * chance**2 * nn.functional.logsigmoid(-logits)
    return -(hit + miss).sum() / inside.sum().clamp(min=1)


def _average(mean: nn.Module, net: nn.Module, keep: float) -> None:
    """Move the averaged weights towards the current ones."""
    with torch.no_grad():
        for a, b in zip(mean.state_dict().values(), net.state_dict().values(), strict=True):
            if a.dtype.is_floating_point:
                a.mul_(keep).add_(b, alpha=1 - keep)
            else:
                a.copy_(b)


def train(part: Radiographs, epochs: int, seed: int, start: Path | None) -> Net:
    """Fit the network over one cycle of the learning rate and return the running average of its weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Net()
    if start is not None:
        net.load_state_dict(torch.load(start, weights_only=True))
    net = net.to(memory_format=torch.channels_last)
    mean = copy.deepcopy(net).eval()
    steps = len(part.images) // _BATCH
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, epochs * steps, pct_start=0.1)
    step = 0
    for epoch in range(epochs):
        began, total = time.monotonic(), 0.0
        order = rng.permutation(len(part.images))
        for k in range(steps):
            chosen = order[k * _BATCH : (k + 1) * _BATCH]
            image = torch.from_numpy(part.images[chosen]).float().unsqueeze(1) / 255
            stack = moved(torch.cat([image, _discs(part, chosen)], dim=1))
            target = torch.from_numpy(part.labels[chosen]).float()
            place = torch.nn.functional.max_pool2d(stack[:, 1:], 8)
            target[:, 0] *= (place.amax(dim=(1, 2, 3)) > 0.3).float()
            with torch.autocast("cpu", torch.bfloat16):
                logits, places = net(toned(stack[:, :1]).contiguous(memory_format=torch.channels_last))
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
            optimiser.zero_grad()
            (loss + 0.3 * _place_loss(places.float(), place)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            step += 1
            _average(mean, net, min(0.99, step / (step + 10)))
            total += loss.item()
            if k % 40 == 39:
                print(f"epoch {epoch} step {k + 1}/{steps} loss {total / (k + 1):.3f}", flush=True)
        print(f"epoch {epoch} loss {total / steps:.4f} in {time.monotonic() - began:.0f} s", flush=True)
        torch.save(mean.state_dict(), CACHE / f"mean-{seed}-{epoch}.pt")
    return mean


def export(net: Net, path: Path) -> None:
    """Write the network with its sigmoid as ONNX: `image` [N, 1, 256, 256] to `probability` [N, 5]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        Shipped(net).float().eval(),
        (torch.rand(1, 1, SIZE, SIZE),),
        str(path),
        input_names=["image"],
        output_names=["probability"],
        dynamic_axes={"image": {0: "N"}, "probability": {0: "N"}},
        opset_version=17,
        dynamo=False,
    )


def main() -> None:
    """Train, export, choose thresholds, and print what the card needs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--cycles", type=int, default=4, help="each starts from the averaged weights of the one before")
    parser.add_argument("--done", type=int, default=0, help="cycles that an earlier run completed")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    part = load("train", CACHE)
    last = None
    for cycle in range(given.cycles):
        weights = CACHE / f"cycle-{cycle}.pt"
        if cycle >= given.done:
            torch.save(train(part, given.epochs, given.seed + cycle, last).state_dict(), weights)
        last = weights
    net = Net()
    net.load_state_dict(torch.load(weights, weights_only=True))
    export(net.eval(), given.model)
    held = load("validation", CACHE)
    probabilities = predict(given.model, held.images)
    chosen = {}
    for i, name in enumerate(FINDINGS):
        chosen[name] = round(youden(held.labels[:, i], probabilities[:, i]), 3)
        print(f"{name}: validation AUC {auc(held.labels[:, i], probabilities[:, i]):.3f}, threshold {chosen[name]}")
    (CACHE / "thresholds.json").write_text(json.dumps(chosen, indent=1) + "\n")


if __name__ == "__main__":
    main()
