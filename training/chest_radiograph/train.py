"""Train `chest-radiograph-demo` and write its ONNX file and thresholds.

Run by `python -m training.chest_radiograph.train`. Needs the extra `train` (torch, onnx). Seeds are fixed; the weights
are the same on the same machine with the same number of threads. `evaluate` writes the card. Training is a row of
cycles (`CYCLES`), each of which goes on from the averaged weights of the one before; then `TWINS` are run for two
networks from the same start, which see the radiographs in another order and with other variations. One network goes on
from the mean of the twins' weights (`LAST`), and is shipped.
Thresholds maximise Youden's index on a validation set of the training family.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Cycle:
    """One rise and fall of the learning rate: how many passes over how many of the training radiographs.

    `fine` adds the nodule map's finer head; `nodule` weighs the nodule's answer against each of the other four; `rate`
    is the highest learning rate; a cycle with `stop` is left after so many passes, its rate still high. With `repeat` a
    radiograph with a consolidation comes twice in every pass. A cycle with `held` keeps the highest rate until that
    many steps are done and then lets it fall to 0 along a line, over `fall` steps.
    """

    epochs: int = 8
    radiographs: int = 4000
    fine: bool = False
    nodule: float = 1.0
    rate: float = 3e-3
    stop: int | None = None
    repeat: bool = False
    held: int | None = None
    fall: int = 0


CYCLES = (*(Cycle(),) * 4, Cycle(2, fine=True, nodule=3.0))
TWINS = (
    Cycle(5, 12_000, fine=True, nodule=3.0, stop=2),
    Cycle(1, 9600, fine=True, nodule=3.0, rate=1.5e-3),
)
# Consolidations look like nodules and hide them: nodules were read worst where there was one. The length is what the
# time at hand allowed.
LAST = Cycle(3, 12_000, fine=True, nodule=3.0, rate=1.2e-3, repeat=True, held=447, fall=855)
_LAST_SEED = 11  # 9 and 10 were spent on runs that were not kept
_WARM = 30


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


def _schedule(optimiser: torch.optim.Optimizer, cycle: Cycle, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the course of the learning rate over a cycle with `steps` steps in a pass."""
    held = cycle.held
    if held is None:
        return torch.optim.lr_scheduler.OneCycleLR(optimiser, cycle.rate, cycle.epochs * steps, pct_start=0.1)

    def share(step: int) -> float:
        return min(1.0, (step + 1) / _WARM) * min(1.0, max(0.0, 1 - (step - held) / cycle.fall))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, share)


def train(part: Radiographs, cycle: Cycle, seed: int, start: Path | None) -> Net:
    """Fit the network over one cycle of the learning rate and return the running average of its weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Net(cycle.fine)
    if start is not None:  # weights of an earlier cycle may lack the finer head
        net.load_state_dict(torch.load(start, weights_only=True), strict=False)
    net = net.to(memory_format=torch.channels_last)
    mean = copy.deepcopy(net).eval()
    pool = np.arange(cycle.radiographs)
    if cycle.repeat:
        pool = np.concatenate([pool, np.flatnonzero(part.labels[: cycle.radiographs, 1])])
    steps = len(pool) // _BATCH
    last = cycle.epochs * steps if cycle.held is None else cycle.held + cycle.fall
    weights = torch.tensor([cycle.nodule, 1, 1, 1, 1])
    optimiser = torch.optim.AdamW(net.parameters(), lr=cycle.rate, weight_decay=0.02)
    schedule = _schedule(optimiser, cycle, steps)
    step = 0
    for epoch in range(cycle.stop or cycle.epochs):
        began, total = time.monotonic(), 0.0
        order = rng.permutation(pool)
        for k in range(min(steps, last - step)):
            chosen = order[k * _BATCH : (k + 1) * _BATCH]
            image = torch.from_numpy(part.images[chosen]).float().unsqueeze(1) / 255
            stack = moved(torch.cat([image, _discs(part, chosen)], dim=1))
            target = torch.from_numpy(part.labels[chosen]).float()
            place = nn.functional.max_pool2d(stack[:, 1:], 4 if cycle.fine else 8)
            target[:, 0] *= (place.amax(dim=(1, 2, 3)) > 0.3).float()
            with torch.autocast("cpu", torch.bfloat16):
                logits, places = net(toned(stack[:, :1]).contiguous(memory_format=torch.channels_last))
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target, weight=weights)
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
        print(f"epoch {epoch} loss {total / (k + 1):.4f} in {time.monotonic() - began:.0f} s", flush=True)
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


def _mean_of(paths: Sequence[Path]) -> Net:
    """Return the network whose weights are the mean of those held at `paths`."""
    held = [torch.load(path, weights_only=True) for path in paths]
    net = Net()
    net.load_state_dict({k: (sum(h[k].double() for h in held) / len(held)).to(v.dtype) for k, v in held[0].items()})
    return net.eval()


def main() -> None:
    """Train, export, choose thresholds, and print what the card needs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--done", type=int, default=0, help="cycles that an earlier run completed, each twin's counted")
    given = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order round otherwise
    part = load("train", CACHE)
    runs = [(cycle, number, number - 1) for number, cycle in enumerate(CYCLES)]
    shared = len(CYCLES)
    for k, cycle in enumerate(TWINS):
        for twin in range(2):
            number = shared + 2 * k + twin
            runs.append((cycle, number, number - 2 if k else shared - 1))
    weights = [CACHE / f"cycle-{number}.pt" for _, number, _ in runs]
    for cycle, number, before in runs:
        if number >= given.done:
            start = weights[before] if before >= 0 else None
            torch.save(train(part, cycle, given.seed + number, start).state_dict(), weights[number])
    start, final = CACHE / "twins.pt", CACHE / "last.pt"
    torch.save(_mean_of(weights[-2:]).state_dict(), start)
    if given.done <= len(weights):
        torch.save(train(part, LAST, given.seed + _LAST_SEED, start).state_dict(), final)
    export(_mean_of([final]), given.model)
    held = load("validation", CACHE)
    probabilities = predict(given.model, held.images)
    chosen = {}
    for i, name in enumerate(FINDINGS):
        chosen[name] = round(youden(held.labels[:, i], probabilities[:, i]), 3)
        print(f"{name}: validation AUC {auc(held.labels[:, i], probabilities[:, i]):.3f}, threshold {chosen[name]}")
    (CACHE / "thresholds.json").write_text(json.dumps(chosen, indent=1) + "\n")


if __name__ == "__main__":
    main()
