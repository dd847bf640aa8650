"""Synthetic frontal chest radiographs with known findings.

A radiograph is computed from an analytic thorax: thickness of soft tissue, lung and bone along every ray, attenuation
by Beer and Lambert's law, scatter, quantum noise, grid lines, a display curve and collimation. Rows run from head to
foot, columns from the patient's right (column 0) to the left; bright is dense (MONOCHROME2). No pixel stems from
a patient.

Two parameter families, `TRAINING` and `TEST`, differ in pose, noise, contrast, collimation and size of the findings.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phantoms import _thorax as anatomy
from phantoms import _thorax_findings as disease
from phantoms._thorax import LEFT, RIGHT, Array, Canvas, Thorax
from phantoms._thorax_findings import Chest, Truth
from phantoms.radiograph_style import TEST, TRAINING, Interval, Style, draw

__all__ = ["FINDINGS", "TEST", "TRAINING", "RadiographPhantom", "Style", "Truth", "make_radiograph"]

FINDINGS = ("nodule", "consolidation", "pleural effusion", "pneumothorax", "enlarged heart shadow")
"""Names of the findings, in the order of the model's outputs."""

_HEIGHT_MM = 400.0
_SOFT, _BONE = 0.0175, 0.034  # attenuation per mm at about 120 kV; bone is what it adds to the tissue it displaces
_FULL = 4095


@dataclass(frozen=True)
class RadiographPhantom:
    """One synthetic radiograph.

    `pixels` is uint16 [rows, columns] of 12 bits, bright where dense; `truth` has a key for every entry of `FINDINGS`,
    None where the finding is absent; `spacing` is mm a pixel at the detector; `cardiothoracic_ratio` is the heart's
    width over the inner width of the rib cage.
    """

    pixels: NDArray[np.uint16]
    truth: dict[str, Truth | None]
    spacing: float
    cardiothoracic_ratio: float


def make_radiograph(
    seed: int, findings: Collection[str] = (), *, shape: tuple[int, int] = (1024, 896), style: Style = TRAINING
) -> RadiographPhantom:
    """Make one frontal chest radiograph with the given findings.

    Parameters
    ----------
    seed
        The same seed, findings, shape and style give the same pixels.
    findings
        Names out of `FINDINGS`; several may occur together.
    shape
        Rows and columns; the field of view is 400 mm high whatever the number of rows.
    style
        Parameter family of pose, exposure and sizes.

    Raises
    ------
    ValueError
        For an unknown finding.
    """
    unknown = set(findings) - set(FINDINGS)
    if unknown:
        raise ValueError(f"unknown findings {sorted(unknown)}; known are {list(FINDINGS)}")
    rng = np.random.default_rng([seed, len(style.name), sum(style.name.encode())])
    big = "enlarged heart shadow" in findings
    thorax = Thorax.draw(
        rng,
        lung_height=draw(rng, style.lung_height_mm),
        ratio=rng.uniform(*(style.enlarged_ratio if big else style.normal_ratio)),
        yaw=draw(rng, style.yaw_mm),
        tilt=draw(rng, style.tilt_mm),
    )
    canvas = _canvas(shape, style, rng)
    chest = Chest(
        canvas=canvas,
        thorax=thorax,
        lungs={side: anatomy.lung(canvas, thorax, side) for side in (RIGHT, LEFT)},
        vessels={side: anatomy.vessels(canvas, thorax, rng, side) for side in (RIGHT, LEFT)},
        soft=np.zeros(shape, np.float32),
    )
    heart = anatomy.heart(canvas, thorax)
    for side in (RIGHT, LEFT):
        chest.lungs[side] = np.maximum(chest.lungs[side] - heart, 0)
        texture = disease.smooth_noise(shape, 5 / canvas.pixel, rng)
        chest.density[side] = (thorax.lung_density * (1 + 0.03 * texture)).astype(np.float32)
    truth = _add_findings(chest, findings, style, rng)
    if big:
        uc, vc, _, _ = thorax.heart()
        truth["enlarged heart shadow"] = chest.truth(2 * thorax.ratio * thorax.half_width, 0, uc, vc)
    line = _line_integral(chest, rng)
    return RadiographPhantom(
        pixels=_expose(line, canvas, style, rng),
        truth=truth,
        spacing=_HEIGHT_MM / shape[0],
        cardiothoracic_ratio=round(thorax.ratio, 3),
    )


def _canvas(shape: tuple[int, int], style: Style, rng: np.random.Generator) -> Canvas:
    """Pose the patient before the detector."""
    spacing = _HEIGHT_MM / shape[0]
    scale = draw(rng, style.scale)
    roll = np.deg2rad(draw(rng, style.roll_deg))
    x0 = shape[1] / 2 * spacing + draw(rng, style.offset_mm)
    y0 = shape[0] / 2 * spacing + draw(rng, style.offset_mm)
    c, s = np.cos(roll) / scale, np.sin(roll) / scale
    turn = np.array([[c, s], [-s, c]])
    shift = turn @ (np.array([0.5 * spacing - x0, 0.5 * spacing - y0])) + np.array([0, 115])
    matrix = np.column_stack([turn * spacing, shift])
    columns = np.arange(shape[1], dtype=np.float32)[None]
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    u, v = (np.float32(m[0]) * columns + np.float32(m[1]) * rows + np.float32(m[2]) for m in matrix)
    return Canvas(u, v, matrix, spacing / scale)


