"""The network of `chest-radiograph-demo`: a small residual net with a map of where nodules are.

A nodule covers few pixels and would drown in a mean over the image, so one head looks for it place by place and
learns from its position: first at an eighth of the input's resolution, then, with what that saw around every place,
at a quarter. The other findings are read from the whole image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _unit(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x`."""
        return torch.relu(x + self.second(self.first(x)))


class Net(nn.Module):
    """Image [n, 1, 256, 256] in 0..1 to five logits [n, 5] and the logits of the nodule map [n, 1, side, side].

    The map's side is 64 places with the finer head (`fine`) and 32 without.
    """

    def __init__(self, fine: bool = True) -> None:
        super().__init__()
        self.fine = fine
        # Blocks of 2 x 2 pixels become channels: no layer runs at the full resolution, which is what a CPU pays for.
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _unit(4, 16), _unit(16, 32, 2), _unit(32, 32))
        self.eighth = nn.Sequential(_unit(32, 48, 2), Residual(48))
        self.sixteenth = nn.Sequential(_unit(48, 64, 2), Residual(64))
        self.deep = nn.Sequential(_unit(64, 96, 2), Residual(96))
        self.context = nn.Conv2d(64, 48, 1)
        self.place = nn.Sequential(_unit(48, 24), nn.Conv2d(24, 1, 1))
        nn.init.constant_(self.place[1].bias, -4.0)  # nearly nowhere is a nodule
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.drop = nn.Dropout(0.2)
        self.whole = nn.Linear(2 * 96 + 2, 5)
        if fine:
            self.quarter = Residual(32)
            self.around = nn.Conv2d(48, 32, 1)
            self.finer = nn.Sequential(Residual(32), nn.Conv2d(32, 1, 1))
            # Starts at 0, so that the net begins with the answers of the coarse weights that are put into it.
            nn.init.zeros_(self.finer[1].weight)
            nn.init.zeros_(self.finer[1].bias)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the findings and of the nodule map."""
        quarter = self.stem(2 * image - 1)
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        deep = self.deep(sixteenth)
        seen = torch.relu(eighth + self.up(self.context(sixteenth)))
        places = self.place(seen)
        if self.fine:
            detail = torch.relu(self.quarter(quarter) + self.up(self.around(seen)))
            places = self.up(places) + self.finer(detail)
        peak = places.flatten(1).amax(dim=1, keepdim=True)
        soft = torch.logsumexp(places.flatten(1), dim=1, keepdim=True)
        features = self.drop(torch.cat([deep.mean(dim=(2, 3)), deep.amax(dim=(2, 3))], dim=1))
        return self.whole(torch.cat([features, peak, soft], dim=1)), places


class Shipped(nn.Module):
    """The network as it is shipped: image in, five probabilities out."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities [n, 5]."""
        logits, _ = self.net(image)
        return torch.sigmoid(logits)
