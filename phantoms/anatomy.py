"""Draw the anatomy of a synthetic chest, abdomen or head onto a canvas.

Coordinates are anatomical (mm): +x patient left, +y posterior, +z superior; z = 0 at the lowest edge of the lungs, the
lungs' apex at z = `height`. Sizes are random around textbook values, wider than life on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from phantoms.canvas import FULL, Box, Canvas, Field, rotation, smooth_noise

Rng = np.random.Generator
SIDES = (-1, 1)  # right, left

_T = [-1.5, -0.3, 0.0, 0.35, 0.55, 0.75, 0.88, 0.96, 1.02, 1.2]
_CAVITY_A = [0.93, 1.0, 1.0, 0.98, 0.91, 0.77, 0.60, 0.46, 0.34, 0.30]
_CAVITY_B = [0.98, 1.0, 1.0, 0.98, 0.92, 0.76, 0.58, 0.44, 0.32, 0.28]


@dataclass(frozen=True)
class Anatomy:
    """Sizes (mm) and densities (HU) of one person."""

    scale: float
    height: float
    half_width: float
    half_depth: float
    wall: float
    fat: float
    arms: str
    breasts: float
    blood: float
    lung: float
    carina: float
    arch: float
    dome: tuple[float, float]
    trachea: float
    junction: tuple[float, float]
    roughness: float
    bone: float
    disease: bool
    hilum: dict[int, tuple[float, float, float]]
    carina_xy: tuple[float, float]
    vertebra_y: float

    def with_height(self, height: float) -> Anatomy:
        """Return the same person with lungs of another height."""
        f = height / self.height
        hilum = {s: (x, y, z * f) for s, (x, y, z) in self.hilum.items()}
        return replace(
            self,
            height=height,
            carina=self.carina * f,
            arch=self.arch * f,
            dome=(self.dome[0] * f, self.dome[1] * f),
            hilum=hilum,
        )


def draw_anatomy(rng: Rng, *, disease: bool = True) -> Anatomy:
    """Return a random person."""
    child = rng.random() < 0.12
    scale = float(rng.uniform(0.5, 0.8) if child else rng.uniform(0.85, 1.15))
    u = rng.uniform
    height = float(u(180, 290)) * scale
    a, b = float(u(118, 150)) * scale, float(u(76, 112)) * scale
    carina = float(u(0.60, 0.70)) * height
    right_dome = float(u(0.12, 0.40)) * height
    blood = float(u(30, 55) if rng.random() < 0.5 else u(90, 350))
    vertebra_y = b * float(u(0.62, 0.78))
    drop = float(u(14, 32)) * scale
    return Anatomy(
        scale=scale,
        height=height,
        half_width=a,
        half_depth=b,
        wall=float(u(12, 26)) * scale,
        fat=float(rng.choice([u(1, 6), u(5, 20), u(20, 50)])),
        arms=str(rng.choice(["up", "down", "none"], p=[0.35, 0.3, 0.35])),
        breasts=float(rng.choice([0.0, u(15, 55)])),
        blood=blood,
        lung=float(rng.choice([u(-900, -840), u(-860, -760), u(-770, -680)], p=[0.35, 0.45, 0.2])),
        carina=carina,
        arch=carina + float(u(18, 35)) * scale,
        dome=(right_dome, max(5.0, right_dome + float(u(-28, 8)) * scale)),
        trachea=float(u(6.5, 11)) * (0.45 + 0.55 * scale),
        junction=(float(rng.choice([u(0.4, 2.5), u(2, 14)])) * scale, float(rng.choice([u(1, 4), u(4, 16)])) * scale),
        roughness=float(u(0.5, 4.5)),
        bone=float(u(250, 700)),
        disease=disease,
        hilum={
            -1: (-float(u(27, 40)) * scale, float(u(-8, 10)), carina - drop),
            1: (float(u(30, 46)) * scale, float(u(-4, 16)), carina - drop - float(u(-2, 12)) * scale),
        },
        carina_xy=(float(u(-5, 5)), float(u(-10, 14)) * scale),
        vertebra_y=vertebra_y,
    )


def _profile(z: Field, height: float, values: list[float]) -> Field:
    return np.interp(z / height, _T, values).astype(np.float32)


def _superellipse(x: Field, y: Field, a: Any, b: Any, power: float) -> Field:
    ua, ub = np.abs(x / a), np.abs(y / b)
    f = (ua**power + ub**power) ** np.float32(1 / power) if power != 2 else np.sqrt(ua * ua + ub * ub)
    return ((f - 1) * np.minimum(a, b)).astype(np.float32)


def _cavity(c: Canvas, p: Anatomy) -> Field:
    a = p.half_width * _profile(c.z, p.height, _CAVITY_A)
    b = p.half_depth * _profile(c.z, p.height, _CAVITY_B)
    shift = np.interp(c.z / p.height, [0.5, 1.0], [0.0, 0.12 * p.half_depth]).astype(np.float32)
    return _superellipse(c.x, c.y - shift, a, b, 2.2)


def paint_body(c: Canvas, p: Anatomy, rng: Rng) -> None:
    """Paint outside, skin, fat, muscle, ribs, spine, arms and table."""
    h, s = p.height, p.scale
    _outside(c, p, rng)
    u = rng.uniform
    wide, shoulder = p.half_width + p.wall + p.fat, float(u(150, 215)) * s
    deep = p.half_depth + p.wall + 0.7 * p.fat
    t = [-1.5, 0.0, 0.5, 0.78, 0.95, 1.06, 1.2, 1.35, 1.8, 3.0]
    neck = float(u(50, 75)) * (0.4 + 0.6 * s)
    top = shoulder if p.arms != "up" else max(wide * 0.95, shoulder * 0.8)
    a = np.interp(c.z / h, t, [wide * u(0.85, 1.15), wide, wide, max(wide, top * 0.9), top, top * 0.9, neck * 1.4, neck,
                               neck, neck * 1.2]).astype(np.float32)  # fmt: skip
    b = np.interp(c.z / h, t, [deep * u(0.9, 1.15), deep, deep, deep * 0.95, deep * 0.85, deep * 0.7, neck, neck,
                               neck, neck * 1.3]).astype(np.float32)  # fmt: skip
    power = float(u(2.0, 3.0))
    body = _superellipse(c.x, c.y, a, b, power)
    body += smooth_noise(rng, c.hu.shape, c.voxel, 60.0) * np.float32(0.8 * p.roughness)
    c.paint(FULL, body, -110 + float(u(-15, 15)))
    if p.breasts > 0:
        for side in SIDES:
            r = np.array([60, 25 + p.breasts, 60]) * s
            at = (side * float(u(65, 90)) * s, -p.half_depth - p.wall * 0.6 - p.fat * 0.5, float(u(0.3, 0.5)) * h)
            c.blob(at, r, float(u(-90, 0)), rotation(rng, 10))
    muscle = body + np.float32(p.fat)
    c.paint(FULL, muscle, 50 + 18 * smooth_noise(rng, c.hu.shape, c.voxel, 15.0))
    _arms(c, p, rng)
    cavity = _cavity(c, p)
    # Ribs: slanted bands in the shell just outside the cavity.
    pitch, slope = float(u(20, 34)) * s, float(u(0.25, 0.7))
    wave = np.sin((c.z + slope * c.y * -1.0) * np.float32(2 * np.pi / pitch) + np.float32(u(0, 6)))
    shell = np.maximum(np.abs(cavity - np.float32(6.0 * s)) - np.float32(3.5 * s), (0.35 - wave) * 4 * s)
    shell = np.maximum(shell, np.maximum(-c.z - 40, c.z - h * 1.0))
    c.paint(FULL, shell, p.bone + 150 * smooth_noise(rng, c.hu.shape, c.voxel, 12.0))
    # Inside of the cavity: mediastinal and abdominal fat, later covered by organs and lung.
    c.paint(FULL, cavity + np.float32(1.0), float(rng.choice([u(-110, -60), u(-20, 40)])))
    _spine(c, p, rng)
    for side in SIDES:  # clavicle, shoulder blade, humeral head
        c.pipe([(side * 18 * s, -0.55 * p.half_depth, 0.93 * h), (side * 0.75 * shoulder, -5, 1.03 * h)], 6 * s, p.bone)
        out = p.half_width * 0.95 + p.wall * 0.6
        c.pipe(
            [(side * out * 0.6, p.half_depth * 0.98, 0.85 * h), (side * out, p.half_depth * 0.5, 0.8 * h)],
            4 * s,
            p.bone,
        )
        c.pipe(
            [(side * out * 0.7, p.half_depth * 0.95, 0.6 * h), (side * out, p.half_depth * 0.45, 0.85 * h)],
            4 * s,
            p.bone,
        )
        if p.arms != "up":
            c.blob((side * shoulder * 0.82, 10, 0.97 * h), 22 * s, p.bone)
    sternum = -p.half_depth * 0.98 - 4 * s
    c.pipe([(0, sternum, 0.3 * h), (0, sternum * 0.85, 0.65 * h), (0, sternum * 0.55, 0.86 * h)], 8 * s, p.bone * 0.6)


def _outside(c: Canvas, p: Anatomy, rng: Rng) -> None:
    u = rng.uniform
    c.hu += 8 * smooth_noise(rng, c.hu.shape, c.voxel, 40.0)
    if rng.random() < 0.85:  # table: a curved shell with a light core
        radius, gap = float(u(300, 900)), p.half_depth + p.wall + p.fat * 0.7 + float(u(0, 25))
        bend = np.sqrt(c.x**2 + (c.y - np.float32(gap - radius)) ** 2) - np.float32(radius)
        thick = float(u(12, 60))
        c.paint(FULL, np.maximum(np.maximum(-bend, bend - thick), np.abs(c.x) - 265), float(u(-980, -850)))
        skin = float(u(0.8, 3))
        for at in (0.0, thick):
            c.paint(FULL, np.maximum(np.abs(bend - at) - skin, np.abs(c.x) - 265), float(u(-600, 300)))
    for _ in range(int(rng.integers(0, 5))):  # cables, folds of a blanket, pads
        side = float(rng.choice(SIDES))
        x = side * float(u(20, 200))
        y = float(u(-1, 1)) * (p.half_depth + p.wall + p.fat + float(u(5, 40)))
        z = float(u(-0.5, 1.3)) * p.height
        c.pipe([(x, y, z - 200), (x + float(u(-30, 30)), y, z), (x, y + float(u(-20, 20)), z + 200)], float(u(0.5, 8)),
               float(u(-950, 100)))  # fmt: skip


def _arms(c: Canvas, p: Anatomy, rng: Rng) -> None:
    u, s, h = rng.uniform, p.scale, p.height
    if p.arms == "none":
        return
    for side in SIDES:
        if rng.random() < 0.12:
            continue
        r = float(u(32, 52)) * s
        x = side * (p.half_width + p.wall + p.fat + r + float(u(-4, 25)))
        if p.arms == "down":
            path = [(side * 150 * s, 10, 0.97 * h), (x, float(u(0, 40)), 0.6 * h), (x, float(u(-30, 40)), -1.2 * h)]
        else:
            path = [
                (side * 140 * s, 0, 0.9 * h),
                (side * float(u(110, 190)) * s, -20, 1.25 * h),
                (x * 0.8, -40, 2.2 * h),
            ]
        c.pipe(path, r, float(u(-100, 40)))
        c.pipe(path, r * 0.8, 50)
        c.pipe(path, 11 * s, p.bone + 300)


def _spine(c: Canvas, p: Anatomy, rng: Rng) -> None:
    s, u = p.scale, rng.uniform
    bow = float(u(-0.12, 0.12)) * p.half_depth
    y = (p.vertebra_y + bow * np.cos(np.clip(c.z / p.height, -1, 2) * 3)).astype(np.float32)
    r = float(u(15, 20)) * s
    body = (np.sqrt((c.x / 1.2) ** 2 + (c.y - y) ** 2) - r).astype(np.float32)
    disc = np.sin(c.z * np.float32(2 * np.pi / (26 * s)) + np.float32(u(0, 6)))
    back = np.sqrt(c.x**2 + (c.y - y - 1.9 * r) ** 2) - 1.1 * r
    side = np.maximum(np.abs(c.y - y - 1.6 * r) - 4 * s, np.abs(c.x) - 32 * s)
    spine = np.minimum(np.minimum(body, back), np.maximum(np.abs(c.x) - 4 * s, np.abs(c.y - y - 3.2 * r) - 1.2 * r))
    c.paint(FULL, np.minimum(spine, side) - 3, 45.0)
    c.paint(FULL, spine, p.bone + 150 * smooth_noise(rng, c.hu.shape, c.voxel, 8.0))
    c.paint(FULL, side, p.bone)
    c.paint(FULL, body + 2.5, p.bone * 0.5)
    c.paint(FULL, np.maximum(body + 1, 0.75 - disc), 80.0)
    c.paint(FULL, np.sqrt(c.x**2 + (c.y - y - 1.75 * r) ** 2) - 8 * s, 25.0)


def _domes(c: Canvas, p: Anatomy, rng: Rng) -> dict[int, Field]:
    """Return, for each side, the height (mm) of the diaphragm above each voxel's column."""
    out: dict[int, Field] = {}
    for side, top in zip(SIDES, p.dome, strict=True):
        cx, cy = side * p.half_width * float(rng.uniform(0.42, 0.55)), p.half_depth * float(rng.uniform(-0.2, 0.05))
        r2 = ((c.x - cx) / (0.58 * p.half_width)) ** 2 + ((c.y - cy) / (0.98 * p.half_depth)) ** 2
        bend = r2 ** np.float32(rng.uniform(0.8, 1.6))
        back = np.clip((c.y - cy) / p.half_depth + 0.6, 0.25, 1.2)
        field = top - (top + 10) * np.clip(bend, 0, 2.5) * (0.45 + 0.6 * back)
        out[side] = (field + p.roughness * smooth_noise(rng, c.hu.shape, c.voxel, 50.0)).astype(np.float32)
    return out


