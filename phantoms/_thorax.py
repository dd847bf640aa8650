"""Analytic thorax: thickness of soft tissue, lung and bone along the rays of a frontal radiograph.

Every function works in the patient's frame: `u` in mm from the midline, positive towards the patient's left; `v` in mm
from the lung apices, positive towards the feet. Thicknesses are in mm along the ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.floating[Any]]

RIGHT, LEFT = -1, 1


def smoothstep(x: Array) -> Array:
    """Cubic step from 0 to 1 over x in 0..1."""
    t = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


def quarter(t: Array) -> Array:
    """Rise of a quarter ellipse: 0 at t <= 0, 1 at t >= 1, steep at the start."""
    t = 1 - np.clip(t, 0, 1)
    return np.sqrt(1 - t * t)


def root(x: Array) -> Array:
    """Square root, 0 where negative: the chord through a ball or an ellipsoid."""
    return np.sqrt(np.maximum(x, 0))


@dataclass(frozen=True)
class Canvas:
    """Patient coordinates of every pixel, and the pixel size in the patient's frame (mm)."""

    u: Array
    v: Array
    to_patient: NDArray[np.float64]
    """2 x 3: (u, v) = to_patient @ (column, row, 1)."""
    pixel: float

    def window(self, u0: float, u1: float, v0: float, v1: float) -> tuple[slice, slice]:
        """Rows and columns of the smallest image box that holds the given patient box (empty slices outside)."""
        inverse = np.linalg.inv(self.to_patient[:, :2])
        corners = np.array([(a, b) for a in (u0, u1) for b in (v0, v1)]) - self.to_patient[:, 2]
        columns, rows = (corners @ inverse.T).T
        height, width = self.u.shape
        return (
            slice(int(np.clip(rows.min() - 1, 0, height)), int(np.clip(rows.max() + 2, 0, height))),
            slice(int(np.clip(columns.min() - 1, 0, width)), int(np.clip(columns.max() + 2, 0, width))),
        )

    def image_point(self, u: float, v: float) -> tuple[float, float]:
        """Row and column of a patient point."""
        column, row = np.linalg.solve(self.to_patient[:, :2], np.array([u, v]) - self.to_patient[:, 2])
        return float(row), float(column)


@dataclass
class Thorax:
    """Proportions of one patient, all in mm."""

    half_width: float
    """Inner half-width of the rib cage at its widest."""
    half_depth: float
    wall: float
    lung_height: float
    """Apex to the top of the right dome."""
    left_drop: float
    dome: float
    """Height of the diaphragm's curve from top to lateral wall."""
    ratio: float
    """Cardiothoracic ratio."""
    heart_tilt: float
    heart_aspect: float
    heart_lean: float
    """Share of the half-width by which the heart's centre lies left."""
    mediastinum: float
    knob: float
    yaw: float
    tilt: float
    shoulder: float
    lung_density: float
    rib_pitch: float
    rib_slope: float
    rib_half: float
    bone: float
    gas: float
    breast: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, lung_height: float, ratio: float, yaw: float, tilt: float) -> Thorax:
        """Draw a patient; the arguments are what the style and the findings fix."""
        enlarged = ratio > 0.52
        return cls(
            half_width=rng.uniform(120, 146),
            half_depth=rng.uniform(78, 105),
            wall=rng.uniform(20, 48),
            lung_height=lung_height,
            left_drop=rng.uniform(-4, 20),
            dome=rng.uniform(28, 48),
            ratio=ratio,
            heart_tilt=np.deg2rad(rng.uniform(15, 40)),
            heart_aspect=rng.uniform(0.74, 0.92) if enlarged else rng.uniform(0.8, 1.08),
            heart_lean=rng.uniform(0.2, 0.4),
            mediastinum=rng.uniform(22, 33),
            knob=rng.uniform(3, 13),
            yaw=yaw,
            tilt=tilt,
            shoulder=rng.uniform(-70, -35),
            lung_density=rng.uniform(0.22, 0.34),
            rib_pitch=rng.uniform(0.094, 0.108),
            rib_slope=rng.uniform(0.12, 0.32),
            rib_half=rng.uniform(5.0, 7.2),
            bone=rng.uniform(0.6, 1.25),
            gas=rng.uniform(0, 1),
            breast=float(rng.choice([0.0, 1.0])) * rng.uniform(8, 32),
        )

    def lateral(self, v: Array) -> Array:
        """Lateral edge of the lung by height, as distance from the midline."""
        return 44 + (self.half_width - 44) * quarter(v / (0.62 * self.lung_height)) ** np.float32(0.85)

    def medial(self, v: Array, side: int) -> Array:
        """Medial edge of the lung by height, as distance from the midline: apex, great vessels, aortic knob."""
        top = 52 - (52 - self.mediastinum) * quarter(v / 55)
        shift = side * self.yaw * 0.5
        if side == RIGHT:
            return top - 3 + shift
        knob = self.knob * np.exp(-(((v - 72) / 13) ** 2)) + 0.6 * self.knob * np.exp(-(((v - 108) / 14) ** 2))
        return top + knob + shift

    def dome_line(self, u: Array, side: int) -> Array:
        """Height of the diaphragm's upper edge at `u` on one side."""
        top = self.lung_height + (self.left_drop if side == LEFT else 0.0)
        s = (np.abs(u) - 0.5 * self.half_width) / (0.5 * self.half_width)
        rise = np.where(s > 0, self.dome * s * s, 0.35 * self.dome * s * s)
        return top + rise

    def heart(self) -> tuple[float, float, float, float]:
        """Centre (u, v) and the semi-axes along and across the tilted long axis."""
        half = self.ratio * self.half_width
        c, s = np.cos(self.heart_tilt), np.sin(self.heart_tilt)
        long = half / np.sqrt(c * c + (self.heart_aspect * s) ** 2)
        across = self.heart_aspect * long
        reach = np.sqrt((long * s) ** 2 + (across * c) ** 2)
        return self.heart_lean * half + 0.4 * self.yaw, self.lung_height + 14 - 0.86 * reach, long, across


