"""Pictures that are frontal radiographs of a human chest, and pictures that are not; all of them synthetic.

Chests come from `phantoms.radiograph` (analytic) and from projections of the CT volumes of `phantoms.thorax`. What is
no frontal chest: side views, heads, abdomens, slices, chests turned or as a negative, limbs drawn as rods, and
patterns. Each is shown in many ways: cropped, padded, turned a little, stretched, with other windows, noise and blur.
No picture of a patient or an animal is among them.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.plausible import decimated, evidence, locate
from phantoms.radiograph import FINDINGS, TEST, TRAINING, make_radiograph
from phantoms.thorax import make_head, make_thorax
from training.plausibility.projection import projected

__all__ = ["Pictures", "load", "varied"]

Picture = NDArray[np.float32]
Rng = np.random.Generator


@dataclass(frozen=True)
class Pictures:
    """`seen` [n, values] is what the network sees, `chest` whether it is one, `kind` where it came from."""

    seen: NDArray[np.float32]
    chest: NDArray[np.bool_]
    kind: NDArray[np.str_]


def varied(image: NDArray[Any], rng: Rng) -> Picture:
    """Show a picture in another way; what it shows stays the same (but for the side)."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter, rotate

    shown = _levels(np.asarray(image, np.float32), 0.5, 99.5)
    if rng.random() < 0.5:
        shown = shown[:, ::-1]
    if rng.random() < 0.6:
        cut = [[int(rng.uniform(0, 0.13) * length) for _ in range(2)] for length in shown.shape]
        shown = shown[cut[0][0] : shown.shape[0] - cut[0][1], cut[1][0] : shown.shape[1] - cut[1][1]]
    width = max(16, int(200 * shown.shape[1] / shown.shape[0] * rng.uniform(0.82, 1.22)))
    small = Image.fromarray(np.ascontiguousarray(shown)).resize((min(width, 500), 200), Image.Resampling.BOX)
    shown = np.asarray(small, np.float32)
    if rng.random() < 0.6:
        beyond = "nearest" if rng.random() < 0.5 else "constant"
        shown = rotate(shown, rng.uniform(-9, 9), reshape=False, order=1, mode=beyond)
    if rng.random() < 0.3:  # uneven exposure
        y, x = (np.linspace(-1, 1, length, dtype=np.float32) for length in shown.shape)
        shown = shown + rng.uniform(-0.3, 0.3) * y[:, None] + rng.uniform(-0.3, 0.3) * x[None]
    shown = np.clip(shown, 0, 1) ** np.float32(np.exp(rng.uniform(-0.7, 0.7)))
    shown = _levels(shown, rng.uniform(0, 6), 100 - rng.uniform(0, 6))
    if rng.random() < 0.3:  # a collimator's border, an edge of film, a label
        border = [(int(rng.uniform(0, 0.15) * length), int(rng.uniform(0, 0.15) * length)) for length in shown.shape]
        shown = np.pad(shown, border, constant_values=float(rng.random() < 0.25))
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.3 else 0):
        top, left = (int(rng.uniform(0, 0.95) * length) for length in shown.shape)
        shown[top : top + int(rng.integers(2, 30)), left : left + int(rng.integers(2, 30))] = float(rng.random() < 0.7)
    if rng.random() < 0.4:
        shown = shown + rng.normal(0, rng.uniform(0, 0.12), shown.shape).astype(np.float32)
    if rng.random() < 0.3:
        shown = gaussian_filter(shown, rng.uniform(0, 3))
    return np.asarray(shown, np.float32)


def _levels(image: Picture, low: float, high: float) -> Picture:
    bottom, top = np.percentile(image, [low, high])
    return np.asarray(np.clip((image - bottom) / max(float(top - bottom), 1e-3), 0, 1), np.float32)


def _opacified(image: Picture, rng: Rng) -> Picture:
    """Whiten part of one side, as disease does."""
    shown = _levels(image, 0.5, 99.5)
    y, x = np.mgrid[0 : shown.shape[0], 0 : shown.shape[1]]
    cy, cx = rng.uniform(0.3, 0.8) * shown.shape[0], rng.choice([0.3, 0.7]) * shown.shape[1]
    radius = rng.uniform(0.08, 0.25) * shown.shape[0]
    cloud = np.exp(-(((y - cy) / radius) ** 2 + ((x - cx) / radius) ** 2) / 2) * rng.uniform(0.2, 0.6)
    return np.asarray(shown + cloud * (1 - shown), np.float32)