def _mediastinum(c: Canvas, p: Anatomy, rng: Rng) -> dict[int, Field]:
    """Return, for each side, the signed distance to the mediastinal tissue (positive outside it)."""
    u, s, h = rng.uniform, p.scale, p.height
    t = c.z / h
    v = c.y / (p.half_depth * _profile(c.z, h, _CAVITY_B))
    front, back = p.junction
    axis = float(u(-8, 8)) * s + 4 * smooth_noise(rng, c.hu.shape, c.voxel, 70.0)
    out: dict[int, Field] = {}
    for side in SIDES:
        mid = float(u(15, 28)) * s
        width = np.interp(v, [-1.0, -0.65, -0.35, 0.1, 0.4, 0.62, 0.85, 1.1],
                          [front, front, mid * 0.9, mid, back + 3, 18 * s, 18 * s, 14 * s])  # fmt: skip
        # Above the arch and over the heart the lungs part in front.
        part = np.interp(t, [0.0, 0.25, 0.45, 0.75, 0.9, 1.0], [30, 14, 0, 0, 10, 16]).astype(np.float32) * s
        width = np.where(v < -0.2, np.maximum(width, part), width)
        top = np.interp(t, [0.8, 0.95], [0, 20 * s])
        width = np.maximum(width, top)
        out[side] = (side * (c.x - axis) - width).astype(np.float32)
    return out