def body(canvas: Canvas, t: Thorax) -> Array:
    """Thickness of the whole body: trunk, shoulders, neck, breasts."""
    u, v = canvas.u, canvas.v
    width = t.half_width + t.wall + 60 * smoothstep((120 - v) / 170)
    depth = (t.half_depth + 0.8 * t.wall) * (0.5 + 0.5 * smoothstep((v + 60) / 150)) * (1 + 0.1 * smoothstep(v / 400))
    trunk = 2 * depth * root(1 - np.abs(u / width) ** np.float32(3))
    trunk *= smoothstep((v - t.shoulder - 0.0016 * u * u) / 28)
    neck = 2 * 58 * root(1 - (u / (58 + 0.25 * np.maximum(v + 60, 0))) ** 2) * smoothstep((40 - v) / 60)
    total = np.maximum(trunk, neck)
    if t.breast:
        for side in (RIGHT, LEFT):
            d = ((u - side * 0.55 * t.half_width) / 68) ** 2 + ((v - 0.8 * t.lung_height) / 62) ** 2
            total += t.breast * root(1 - d) * smoothstep((v - 0.5 * t.lung_height) / 60)
    return total.astype(np.float32)


def lung(canvas: Canvas, t: Thorax, side: int) -> Array:
    """Thickness of one lung, before the heart is taken out."""
    u, v = canvas.u, canvas.v
    a = u * side
    edge = t.lateral(v)
    depth = t.half_depth * (0.35 + 0.65 * quarter(v / (0.7 * t.lung_height))) * (v > 0)
    chord = 2 * depth * root(1 - np.abs(a / edge) ** np.float32(2.6))
    chord *= smoothstep((a - t.medial(v, side) + 7) / 15)
    below = np.maximum(v - t.dome_line(u, side), 0)
    out: Array = (chord * np.maximum(0, 1 - 0.45 * (below > 0) - np.sqrt(below / 42))).astype(np.float32)
    return out


def heart(canvas: Canvas, t: Thorax) -> Array:
    """Thickness of the heart."""
    uc, vc, long, across = t.heart()
    rows, columns = canvas.window(uc - 1.1 * long, uc + 1.1 * long, vc - 1.1 * long, vc + 1.1 * long)
    du, dv = canvas.u[rows, columns] - uc, canvas.v[rows, columns] - vc
    c, s = np.cos(t.heart_tilt), np.sin(t.heart_tilt)
    d = ((c * du + s * dv) / long) ** 2 + ((-s * du + c * dv) / across) ** 2
    out = np.zeros_like(canvas.u)
    out[rows, columns] = 2.1 * t.half_depth * root(1 - d)
    return out


