"""The five findings of the synthetic chest radiographs, put into the thickness maps of a thorax.

Frame and units are those of `phantoms._thorax`: patient mm, `u` towards the left, `v` towards the feet. Nodule,
consolidation and effusion replace air by soft tissue; a pneumothorax takes the rest of tissue out of the lung's rim.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from phantoms._thorax import LEFT, RIGHT, Array, Canvas, Thorax, quarter, root, smoothstep


@dataclass(frozen=True)
class Truth:
    """One finding that was put into a radiograph.

    `size_mm` is the diameter (nodule), the longest extent (consolidation), the height of the fluid at the lateral wall
    above the costophrenic angle (effusion), the width of the apical rim (pneumothorax), the transverse width of the
    heart (enlarged heart), in the patient. `row` and `column` are a pixel inside it.
    """

    size_mm: float
    side: str
    row: float
    column: float


@dataclass
class Chest:
    """Maps of one chest while it is put together: air-holding lung by side, extra soft tissue, bone, vessels; in mm."""

    canvas: Canvas
    thorax: Thorax
    lungs: dict[int, Array]
    vessels: dict[int, Array]
    soft: Array
    density: dict[int, Array] = field(default_factory=dict)
    """Fraction of soft tissue in the lung, by side."""

    def truth(self, size: float, side: int, u: float, v: float) -> Truth:
        """Describe a finding at a patient point."""
        row, column = self.canvas.image_point(u, v)
        return Truth(round(size, 1), {RIGHT: "right", LEFT: "left", 0: "middle"}[side], round(row, 1), round(column, 1))


def smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Array:
    """Smooth noise of unit deviation with a correlation length of about `sigma` pixels.

    White noise on a lattice of that pitch, spread along each axis by a matrix: much cheaper than filtering every pixel.
    """
    pitch = max(sigma, 1.0)
    spread = []
    for n in shape:
        nodes = np.arange(-2, int(n / pitch) + 4, dtype=np.float32)
        offset = np.arange(n, dtype=np.float32)[:, None] / np.float32(pitch) - nodes
        spread.append(np.exp(-1.3 * offset * offset))
    rows, columns = spread
    lattice = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    field: Array = rows @ lattice @ columns.T
    return field / np.float32(field.std() + 1e-6)


def nodule(chest: Chest, size: float, rng: np.random.Generator) -> Truth:
    """Put one round, slightly lobulated soft-tissue nodule where there is lung around it.

    Below 10 mm a soft nodule is hardly ever seen on a real radiograph and one that is seen is mostly calcified, so
    the share of calcified ones grows as the diameter falls.
    """
    canvas, t = chest.canvas, chest.thorax
    radius = size / 2
    best, u, v, side = -1.0, 0.0, 0.0, RIGHT
    for _ in range(80):
        chosen = int(rng.choice([RIGHT, LEFT]))
        down = rng.uniform(18, t.lung_height + 5)
        edge = float(t.lateral(np.array([down]))[0])
        out = rng.uniform(t.mediastinum + 8 + radius, max(edge - radius - 5, t.mediastinum + 10 + radius))
        window = canvas.window(chosen * out - radius, chosen * out + radius, down - radius, down + radius)
        there = chest.lungs[chosen][window] * (chest.density[chosen][window] > 0.05)
        free = float(there.min()) if there.size else 0.0
        if free > best:
            best, u, v, side = free, chosen * out, down, chosen
        if free > max(30.0, 1.2 * size):
            break
    reach = 1.6 * radius
    rows, columns = canvas.window(u - reach, u + reach, v - reach, v + reach)
    du, dv = canvas.u[rows, columns] - u, canvas.v[rows, columns] - v
    phase, lobes = rng.uniform(0, 2 * np.pi), int(rng.integers(2, 6))
    bumps = 1 + rng.uniform(0, 0.12) * np.cos(lobes * np.arctan2(dv, du) + phase)
    stretch = rng.uniform(0.9, 1.1)
    d = np.hypot(du * stretch, dv / stretch) / (radius * bumps)
    chord = 2 * radius * root(1 - d * d)
    calcified = rng.random() < np.clip((16 - size) / 6, 0.05, 1.0)
    weight = rng.uniform(1.8, 3.0) if calcified else rng.uniform(0.75, 1.0)
    chest.soft[rows, columns] += (weight * chord).astype(np.float32)
    return chest.truth(size, side, u, v)


def consolidation(chest: Chest, size: float, rng: np.random.Generator) -> Truth:
    """Fill part of one lung with patchy soft tissue of soft borders, bronchi left open."""
    canvas, t = chest.canvas, chest.thorax
    side = int(rng.choice([RIGHT, LEFT]))
    for _ in range(60):
        v = rng.uniform(35, t.lung_height)
        u = side * rng.uniform(t.mediastinum + 15, t.half_width - 15)
        rows, columns = canvas.window(u - 12, u + 12, v - 12, v + 12)
        there = chest.lungs[side][rows, columns]
        if there.size and there.mean() > 70:
            break
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    du, dv = canvas.u - u, canvas.v - v
    c, s = np.cos(angle), np.sin(angle)
    d = np.hypot(c * du + s * dv, (-s * du + c * dv) / aspect) / (size / 2)
    lumps = smooth_noise(canvas.u.shape, rng.uniform(8, 18) / canvas.pixel, rng)
    filled = smoothstep((1.05 - d + rng.uniform(0.08, 0.22) * lumps) / rng.uniform(0.5, 0.9))
    if rng.random() < 0.35:
        fissure = rng.uniform(-0.15, 0.15)
        filled *= smoothstep((dv - fissure * du + 0.25 * size) / 3)
    depth = np.minimum(0.75 * chest.lungs[side], rng.uniform(40, 90))
    share = rng.uniform(0.55, 0.95) * np.clip(1 + 0.25 * lumps, 0.3, 1.2)
    bronchi = 1 - 0.5 * np.clip(chest.vessels[side] / 4, 0, 1)
    fill = (depth * filled * share * bronchi).astype(np.float32)
    chest.lungs[side] = np.maximum(chest.lungs[side] - fill, 0)
    return chest.truth(size, side, u, v)


def effusion(chest: Chest, size: float, side: int, rng: np.random.Generator) -> Truth:
    """Let fluid rise from the costophrenic angle, with a meniscus at the lateral wall and a veil behind the lung."""
    canvas, t = chest.canvas, chest.thorax
    edge = float(t.lateral(np.array([t.lung_height + t.dome]))[0])
    angle = float(t.dome_line(np.array([side * (edge - 4)]), side)[0])
    a = canvas.u * side
    bow = np.clip((edge - a) / rng.uniform(18, 34), 0, 4)
    sag = min(0.45 * size, 38) * rng.uniform(0.7, 1.1)
    line = angle - size + sag * (1 - np.exp(-bow)) + 0.0012 * np.maximum(a - edge, 0)
    share = np.clip((canvas.v - line) / (0.25 * size + 4), 0, 1) ** np.float32(0.7)
    chest.lungs[side] = (chest.lungs[side] * (1 - share)).astype(np.float32)
    chest.vessels[side] = (chest.vessels[side] * (1 - share)).astype(np.float32)
    return chest.truth(size, side, side * (edge - 6), angle - 0.4 * size)


def pneumothorax(chest: Chest, size: float, side: int, rng: np.random.Generator) -> Truth:
    """Draw one lung back from the apex and the lateral wall: no vessels outside, a thin pleural line at its edge."""
    canvas, t = chest.canvas, chest.thorax
    down = np.clip(canvas.v / t.lung_height, 0, 1)
    rim = size * (rng.uniform(0.55, 0.9) * (1 - down) + rng.uniform(0.05, 0.5) * down)
    wave = 0.06 * size * np.sin(canvas.v / rng.uniform(18, 40) + rng.uniform(0, 6))
    height = canvas.v - size
    inner = 44 + (t.half_width - 44) * quarter(height / (0.62 * t.lung_height)) ** np.float32(0.85)
    beyond = canvas.u * side - inner + rim + wave
    apical = size - canvas.v
    distance = np.where(canvas.v < size + 0.35 * size, np.maximum(beyond, apical), beyond)
    outside = smoothstep(distance / 1.6 + 0.5)
    lung = chest.lungs[side]
    chest.density[side] = (chest.density[side] * (1.1 - 1.1 * outside)).astype(np.float32)
    chest.vessels[side] = (chest.vessels[side] * (1 - outside)).astype(np.float32)
    width = max(0.8, 0.8 * canvas.pixel)
    line = np.exp(-((distance / width) ** 2)) * (lung > 8) * 0.8 / width
    chest.soft += (rng.uniform(5, 9) * line).astype(np.float32)
    v = 0.4 * t.lung_height
    return chest.truth(size, side, side * (float(t.lateral(np.array([v]))[0]) - 0.3 * size), v)