def _vessels_and_heart(c: Canvas, p: Anatomy, rng: Rng) -> list[tuple[Box, Field, float, float]]:
    """Return the solid mediastinal organs as (box, signed distance, HU, wall of fat in mm)."""
    u, s, b = rng.uniform, p.scale, p.blood
    base = float(np.mean(p.dome))
    heart = (float(u(5, 32)) * s, -float(u(0.15, 0.4)) * p.half_depth, base + float(u(18, 50)) * s)
    tilt = np.deg2rad(float(u(15, 50)))
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1.0]])
    big = float(u(0.85, 1.3))
    r = np.array([u(50, 68), u(38, 52), u(40, 60)]) * s * big
    vy, arch = p.vertebra_y, p.arch
    ra = float(u(10, 17)) * s
    down = float(u(12, 30)) * s
    pieces: list[tuple[tuple[Box, Field] | None, float, float]] = [
        (c.ellipsoid(heart, r, turn), b * 0.8 + 15, float(u(1, 7))),
        (c.tube([(heart[0] - 12 * s, heart[1] + 5, heart[2] + 25 * s), (-8 * s, -18 * s, arch - 25 * s), (-4 * s, -8 * s, arch - 5),
                 (10 * s, 8 * s, arch), (down, vy - 18 * s, arch - 16 * s), (down, vy - 8 * s, arch - 60 * s), (down * 0.6, vy - 22 * s, -80 * s),
                 (5, vy - 24 * s, -400)], ra), b, 2.0),
        (c.tube([(-20 * s, -14 * s, p.height * 1.05), (-24 * s, -14 * s, heart[2] + 20 * s)], 8 * s), b * float(u(0.8, 2.5)), 2.0),
        (c.tube([(8 * s, -22 * s, p.carina - 15 * s), (0, -8 * s, p.carina - 14 * s), (p.hilum[-1][0], p.hilum[-1][1] - 6, p.hilum[-1][2])],
                [13 * s, 11 * s, 8 * s]), b, 1.5),
        (c.tube([(8 * s, -22 * s, p.carina - 15 * s), (22 * s, -6 * s, p.carina - 10 * s), (p.hilum[1][0], p.hilum[1][1] + 6, p.hilum[1][2])],
                [13 * s, 11 * s, 8 * s]), b, 1.5),
        (c.tube([(8 * s, -4, arch + 4), (18 * s, 4, p.height), (25 * s, 0, p.height * 1.3)], 6 * s), b, 1.5),
        (c.tube([(-4 * s, -8, arch + 4), (-16 * s, 0, p.height), (-25 * s, 0, p.height * 1.3)], 7 * s), b, 1.5),
        (c.tube([(4 * s, vy - 30 * s, p.height * 1.1), (6 * s, vy - 27 * s, p.carina), (12 * s, vy - 32 * s, base)], 7 * s), 35.0, 1.5),
    ]  # fmt: skip
    for side in SIDES:
        size = np.array([u(7, 15), u(10, 20), u(14, 30)]) * s
        pieces.append((c.ellipsoid(p.hilum[side], size), 45.0, 0.5))
    return [(shape[0], shape[1], value, wall) for shape, value, wall in pieces if shape is not None]