def _rods(rng: Rng) -> Picture:
    """Draw limbs and fingers: bright rods in softer sleeves on a dark or bright field."""
    from scipy.ndimage import gaussian_filter

    rows, columns = (int(rng.integers(130, 230)) for _ in range(2))
    y, x = np.mgrid[0:rows, 0:columns]
    image = np.zeros((rows, columns))
    lean = rng.normal(0, 0.15)
    for _ in range(int(rng.integers(1, 6))):
        axis = rng.uniform(0, columns) + (lean + rng.normal(0, 0.1)) * (y - rows / 2)
        half = rng.uniform(0.02, 0.12) * columns
        distance = np.abs(x - axis)
        for width, weight in ((half * rng.uniform(1.3, 3), 0.35), (half, 0.5)):
            image += weight * np.sqrt(np.clip(1 - (distance / width) ** 2, 0, 1))
    image = gaussian_filter(image, rng.uniform(0.5, 3))
    return np.asarray(image if rng.random() < 0.8 else -image, np.float32)


def _pattern(rng: Rng) -> Picture:
    """Draw what no radiograph is: noise of every grain, shapes, stripes, boards; often with a mirror symmetry."""
    from scipy.ndimage import gaussian_filter

    rows = int(rng.integers(120, 220))
    columns = int(rows * rng.uniform(0.7, 1.3))
    y, x = np.mgrid[0:rows, 0:columns]
    kind = rng.integers(8)
    image = np.zeros((rows, columns))
    if kind == 0:
        image = gaussian_filter(rng.normal(size=image.shape), np.exp(rng.uniform(0, 3.5)))
    elif kind == 1:
        for _ in range(int(rng.integers(2, 10))):
            cy, cx = rng.uniform(0, rows), rng.uniform(0, columns)
            ry, rx = rng.uniform(0.05, 0.45) * rows, rng.uniform(0.05, 0.45) * columns
            image[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = rng.random()
    elif kind == 2:
        for _ in range(int(rng.integers(2, 20))):
            top, left = rng.integers(rows), rng.integers(columns)
            image[top : top + rng.integers(5, rows), left : left + rng.integers(5, columns)] = rng.random()
    elif kind == 3:
        angle = rng.uniform(0, np.pi)
        image = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / rng.uniform(6, 120))
    elif kind == 4:  # the spectrum of photographs
        frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)[None]) + 1e-3
        spectrum = np.fft.fft2(rng.normal(size=image.shape)) / frequency ** rng.uniform(0.8, 2)
        image = np.real(np.fft.ifft2(spectrum))
    elif kind == 5:
        image = ((y // rng.integers(5, 60) + x // rng.integers(5, 60)) % 2).astype(float)
    elif kind == 6:
        cy, cx = rng.uniform(0.3, 0.7) * rows, rng.uniform(0.3, 0.7) * columns
        image = rng.choice([-1, 1]) * np.exp(
            -(((x - cx) / columns) ** 2 + ((y - cy) / rows) ** 2) / rng.uniform(0.01, 0.4)
        )
    else:  # a body: an ellipse with bright and dark spots on a black field, as slices and whole-body pictures
        cy, cx = rng.uniform(0.4, 0.6) * rows, rng.uniform(0.4, 0.6) * columns
        ry, rx = rng.uniform(0.2, 0.55) * rows, rng.uniform(0.08, 0.5) * columns
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        spots = gaussian_filter(rng.normal(size=image.shape), np.exp(rng.uniform(1, 3)))
        image = np.where(inside, 0.5 + 0.2 * spots / max(float(spots.std()), 1e-6), 0)
    if rng.random() < 0.4:
        image = image + image[:, ::-1]
    return np.asarray(image, np.float32)


class _Collected:
    """What is gathered on the way."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.seen: list[NDArray[np.float32]] = []
        self.chest: list[bool] = []
        self.kind: list[str] = []

    def add(self, kind: str, image: NDArray[Any], *, chest: bool = False, times: int = 1) -> None:
        """Show a picture some times over."""
        for _ in range(times):
            small = decimated(varied(image, self.rng))
            if small is not None:
                self.seen.append(evidence(small, locate(small)[0]))
                self.chest.append(chest)
                self.kind.append(kind)

    def chest_of(self, kind: str, image: NDArray[Any], times: int) -> None:
        """Show a chest as it is, whitened, turned and as a negative."""
        rng = self.rng
        self.add(kind, image, chest=True, times=times)
        self.add(f"{kind}, opacified", _opacified(image, rng), chest=True, times=max(1, times // 2))
        for quarter in (1, 2, 3):
            self.add("turned", np.rot90(image, quarter), times=max(1, times // 6))
        self.add("negative", -np.asarray(image, np.float32), times=max(1, times // 4))


def _analytic(seed: int) -> _Collected:
    rng = np.random.default_rng([seed, 3])
    out = _Collected(rng)
    for number in range(seed * 50, seed * 50 + 50):
        findings = [name for name in FINDINGS if rng.random() < 0.3]
        shape = (256, int(256 * rng.uniform(0.82, 1)))
        style = TRAINING if number % 2 else TEST
        out.chest_of("analytic", make_radiograph(2_000_000 + number, findings, shape=shape, style=style).pixels, 3)
    for _ in range(250):
        out.add("pattern", _pattern(rng))
    for _ in range(60):
        out.add("limbs", _rods(rng))
    return out


def _from_volumes(seed: int) -> _Collected:
    rng = np.random.default_rng([seed, 4])
    out = _Collected(rng)
    for number in range(seed * 7, seed * 7 + 7):
        volume = make_thorax(3_000_000 + number, shape=(72, 160, 160), spacing=(4.0, 2.4, 2.4))
        head_first = volume.hu[::-1]
        out.chest_of("projected", projected(head_first, (4.0, 2.4), "frontal"), 12)
        side = projected(head_first, (4.0, 2.4), "lateral")
        out.add("side view", side, times=16)
        for quarter in (1, 2, 3):
            out.add("side view, turned", np.rot90(side, quarter), times=4)
        for slice_ in volume.hu[:: int(rng.integers(5, 9))]:
            low, width = ((-1000, 1500), (-1024, 3000), (-160, 400))[rng.integers(3)]
            out.add("slice", np.rot90(np.clip((slice_ - low) / width, 0, 1), rng.choice([0, 0, 0, 1, 2, 3])))
    for number in range(seed * 2, seed * 2 + 2):
        head = make_head(3_100_000 + number, shape=(50, 128, 128), spacing=(5.0, 2.0, 2.0))
        belly = make_thorax(3_200_000 + number, shape=(60, 128, 128), spacing=(5.0, 3.0, 3.0), region="abdomen")
        for kind, hu, spacing in (("head", head.hu, (5.0, 2.0)), ("abdomen", belly.hu, (5.0, 3.0))):
            for view in ("frontal", "lateral"):
                image = projected(hu[::-1], spacing, view)
                out.add(kind, image, times=12)
                out.add(f"{kind}, turned", np.rot90(image, int(rng.integers(1, 4))), times=4)
            out.add("slice", np.clip((hu[len(hu) // 2] + 160.0) / 400, 0, 1), times=2)
    return out


def _part(job: tuple[bool, int]) -> Pictures:
    analytic, seed = job
    out = _analytic(seed) if analytic else _from_volumes(seed)
    return Pictures(np.stack(out.seen), np.array(out.chest), np.array(out.kind))


def load(first: int, count: int, cache: Path, workers: int = 2) -> Pictures:
    """Make parts `first` to `first + count` of the set, or read them from `cache`.

    Delete the cache after a change to the generators or to the evidence.
    """
    path = cache / f"{first}-{count}.npz"
    if not path.exists():
        jobs = [(analytic, seed) for seed in range(first, first + count) for analytic in (True, False)]
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(_part, jobs))
        cache.mkdir(parents=True, exist_ok=True)
        seen, chest, kind = (np.concatenate([getattr(p, name) for p in parts]) for name in ("seen", "chest", "kind"))
        np.savez(path, seen=seen, chest=chest, kind=kind)
    with np.load(path, allow_pickle=False) as held:
        return Pictures(held["seen"], held["chest"], held["kind"])