def _bar(canvas: Canvas, out: Array, curve: tuple[Array, Array], half: float, weight: float) -> None:
    """Add a hollow bone along a polyline of patient points given by u (monotone) and v."""
    us, vs = curve
    rows, columns = canvas.window(us.min() - half, us.max() + half, vs.min() - 2 * half, vs.max() + 2 * half)
    u, v = canvas.u[rows, columns], canvas.v[rows, columns]
    if not u.size:
        return
    order = np.argsort(us)
    us, vs = us[order], vs[order]
    slope = np.gradient(vs, us)
    centre = np.interp(u, us, vs)
    tilt = np.interp(u, us, slope)
    d = (v - centre) / (half * np.sqrt(1 + tilt * tilt))
    shell = root(1 - d * d) - 0.6 * root(1 - (d / 0.8) ** 2)
    ends = smoothstep((u - us[0]) / 3 + 0.5) * smoothstep((us[-1] - u) / 3 + 0.5)
    out[rows, columns] += (weight * 2.6 * half * shell * ends).astype(np.float32)


def bones(canvas: Canvas, t: Thorax, rng: np.random.Generator) -> Array:
    """Bone along each ray: ribs (posterior and anterior), clavicles, scapulae, vertebral column."""
    out = np.zeros_like(canvas.u)
    for side in (RIGHT, LEFT):
        for i in range(10):
            v0 = (i + 0.15) * t.rib_pitch * t.lung_height * (0.8 + 0.035 * i) + 2 + rng.normal(0, 1.0)
            edge = float(t.lateral(np.array([v0 + 22]))[0]) + 3
            s = np.linspace(0, 1, 40)
            posterior = v0 - 5 * np.sin(np.pi * s) + t.rib_slope * edge * s**2
            weight = t.bone * rng.uniform(0.85, 1.15)
            at = side * (16 + (edge - 16) * s) - 0.5 * t.yaw
            _bar(canvas, out, (at, posterior), t.rib_half * (0.75 + 0.03 * i), weight)
            if i < 7:
                end = posterior[-1]
                s = np.linspace(0.32 + 0.03 * i, 1, 30)
                anterior = end + (30 + 5 * i) * (1 - s) ** 1.1 + t.tilt * 0.5
                _bar(canvas, out, (side * edge * s + 0.5 * t.yaw, anterior), 1.1 * t.rib_half, 0.7 * weight)
        s = np.linspace(0, 1, 40)
        clavicle = 18 - t.tilt - 26 * s - 7 * np.sin(2 * np.pi * s)
        at = side * (14 + 140 * s) + t.yaw
        _bar(canvas, out, (at, clavicle), 6.5, 1.2 * t.bone)
        _scapula(canvas, t, side, out)
    u, v = canvas.u + 0.5 * t.yaw, canvas.v
    period = 0.1 * t.lung_height
    discs = 0.8 + 0.2 * np.tanh(3 * np.cos(2 * np.pi * v / period))
    out += (t.bone * 11 * discs * root(1 - (u / 17) ** 2) ** np.float32(0.5)).astype(np.float32)
    processes = root(1 - (u / 4) ** 2) * (np.mod(v / period, 1) < 0.5)
    out += (t.bone * 5 * processes).astype(np.float32)
    return out


def _scapula(canvas: Canvas, t: Thorax, side: int, out: Array) -> None:
    """Add one scapula: a thin triangular plate beside the upper lung with a denser lateral border."""
    a, v = canvas.u * side, canvas.v
    reach = t.half_width + 0.1 * t.wall
    top = smoothstep((v + 5) / 10) * smoothstep((130 - v) / 25)
    medial = reach - 22 + 0.16 * v
    lateral = reach + 42 - 0.36 * v
    plate = smoothstep((a - medial) / 4) * smoothstep((lateral - a) / 4) * top
    border = np.exp(-(((a - lateral + 4) / 4) ** 2)) * top
    out += (t.bone * (2.2 * plate + 4 * border)).astype(np.float32)