def _airway(p: Anatomy, rng: Rng) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Return the central airway (trachea, main bronchi) and the lobar bronchi as (points, radii)."""
    u, s, r = rng.uniform, p.scale, p.trachea
    cx, cy = p.carina_xy
    bow = float(u(-6, 6)) * s
    trachea = [(float(u(-4, 4)), cy - float(u(5, 30)) * s, p.height * 1.7), (bow, cy - 8 * s, p.height * 1.05),
               (bow * 0.5, cy - 3, (p.height + p.carina) / 2), (cx, cy, p.carina)]  # fmt: skip
    central: list[tuple[Any, Any]] = [(trachea, [r * 0.8, r * 0.95, r, r * 1.1])]
    lobar: list[tuple[Any, Any]] = []
    for side in SIDES:
        hx, hy, hz = p.hilum[side]
        rb = r * float(u(0.62, 0.85))
        bend = ((cx + hx) / 2, (cy + hy) / 2, p.carina - 0.45 * (p.carina - hz))
        central.append(([(cx, cy, p.carina), bend, (hx, hy, hz)], [rb * 1.15, rb, rb * 0.75]))
        for dx, dy, dz in ((18, -14, 14), (22, 12, -22), (10, 22, -48), (15, -25, -30)):
            end = (hx + side * dx * s, hy + dy * s, hz + dz * s)
            lobar.append(([(hx, hy, hz), end], [rb * float(u(0.45, 0.7)), 1.5 * s]))
    return central, lobar


def paint_lungs(c: Canvas, p: Anatomy, rng: Rng) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Paint what lies inside the rib cage and return (labels, other air).

    Returns
    -------
    labels
        uint8: 1 right lung, 2 left lung.
    other_air
        bool: air that is not lung.
    """
    shape, u, s = c.hu.shape, rng.uniform, p.scale
    cavity = _cavity(c, p) + np.float32(u(1.0, 3.0))
    domes = _domes(c, p, rng)
    sides = _mediastinum(c, p, rng)
    organs = _vessels_and_heart(c, p, rng)
    ceiling = np.where(c.x < 0, domes[-1], domes[1])
    _abdomen(c, p, rng, cavity, ceiling)
    for box, d, value, _ in organs:
        c.paint(box, d, value)
    texture = _lung_texture(c, p, rng)
    labels = np.zeros(shape, np.uint8)
    solid = np.full(shape, 60, np.float32)  # distance to the nearest organ that the lung must leave free
    for box, d, _, wall in organs:
        np.minimum(solid[box], d - np.float32(wall), out=solid[box])
    central, lobar = _airway(p, rng)
    tubes = []
    for points, radii in central:
        shape_ = c.tube(points, radii)
        if shape_ is not None:
            box, d = shape_
            wall = float(u(1.0, 2.5)) * s
            tubes.append((box, d))
            np.minimum(solid[box], d - np.float32(wall), out=solid[box])
    # Spine and its muscles push into the cavity from behind.
    spine = np.sqrt((c.x / 1.15) ** 2 + (c.y - p.vertebra_y) ** 2) - np.float32(20 * s)
    np.minimum(solid, spine, out=solid)
    lesion = _lesions(c, p, rng, cavity)
    for label, side in ((1, -1), (2, 1)):
        d = np.maximum(cavity, -sides[side])
        d = np.maximum(d, (domes[side] - c.z) * np.float32(0.7))
        d = np.maximum(d, c.z - np.float32(p.height))
        d = np.maximum(d, -solid)
        # Air-containing lung ends at a mass, a consolidation or an effusion, which stay tissue inside it.
        c.paint(FULL, d, lesion[1])
        aired = np.maximum(d, -lesion[0])
        c.paint(FULL, aired, texture)
        labels[aired < 0] = label
    other = np.zeros(shape, bool)
    for box, d in tubes:
        c.paint(box, d - np.float32(1.5 * s), 30.0, within=(labels[box] == 0).astype(np.float32))
    for box, d in tubes:
        c.paint(box, d, -995.0)
        labels[box][d < 0.5] = 0
    for points, radii in lobar:
        shape_ = c.tube(points, radii)
        if shape_ is not None:
            box, d = shape_
            lung = (labels[box] > 0).astype(np.float32)
            c.paint(box, np.abs(d - 0.5) - 0.7, -100.0, within=lung)
            c.paint(box, d, -990.0, within=lung)
    other = (c.hu < -450) & (labels == 0)
    return labels, other


