"""Vary training radiographs: position, tone, sharpness, noise and dark borders."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _between(n: int, low: float, high: float) -> Tensor:
    return torch.empty(n, 1, 1, 1).uniform_(low, high)


def moved(stack: Tensor) -> Tensor:
    """Turn by up to 8 degrees, scale by up to 14 % and shift by up to 6 % of the image [n, channels, size, size]."""
    n = len(stack)
    angle = torch.empty(n).uniform_(-0.14, 0.14)
    zoom = torch.empty(n).uniform_(-0.14, 0.14).exp()
    aspect = torch.empty(n).uniform_(-0.04, 0.04).exp()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = angle.cos() * zoom * aspect
    theta[:, 0, 1] = -angle.sin() * zoom * aspect
    theta[:, 1, 0] = angle.sin() * zoom
    theta[:, 1, 1] = angle.cos() * zoom
    theta[:, :, 2].uniform_(-0.12, 0.12)
    grid = nn.functional.affine_grid(theta, list(stack.shape), align_corners=False)
    return nn.functional.grid_sample(stack, grid, padding_mode="zeros", align_corners=False)


def toned(image: Tensor) -> Tensor:
    """Vary contrast, sharpness, noise and borders of images [n, 1, size, size] in 0..1."""
    n, _, size, _ = image.shape
    image = image.clamp(0, 1) ** torch.exp(_between(n, -0.5, 0.5))
    half = torch.randperm(n)[: n // 2]
    steep, middle = _between(len(half), 2.5, 7), _between(len(half), 0.3, 0.6)
    low, high = torch.sigmoid(-steep * middle), torch.sigmoid(steep * (1 - middle))
    image[half] = (torch.sigmoid(steep * (image[half] - middle)) - low) / (high - low)
    image = image + _between(n, -0.5, 0.9) * (image - nn.functional.avg_pool2d(image, 5, 1, 2))
    grain = torch.randn_like(image)
    half = torch.randperm(n)[: n // 2]
    grain[half] = 1.7 * nn.functional.avg_pool2d(grain[half], 3, 1, 1)
    image = image + _between(n, 0, 0.045) * grain * (0.4 + image)
    image = _between(n, 0.75, 1.15) * image + _between(n, -0.06, 0.12)
    reach = 0.09 * size
    for axis in (torch.arange(size).view(1, 1, 1, size), torch.arange(size).view(1, 1, size, 1)):
        image = image * ((axis >= _between(n, -reach, reach)) & (axis <= size - 1 - _between(n, -reach, reach)))
    return image.clamp(0, 1)