def _size(interval: Interval, style: Style, rng: np.random.Generator) -> float:
    low, high = interval
    return float(low * (high / low) ** rng.random() if style.log_sizes else rng.uniform(low, high))


def _add_findings(
    chest: Chest, findings: Collection[str], style: Style, rng: np.random.Generator
) -> dict[str, Truth | None]:
    """Add what lies in the lungs and the pleura; fluid and free air go to different sides."""
    truth: dict[str, Truth | None] = dict.fromkeys(FINDINGS)
    side = int(rng.choice([RIGHT, LEFT]))
    if "pleural effusion" in findings:
        truth["pleural effusion"] = disease.effusion(chest, _size(style.effusion_mm, style, rng), -side, rng)
    if "pneumothorax" in findings:
        truth["pneumothorax"] = disease.pneumothorax(chest, _size(style.pneumothorax_mm, style, rng), side, rng)
    if "consolidation" in findings:
        truth["consolidation"] = disease.consolidation(chest, _size(style.consolidation_mm, style, rng), rng)
    if "nodule" in findings:  # last, so that it lies in lung that still holds air
        truth["nodule"] = disease.nodule(chest, _size(style.nodule_mm, style, rng), rng)
    return truth


def _line_integral(chest: Chest, rng: np.random.Generator) -> Array:
    """Attenuation along every ray."""
    canvas, thorax = chest.canvas, chest.thorax
    soft = anatomy.body(canvas, thorax) * (1 + 0.012 * disease.smooth_noise(canvas.u.shape, 45 / canvas.pixel, rng))
    inside = anatomy.smoothstep(soft / 40)
    for side in (RIGHT, LEFT):
        lung = np.minimum(chest.lungs[side], 0.92 * soft)
        soft += chest.vessels[side] * anatomy.smoothstep(lung / 40) - lung * (1 - chest.density[side])
    soft += chest.soft - anatomy.airways(canvas, thorax)
    bone = anatomy.bones(canvas, thorax, rng)
    return (_SOFT * np.maximum(soft, 0) + _BONE * 0.5 * bone * inside).astype(np.float32)


def _expose(line: Array, canvas: Canvas, style: Style, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Turn attenuation into a processed, collimated 12 bit image."""
    from scipy.ndimage import gaussian_filter, zoom

    primary = np.exp(-line)
    step = max(int(8 / canvas.pixel), 1)
    coarse = gaussian_filter(primary[::step, ::step], 3.5)
    scattered = zoom(coarse, [n / c for n, c in zip(line.shape, coarse.shape, strict=True)], order=1)
    signal = primary + draw(rng, style.scatter) * scattered
    quanta = draw(rng, style.photons) * canvas.pixel**2
    signal += np.sqrt(signal / quanta) * rng.standard_normal(line.shape, dtype=np.float32)
    image = -np.log(np.maximum(signal, 1e-4))
    pitch = rng.uniform(2.2, 5.0)
    image += draw(rng, style.grid_line) * np.sin(2 * np.pi * np.arange(line.shape[1], dtype=np.float32) / pitch)
    image += draw(rng, style.sharpen) * (image - gaussian_filter(image, 4 / canvas.pixel))
    rows, columns = line.shape[0] // 5, line.shape[1] // 6
    low, high = np.percentile(image[rows:-rows:4, columns:-columns:4], [3, 97])
    level = (image - low) / (high - low) * 0.82 + rng.uniform(0.08, 0.16)
    contrast = draw(rng, style.contrast)
    if style.curve == "gamma":
        level = np.clip(level, 0, 1.1) ** np.float32(contrast)
    else:
        level = 1 / (1 + np.exp(-contrast * (level - rng.uniform(0.4, 0.6))))
        level = (level - level.min()) / (level.max() - level.min())
    level = _collimate(level.astype(np.float32), canvas, style, rng)
    _marker(level, canvas, rng)
    pixels: NDArray[np.uint16] = np.clip(level * rng.uniform(0.75, 0.95) * _FULL, 0, _FULL).astype(np.uint16)
    return pixels


def _collimate(level: Array, canvas: Canvas, style: Style, rng: np.random.Generator) -> Array:
    """Shade the borders, which the automatic shutter of the console paints black."""
    height, width = level.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    skew = np.tan(np.deg2rad(draw(rng, style.collimation_skew_deg)))
    x, y = columns - width / 2, rows - height / 2
    for along, across, half in ((x, y, width / 2), (y, -x, height / 2)):
        for sign in (-1, 1):
            inset = half - draw(rng, style.collimation_mm) / canvas.pixel
            level = level * (sign * (along + skew * across) <= inset)
    return level


def _marker(level: Array, canvas: Canvas, rng: np.random.Generator) -> None:
    """Lay a lead marker into an upper corner: a bright frame with a bar."""
    height, width = level.shape
    size = int(12 / canvas.pixel)
    row = int(rng.uniform(0.07, 0.12) * height)
    column = int((rng.uniform(0.07, 0.12) if rng.random() < 0.5 else rng.uniform(0.82, 0.88)) * width)
    stroke = max(int(2.4 / canvas.pixel), 1)
    level[row : row + size, column : column + stroke] = 1
    level[row + size - stroke : row + size, column : column + size // 2] = 1
