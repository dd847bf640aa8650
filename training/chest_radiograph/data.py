"""Draw sets of synthetic radiographs with labels, in the form that the model reads.

Training and validation come from the style `TRAINING`, the test set from `TEST`; seeds never overlap.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.preprocess import radiograph_input
from phantoms.radiograph import FINDINGS, TEST, TRAINING, make_radiograph

SIZE = 256
_CHUNK = 50
_PREVALENCE = 0.3
_HEALTHY = 0.2


@dataclass(frozen=True)
class Part:
    """One set: the first seed, how many, the style and the rows of the images before they are read."""

    first: int
    count: int
    style: str
    rows: int


PARTS = {
    "train": Part(0, 7000, "training", 320),
    "validation": Part(500_000, 1000, "training", 320),
    "test": Part(1_000_000, 1500, "test", 512),
}


@dataclass(frozen=True)
class Radiographs:
    """`images` uint8 [n, 256, 256]; `labels` bool, `sizes` mm (0: absent), `places` row and column, [n, 5, ...]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    sizes: NDArray[np.float32]
    places: NDArray[np.float32]


def draw_findings(rng: np.random.Generator) -> list[str]:
    """Choose which findings a radiograph has: none in a fifth, else each on its own with a probability of 0.3."""
    if rng.random() < _HEALTHY:
        return []
    return [name for name in FINDINGS if rng.random() < _PREVALENCE]


def one(seed: int, style_name: str, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Make one model input [256, 256], the sizes [5] and the places [5, 2] in pixels of the input."""
    rng = np.random.default_rng([seed, 7])
    shape = (rows, int(rows * rng.uniform(0.82, 1.0)))
    phantom = make_radiograph(
        seed, draw_findings(rng), shape=shape, style={"training": TRAINING, "test": TEST}[style_name]
    )
    sizes, places = np.zeros(5, np.float32), np.zeros((5, 2), np.float32)
    for i, name in enumerate(FINDINGS):
        truth = phantom.truth[name]
        if truth is not None:
            sizes[i] = truth.size_mm
            pad = (max(shape) - shape[0]) / 2, (max(shape) - shape[1]) / 2
            places[i] = [(truth.row + pad[0]) * SIZE / max(shape), (truth.column + pad[1]) * SIZE / max(shape)]
    return radiograph_input(phantom.pixels, SIZE), sizes, places


def _chunk(job: tuple[int, int, str, int]) -> Radiographs:
    first, count, style, rows = job
    made = [one(seed, style, rows) for seed in range(first, first + count)]
    images = np.stack([np.rint(image * 255).astype(np.uint8) for image, _, _ in made])
    sizes = np.stack([s for _, s, _ in made])
    return Radiographs(images, sizes > 0, sizes, np.stack([p for _, _, p in made]))


def load(name: str, cache: Path, workers: int = 2) -> Radiographs:
    """Make the set `name` of `PARTS`, or read it from `cache` when it was made before.

    Delete the cache after a change to the generator: it is recognised by the name and the count only.
    """
    part = PARTS[name]
    path = cache / f"{name}-{part.count}.npz"
    if path.exists():
        with np.load(path) as held:
            return Radiographs(held["images"], held["sizes"] > 0, held["sizes"], held["places"])
    jobs = [
        (first, min(_CHUNK, part.first + part.count - first), part.style, part.rows)
        for first in range(part.first, part.first + part.count, _CHUNK)
    ]
    with ProcessPoolExecutor(workers) as pool:
        chunks = list(pool.map(_chunk, jobs))
    images, sizes, places = (np.concatenate([getattr(c, f) for c in chunks]) for f in ("images", "sizes", "places"))
    cache.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=images, sizes=sizes, places=places)
    return Radiographs(images, sizes > 0, sizes, places)


if __name__ == "__main__":
    for key in PARTS:
        print(key, load(key, Path("build/chest-radiograph")).labels.mean(axis=0).round(3))