def _lesions(c: Canvas, p: Anatomy, rng: Rng, cavity: Field) -> tuple[Field, Field]:
    """Return (signed distance, HU) of solid disease: masses, consolidation, effusion."""
    shape, u, s = c.hu.shape, rng.uniform, p.scale
    d = np.full(shape, 60, np.float32)
    value = (35 + 15 * smooth_noise(rng, shape, c.voxel, 15.0)).astype(np.float32)
    if not p.disease:
        return d, value
    rough = smooth_noise(rng, shape, c.voxel, 10.0)
    for _ in range(int(rng.choice([0, 1, 2, 5], p=[0.4, 0.3, 0.2, 0.1]))):
        at = (float(u(-1, 1)) * p.half_width, float(u(-0.9, 0.9)) * p.half_depth, float(u(0.05, 0.95)) * p.height)
        e = c.ellipsoid(at, float(u(9, 32)) * s * np.array([u(0.7, 1.3), u(0.7, 1.3), u(0.7, 1.3)]))
        if e is not None:
            np.minimum(d[e[0]], e[1] + 2.5 * rough[e[0]], out=d[e[0]])
    if rng.random() < 0.25:  # effusion: fluid against the back of one or both sides, its level tilted a little
        for side in SIDES:
            if rng.random() < 0.6:
                deep = float(u(0.5, 0.95)) * p.half_depth
                level = deep + float(u(0.0, 0.5)) * np.clip(c.z - 0.3 * p.height, -80, 400) + 2 * rough
                np.minimum(d, np.maximum(level - c.y, -side * c.x), out=d)
    if rng.random() < 0.25:  # consolidation: a patch cut out by a smooth field, low down and at the back more often
        patch = smooth_noise(rng, shape, c.voxel, float(u(35, 70)) * s)
        at = (
            float(rng.choice(SIDES)) * 0.55 * p.half_width,
            float(u(-0.3, 0.8)) * p.half_depth,
            float(u(0.0, 0.8)) * p.height,
        )
        far = np.sqrt((c.x - at[0]) ** 2 + (c.y - at[1]) ** 2 + (c.z - at[2]) ** 2) - float(u(20, 55)) * s
        np.minimum(d, np.maximum(far + 8 * rough, (0.1 - patch) * 12), out=d)
    del cavity
    return d, value


