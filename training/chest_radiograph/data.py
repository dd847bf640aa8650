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


@dataclass(frozen=True)
class Part:
    """One set: the first seed, how many, the style, the rows of the images before they are read, and what they show.

    `healthy` is the share without any finding; in the others each finding is present on its own with its `prevalence`.
    """

    first: int
    count: int
    style: str
    rows: int
    healthy: float
    prevalence: tuple[float, ...]


PARTS = {
    "train": Part(0, 12_000, "training", 320, 0.1, (0.55, 0.35, 0.4, 0.3, 0.3)),
    "validation": Part(500_000, 600, "training", 320, 0.2, (0.3,) * 5),
    "test": Part(1_300_000, 1500, "test", 400, 0.2, (0.3,) * 5),
}


@dataclass(frozen=True)
class Radiographs:
    """`images` uint8 [n, 256, 256]; `labels` bool, `sizes` mm (0: absent), `places` row and column, [n, 5, ...]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    sizes: NDArray[np.float32]
    places: NDArray[np.float32]


def _findings(part: Part, rng: np.random.Generator) -> list[str]:
    if rng.random() < part.healthy:
        return []
    return [name for name, share in zip(FINDINGS, part.prevalence, strict=True) if rng.random() < share]


def one(seed: int, part: Part) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Make one model input [256, 256], the sizes [5] and the places [5, 2] in pixels of the input."""
    rng = np.random.default_rng([seed, 7])
    shape = (part.rows, int(part.rows * rng.uniform(0.82, 1.0)))
    phantom = make_radiograph(
        seed, _findings(part, rng), shape=shape, style={"training": TRAINING, "test": TEST}[part.style]
    )
    sizes, places = np.zeros(5, np.float32), np.zeros((5, 2), np.float32)
    for i, name in enumerate(FINDINGS):
        truth = phantom.truth[name]
        if truth is not None:
            sizes[i] = truth.size_mm
            pad = (max(shape) - shape[0]) / 2, (max(shape) - shape[1]) / 2
            places[i] = [(truth.row + pad[0]) * SIZE / max(shape), (truth.column + pad[1]) * SIZE / max(shape)]
    return radiograph_input(phantom.pixels, SIZE), sizes, places


def _chunk(job: tuple[int, int, Part]) -> Radiographs:
    first, count, part = job
    made = [one(seed, part) for seed in range(first, first + count)]
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
        (first, min(_CHUNK, part.first + part.count - first), part)
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
