"""Train the networks of `inference/plausible.py` and write `inference/plausible.npz`.

Run by `python -m training.plausibility.train` (about a quarter of an hour of two cores, most of it for drawing the
pictures). Chests weigh as much as all other pictures: log odds of 0 are the even balance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.plausibility.data import Pictures, load

CACHE = Path("build/plausibility")
WEIGHTS = Path("inference/plausible.npz")
HIDDEN, NETWORKS, STEPS, BATCH = 24, 4, 1500, 1024


def trained(pictures: Pictures, mean: NDArray[np.float32], seed: int) -> nn.Sequential:
    """Train one network on a bootstrap of the pictures."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(pictures.chest), len(pictures.chest))
    seen = torch.tensor(pictures.seen[drawn] - mean)
    chest = torch.tensor(pictures.chest[drawn].astype(np.float32))
    network = nn.Sequential(nn.Linear(seen.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.3)
    weight = torch.where(chest > 0, (1 - chest).sum() / chest.sum(), torch.ones(()))
    loss = nn.BCEWithLogitsLoss(reduction="none")
    for _ in range(STEPS):
        batch = torch.randint(len(chest), (BATCH,))
        part = seen[batch]
        optimiser.zero_grad()
        # Noise on what is seen keeps the network from leaning on single values.
        odds = network(part + 0.3 * torch.randn_like(part))[:, 0]
        (loss(odds, chest[batch]) * weight[batch]).mean().backward()
        optimiser.step()
    return network


def main() -> None:
    """Train, print what the validation set says, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.set_num_threads(1)
    training, validation = load(0, 8, CACHE), load(100, 3, CACHE)
    mean = training.seen.mean(axis=0)
    networks = [trained(training, mean, seed) for seed in range(NETWORKS)]
    with torch.no_grad():
        odds = torch.stack([n(torch.tensor(validation.seen - mean))[:, 0] for n in networks]).mean(0).numpy()
    for kind in sorted(set(validation.kind)):
        of_kind = validation.kind == kind
        print(f"{kind:22s} {of_kind.sum():5d}  taken for a chest {(odds[of_kind] > 0).mean():.3f}")
    first, second = zip(*((n[0], n[2]) for n in networks), strict=True)
    np.savez_compressed(
        WEIGHTS,
        mean=mean.astype(np.float16),
        first=np.stack([layer.weight.detach().numpy() for layer in first]).astype(np.float16),
        first_bias=np.stack([layer.bias.detach().numpy() for layer in first]),
        second=np.stack([layer.weight.detach().numpy()[0] for layer in second]),
        second_bias=np.stack([layer.bias.detach().numpy()[0] for layer in second]),
    )


if __name__ == "__main__":
    main()
