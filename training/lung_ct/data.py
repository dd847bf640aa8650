"""Make the training volumes of the lung model: synthetic phantoms on the network's coarse grid, kept on disk."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

PIXEL_MM = 3.0
SLICE_MM = 5.0
TISSUE, RIGHT, LEFT, OTHER_AIR = range(4)


def make_volume(seed: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Return one training volume.

    Parameters
    ----------
    seed
        Same seed, same volume.

    Returns
    -------
    hu
        int16 [slice, row, column] on a grid of about 5 x 3 x 3 mm.
    classes
        uint8, same shape: 0 tissue, 1 right lung, 2 left lung, 3 air that is not lung.
    """
    from phantoms.thorax import make_head, make_thorax

    rng = np.random.default_rng([seed, 77])
    pixel = PIXEL_MM * float(rng.uniform(0.9, 1.1))
    spacing = (SLICE_MM, pixel, pixel * float(rng.uniform(0.97, 1.03)))
    kind = rng.random()
    if kind < 0.10:
        phantom = make_head(seed, shape=(32, 96, 96), spacing=spacing)
    elif kind < 0.17:
        phantom = make_thorax(seed, shape=(32, 128, 128), spacing=spacing, region="abdomen")
    else:
        phantom = make_thorax(seed, shape=(48, 128, 128), spacing=spacing, region="any" if kind < 0.7 else "lungs")
    classes = phantom.labels.copy()
    classes[phantom.other_air] = OTHER_AIR
    return phantom.hu, classes


def _save(task: tuple[int, Path]) -> None:
    seed, path = task
    if not path.exists():
        hu, classes = make_volume(seed)
        part = path.with_suffix(".part.npz")
        np.savez(part, hu=hu, classes=classes)
        part.rename(path)


def prepare(folder: Path, count: int, first_seed: int = 1000) -> list[Path]:
    """Write `count` volumes to `folder` (those that are there already stay) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(first_seed + k, folder / f"{first_seed + k}.npz") for k in range(count)]
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        for _ in pool.map(_save, tasks, chunksize=4):
            pass
    return [path for _, path in tasks]