def _lung_texture(c: Canvas, p: Anatomy, rng: Rng) -> Field:
    """Return the HU of aerated lung: parenchyma, gradient, vessels, and diffuse disease."""
    shape, u, s = c.hu.shape, rng.uniform, p.scale
    hu = p.lung + float(u(0, 90)) * c.y / p.half_depth + 18 * smooth_noise(rng, shape, c.voxel, 30.0)
    depth = np.full(shape, 200, np.float32)
    for x, y, z in p.hilum.values():
        np.minimum(depth, np.sqrt((c.x - x) ** 2 + (c.y - y) ** 2 + ((c.z - z) * 0.8) ** 2), out=depth)
    # Where two smooth fields both vanish lie curves; those curves are the vessels, thicker towards the hilum.
    for length, size, power in ((26.0, 5.0, 1.0), (14.0, 2.4, 0.5)):
        one, two = (smooth_noise(rng, shape, c.voxel, length * s) for _ in range(2))
        r = np.sqrt(one * one + two * two) * np.float32(length * s / 2.2)
        size_here = size * s * np.clip(1.1 - depth / (110 * s), 0.12, 1.0) ** power * float(u(0.7, 1.2))
        hu += c.alpha(r - size_here) * (40 + (p.blood - 40) * 0.8 - hu)
    if not p.disease:
        return hu.astype(np.float32)
    if rng.random() < 0.25:  # emphysema and bullae
        patch = smooth_noise(rng, shape, c.voxel, float(u(6, 40)))
        hu = np.where(patch > float(u(0.2, 1.2)), -970 + 8 * patch, hu)
    if rng.random() < 0.3:  # ground glass
        patch = smooth_noise(rng, shape, c.voxel, float(u(20, 60)))
        hu += np.clip((patch - float(u(0.0, 1.2))) * 2, 0, 1) * float(u(80, 330))
    if rng.random() < 0.25:  # fibrosis: a net of strands below the pleura at the bases
        net = np.abs(smooth_noise(rng, shape, c.voxel, float(u(5, 10))))
        low = np.clip(float(u(0.4, 1.0)) - c.z / p.height, 0, 0.6) * 1.6
        edge = np.clip(1 + _cavity(c, p) / 30, 0, 1)
        hu += low * edge * np.clip(1 - net * 3, 0, 1) * float(u(300, 800))
    return np.minimum(hu, 300).astype(np.float32)


