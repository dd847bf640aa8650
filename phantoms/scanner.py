"""Turn a painted volume into what a CT scanner would store: kernel, noise, streaks, table, field of view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from phantoms.canvas import Canvas, smooth_noise


@dataclass(frozen=True)
class ScanStyle:
    """How the scanner sees.

    Attributes
    ----------
    blur_mm
        Standard deviation of the in-plane point spread.
    overshoot
        Strength of edge enhancement, 0 for a soft kernel, about 1.5 for a sharp lung kernel.
    noise
        Standard deviation of the noise in HU at 0.7 mm pixels and 5 mm slices.
    grain_mm
        Correlation length of the noise; small for sharp kernels.
    streaks
        Strength of horizontal streaks (beam hardening, shoulders), HU.
    thick_mm
        Slice thickness beyond the slice spacing.
    offset
        Error of the HU scale (HU).
    padding
        Value outside the round field of view, or None for a square one.
    """

    blur_mm: float = 0.6
    overshoot: float = 0.0
    noise: float = 12.0
    grain_mm: float = 0.7
    streaks: float = 6.0
    thick_mm: float = 0.0
    offset: float = 0.0
    padding: int | None = None


def draw_style(rng: np.random.Generator) -> ScanStyle:
    """Return a random scanner and kernel."""
    sharp = rng.random() < 0.4
    return ScanStyle(
        blur_mm=float(rng.uniform(0.3, 0.7) if sharp else rng.uniform(0.5, 1.3)),
        overshoot=float(rng.uniform(0.3, 1.6) if sharp else rng.uniform(0, 0.3)),
        noise=float(rng.uniform(25, 110) if sharp else rng.uniform(6, 40)),
        grain_mm=float(rng.uniform(0.4, 0.8) if sharp else rng.uniform(0.6, 1.4)),
        streaks=float(rng.choice([0.0, 5.0, 15.0, 40.0], p=[0.3, 0.4, 0.2, 0.1])),
        thick_mm=float(rng.choice([0.0, 0.0, 3.0, 6.0])),
        offset=float(rng.normal(0, 8)),
        padding=None if rng.random() < 0.55 else int(rng.choice([-2000, -3024, -1024, -2048, -1500, 0])),
    )


def scan(canvas: Canvas, style: ScanStyle, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Return the stored volume, int16 [slice, row, column] in HU."""
    dz, dy, dx = canvas.voxel
    hu = _blur(canvas.hu, (style.thick_mm / 2.5 / dz, style.blur_mm / dy, style.blur_mm / dx))
    if style.overshoot > 0:
        wide = ndimage.gaussian_filter(hu, (0, 1.2 / dy, 1.2 / dx), truncate=2.5)
        hu += np.float32(style.overshoot) * (hu - wide)
    hu += np.float32(style.offset)
    hu += _noise(canvas, style, rng)
    hu = np.maximum(hu, -1024)
    if style.padding is not None:
        n, m = hu.shape[1:]
        r = np.hypot(*np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, m), indexing="ij"))
        hu[:, r > 1.0] = style.padding
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)


def _blur(hu: npt.NDArray[np.float32], sigma: tuple[float, ...]) -> npt.NDArray[np.float32]:
    kept = [s if s > 0.2 else 0.0 for s in sigma]
    if not any(kept):
        return hu.copy()
    return np.asarray(ndimage.gaussian_filter(hu, kept, truncate=2.5, mode="nearest"), dtype=np.float32)


def _noise(canvas: Canvas, style: ScanStyle, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    dz, dy, dx = canvas.voxel
    shape = canvas.hu.shape
    # Dose: more tissue in the way, more noise; a wide slab of shoulders is the worst.
    dense = (canvas.hu > -300).mean((1, 2)) * canvas.hu.shape[1] * dy * canvas.hu.shape[2] * dx
    factor = np.clip(dense / 60000, 0.4, 2.2).astype(np.float32)[:, None, None]
    # Averaging over a voxel: noise falls with the root of its volume, but not below the grain.
    area = max(dy * dx, style.grain_mm**2)
    level = style.noise * np.sqrt(0.7 * 0.7 / area) ** 0.9 * np.sqrt(5.0 / max(dz, 0.5)) ** 0.8
    white = rng.standard_normal(shape, dtype=np.float32)
    s = style.grain_mm / dy / 1.6
    if s > 0.25:
        white = ndimage.gaussian_filter(white, (0, s, s), truncate=2.5)
        white /= max(float(white.std()), 1e-6)
    out = np.asarray(level * factor * white, dtype=np.float32)
    if style.streaks > 0:
        rows = rng.standard_normal((shape[0], shape[1], 1), dtype=np.float32)
        rows = ndimage.gaussian_filter1d(rows, 0.8, axis=1)
        out += style.streaks * factor * rows * (canvas.hu > -900)
        out += 0.5 * style.streaks * smooth_noise(rng, shape, canvas.voxel, 60.0)
    return out