def airways(canvas: Canvas, t: Thorax) -> Array:
    """Air in the trachea, the main bronchi and the stomach."""
    u, v = canvas.u - 0.2 * t.yaw, canvas.v
    carina = 88
    trachea = 15 * root(1 - (u / 8.5) ** 2) * smoothstep((carina - v) / 8)
    for side, slope in ((RIGHT, 0.75), (LEFT, 1.1)):
        centre = side * np.maximum(v - carina + 6, 0) * slope
        bronchus = 11 * root(1 - ((u - centre) / (6.0 + slope)) ** 2)
        trachea += bronchus * smoothstep((v - carina + 8) / 8) * smoothstep((carina + 36 - v) / 14)
    if t.gas > 0.35:
        top = t.lung_height + t.left_drop + 12
        d = ((canvas.u - 62) / (18 + 28 * t.gas)) ** 2 + ((v - top - 15 * t.gas) / (6 + 16 * t.gas)) ** 2
        trachea += 55 * t.gas * root(1 - d)
    return trachea.astype(np.float32)


def vessels(canvas: Canvas, t: Thorax, rng: np.random.Generator, side: int) -> Array:
    """Soft tissue of one lung's vessel tree, hilum included.

    Branches are laid down as mass per length (cross-section times step) and blurred to their radius: the projection of
    a cylinder, at the cost of one filter per class of radius.
    """
    from scipy.ndimage import gaussian_filter

    hilum = np.array([side * (t.mediastinum + rng.uniform(6, 14)) + 0.2 * t.yaw, 105 + (5 if side == RIGHT else -6)])
    angle = np.deg2rad(np.linspace(-85, 85, 9) + rng.normal(0, 7, 9))
    start = np.repeat(hilum[None], 9, axis=0)
    radius = rng.uniform(3.0, 4.8, 9)
    s = np.linspace(0, 1, max(int(34 / (0.7 * canvas.pixel)), 2))[None, :, None]
    points, radii, steps = [], [], []
    for depth in range(7):
        length = rng.uniform(16, 34, len(angle)) * (1 - 0.07 * depth)
        along = np.stack([side * np.cos(angle), np.sin(angle)], axis=1)[:, None]
        across = along[..., ::-1] * np.array([-1, 1])
        bend = rng.normal(0, 0.12, len(angle))
        path = start[:, None] + length[:, None, None] * (s * along + bend[:, None, None] * s * s * across)
        points.append(path.reshape(-1, 2))
        radii.append((radius[:, None] * (1 - 0.2 * s[..., 0])).ravel())
        steps.append(np.repeat(length / (s.size - 1), s.size))
        turn = np.deg2rad(rng.uniform(8, 32, (2, len(angle))) * np.array([[1], [-1]]))
        start = np.concatenate([path[:, -1]] * 2)
        angle = (angle + turn).ravel()
        radius = np.concatenate([radius] * 2) * rng.uniform(0.62, 0.78, len(angle))
        kept = radius > 0.4
        start, angle, radius = start[kept], angle[kept], radius[kept]
    where, size, step = np.concatenate(points), np.concatenate(radii), np.concatenate(steps)
    inverse = np.linalg.inv(canvas.to_patient[:, :2])
    columns, rows = ((where - canvas.to_patient[:, 2]) @ inverse.T).T
    height, width = canvas.u.shape
    mass = np.pi * size**2 * step / canvas.pixel**2
    out = np.zeros_like(canvas.u)
    inside = (rows > 0) & (rows < height - 1) & (columns > 0) & (columns < width - 1)
    for low, high in ((0, 0.6), (0.6, 1.1), (1.1, 2.0), (2.0, 3.2), (3.2, 9)):
        chosen = inside & (size >= low) & (size < high)
        if not chosen.any():
            continue
        index = np.rint(rows[chosen]).astype(int) * width + np.rint(columns[chosen]).astype(int)
        layer = np.bincount(index, mass[chosen], height * width).reshape(height, width).astype(np.float32)
        out += gaussian_filter(layer, max(0.5 * (low + min(high, 5)) / 2 / canvas.pixel, 0.6), truncate=3)
    d = ((canvas.u - hilum[0]) / 16) ** 2 + ((canvas.v - hilum[1]) / 24) ** 2
    out += (14 * np.exp(-1.2 * d)).astype(np.float32)
    return out