def _abdomen(c: Canvas, p: Anatomy, rng: Rng, cavity: Field, ceiling: Field) -> None:
    """Paint liver, stomach, spleen, kidneys and bowel below the diaphragm, gas included."""
    u, s = rng.uniform, p.scale
    below = np.maximum(cavity + 2, (c.z - ceiling) * np.float32(0.7) + np.float32(u(2, 5)))
    room = c.alpha(below)
    organ = float(u(45, 75) if p.blood < 60 else u(80, 130))
    grain = 8 * smooth_noise(rng, c.hu.shape, c.voxel, 12.0)
    liver = np.maximum(below, np.maximum(c.x - float(u(0, 60)) * s, -c.z - float(u(50, 120)) * s))
    c.paint(FULL, liver, organ + grain)
    c.paint(FULL, np.maximum(below, -c.z - 20 * s), organ * 0.8 + grain, within=(c.x > 0).astype(np.float32) * 0.9)
    top = p.dome[1]

    def inside(shape: tuple[Box, Field] | None, value: Any) -> None:
        if shape is not None:
            c.paint(shape[0], shape[1], value, within=room[shape[0]])

    inside(
        c.ellipsoid((0.65 * p.half_width, 0.45 * p.half_depth, top - 55 * s), np.array([28, 38, 45]) * s), organ * 1.1
    )
    for side in SIDES:
        inside(c.ellipsoid((side * 60 * s, 0.5 * p.half_depth, -70 * s), np.array([28, 26, 50]) * s), organ * 1.4)
    stomach = c.ellipsoid(
        (float(u(0.3, 0.6)) * p.half_width, -float(u(0.0, 0.4)) * p.half_depth, top - float(u(35, 60)) * s),
        np.array([u(25, 50), u(25, 50), u(30, 60)]) * s, rotation(rng, 20),
    )  # fmt: skip
    if stomach is not None:
        box, d = stomach
        inside(stomach, 40.0)
        food = np.clip(smooth_noise(rng, c.hu[box].shape, c.voxel, float(u(4, 10))) - float(u(0.3, 2.0)), 0, 1)
        inside((box, d + 3), 30 - float(u(0, 900)) * food)
        if rng.random() < 0.7:
            level = float(u(-0.7, 0.2)) * p.half_depth
            inside((box, np.maximum(d + 3, c.y[box] - level)), float(u(-1000, -900)))
    speckle = smooth_noise(rng, c.hu.shape, c.voxel, float(u(4, 12)))
    for _ in range(int(rng.integers(2, 14))):  # loops of bowel; some lie right below the diaphragm
        high = rng.random() < 0.5
        z = float(u(0.2, 0.9)) * top if high else float(u(-250, 20))
        at = (float(u(-0.9, 0.9)) * p.half_width, float(u(-0.85, 0.1)) * p.half_depth, z)
        e = c.ellipsoid(at, np.array([u(8, 40), u(8, 28), u(8, 30)]) * s, rotation(rng, 40))
        if e is not None:
            inside(e, 40.0)
            gas = rng.random() < 0.65
            inner = -980.0 if gas else -20 - 500 * np.clip(speckle[e[0]] - 0.3, 0, 1)
            inside((e[0], e[1] + 2.5), inner)


