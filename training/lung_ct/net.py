"""The coarse network of the lung model: a small U-Net that sees one slice and its neighbours above and below."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

# The finest level is kept thin: most of the time goes there, most of the knowledge lies below.
WIDTHS = (8, 20, 36, 56, 72)
# Neighbours, in coarse slices of 5 mm: enough to tell stomach from lung and trachea from bronchus.
OFFSETS = (-4, -2, -1, 0, 1, 2, 4)
CLASSES = 4
HU_LOW, HU_HIGH, HU_MIDDLE, HU_SCALE = -1050.0, 250.0, -400.0, 650.0


class Block(nn.Module):
    """3 x 3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs if k == 0 else outputs, outputs, 3, padding=1, bias=False) for k in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features of the same height and width."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        return x


class LungNet(nn.Module):
    """U-Net over [slice, neighbour, row, column]; rows and columns are multiples of 16.

    Gives logits [slice, class, row, column] of tissue, right lung, left lung and other air.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (len(OFFSETS), *WIDTHS)
        self.down = nn.ModuleList(Block(inputs[k], w, 1 if k == 0 else 2) for k, w in enumerate(WIDTHS))
        self.up = nn.ModuleList(Block(a + b, a, 1 if k == 0 else 2) for k, (a, b) in enumerate(pairwise(WIDTHS)))
        self.head = nn.Conv2d(WIDTHS[0], CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else functional.max_pool2d(x, 2))
            kept.append(x)
        for level in range(len(self.up) - 1, -1, -1):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = self.up[level](torch.cat([kept[level], x], 1))
        logits: torch.Tensor = self.head(x)
        return logits


def normalise(hu: torch.Tensor) -> torch.Tensor:
    """Map HU to the network's range."""
    return (hu.clamp(HU_LOW, HU_HIGH) - HU_MIDDLE) / HU_SCALE
