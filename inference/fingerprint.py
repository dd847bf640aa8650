"""A perceptual hash of a radiograph: alike for the same picture at another size or compression, else unlike.

The signs of the low frequencies of a picture (Zauner, *Implementation and benchmarking of perceptual image hash
functions*, 2010) hardly change with its size, its compression or its contrast. Chest radiographs share the lowest ones,
so more of them are taken than usual: 16 by 16.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["fingerprint"]

_EDGE = 64
_FREQUENCIES = 16


def fingerprint(pixels: npt.NDArray[Any]) -> str:
    """Return the hash of a prepared picture.

    Parameters
    ----------
    pixels
        (size, size), any real type; only what is brighter than what counts.

    Returns
    -------
    str
        256 bits as 64 hexadecimal digits.
    """
    small = _reduced(np.asarray(pixels, np.float32))
    transform = _basis()
    frequencies = (transform @ small @ transform.T).ravel()
    # The first one is the mean, which says nothing of the picture; its bit is always 0.
    bits = frequencies > np.median(frequencies[1:])
    bits[0] = False
    return np.packbits(bits).tobytes().hex()


def _reduced(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Average over a grid of 64 by 64, whatever the size."""
    rows, columns = pixels.shape
    return np.asarray(_averaging(rows) @ pixels @ _averaging(columns).T, np.float32)


@lru_cache(maxsize=8)
def _averaging(size: int) -> npt.NDArray[np.float32]:
    """Return (64, size): each row averages the share of the pixels that one cell covers."""
    edges = np.linspace(0, size, _EDGE + 1)
    starts, ends = edges[:-1, None], edges[1:, None]
    pixel = np.arange(size)[None]
    covered = np.clip(np.minimum(ends, pixel + 1) - np.maximum(starts, pixel), 0, None)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True), np.float32)


@cache
def _basis() -> npt.NDArray[np.float32]:
    """Return the lowest 16 vectors of the cosine transform (DCT-II) over 64 points."""
    frequency, place = np.arange(_FREQUENCIES)[:, None], np.arange(_EDGE)[None]
    return np.asarray(np.cos(np.pi * frequency * (2 * place + 1) / (2 * _EDGE)), np.float32)