def paint_head(c: Canvas, rng: Rng) -> npt.NDArray[np.bool_]:
    """Paint a head and upper neck with its air spaces; z = 0 at the skull base. Return the mask of all air."""
    u = rng.uniform
    s = float(u(0.75, 1.1))
    c.hu += 8 * smooth_noise(rng, c.hu.shape, c.voxel, 40.0)
    if rng.random() < 0.8:  # head holder
        r = np.sqrt(c.x**2 + (c.y - 10) ** 2) - float(u(115, 140))
        c.paint(FULL, np.maximum(np.abs(r) - 3, -c.y - 10), float(u(-600, 200)))
        c.paint(FULL, np.maximum(np.maximum(r, -r - 30), -c.y + 20), float(u(-985, -900)))
    bone = float(u(500, 1100))
    brain = (0.0, 5 * s, 45 * s)
    c.blob((0, 20 * s, -80 * s), np.array([58, 62, 150]) * s, -90)
    c.blob((0, 20 * s, -80 * s), np.array([53, 57, 150]) * s, 50)
    c.blob((0, -40 * s, -25 * s), np.array([62, 58, 75]) * s, 20)
    c.blob((0, -105 * s, -25 * s), np.array([14, 16, 25]) * s, 10)
    size = np.array([u(68, 80), u(85, 98), u(75, 88)]) * s
    for grow, value in ((9.0, -60.0), (5.0, bone), (-2.0, bone * 0.7), (-6.0, 35.0)):
        c.blob(brain, size + grow, value)
    c.blob((0, -30 * s, -5 * s), np.array([60, 45, 14]) * s, bone * 0.8)
    c.pipe([(0, 18 * s, -25 * s), (0, 15 * s, -260 * s)], 15 * s, bone * 0.7)
    for side in SIDES:
        c.blob((side * 32 * s, -75 * s, 0), 13 * s, 15)
        if rng.random() < 0.85:  # maxillary and frontal sinuses
            c.blob((side * 28 * s, -60 * s, -25 * s), np.array([u(9, 17), u(10, 18), u(10, 20)]) * s, -990)
        if rng.random() < 0.85:
            c.blob((side * 14 * s, -82 * s, 30 * s), np.array([u(5, 16), u(3, 8), u(6, 18)]) * s, -990)
        c.blob((side * 12 * s, -45 * s, -8 * s), np.array([6, 16, 10]) * s, float(u(-990, -500)))
        e = c.ellipsoid((side * 55 * s, 30 * s, -12 * s), np.array([10, 15, u(12, 24)]) * s)
        if e is not None:  # mastoid air cells
            cells = smooth_noise(rng, c.hu[e[0]].shape, c.voxel, 3.5)
            c.paint(e[0], e[1], np.where(cells > -0.3, -850, bone))
        c.pipe([(side * 75 * s, 18 * s, -8 * s), (side * 50 * s, 18 * s, -8 * s)], 3.5 * s, -990)
    c.pipe([(0, -90 * s, -25 * s), (0, -25 * s, -22 * s), (0, -8 * s, -50 * s), (0, -8 * s, -110 * s), (0, -15 * s, -260 * s)],
           [7 * s, 9 * s, float(u(4, 11)) * s, float(u(5, 11)) * s, 9 * s], -990)  # fmt: skip
    if rng.random() < 0.3:
        c.blob((0, -60 * s, -55 * s), np.array([20, 22, u(3, 12)]) * s, -990)
    return np.asarray(ndimage.binary_opening(c.hu < -450, iterations=1) | (c.hu < -700))
