"""Draw a random person and paint the body around the chest cavity: skin, muscle, bones, arms, table.

Coordinates are anatomical (mm): +x patient left, +y posterior, +z superior; z = 0 at the lowest edge of the lungs, the
lungs' apex at z = `height`. Sizes are random around textbook values, wider than life on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from phantoms.canvas import FULL, Canvas, Field, rotation, smooth_noise

Rng = np.random.Generator
SIDES = (-1, 1)  # right, left

_T = [-1.5, -0.3, 0.0, 0.35, 0.55, 0.75, 0.88, 0.96, 1.02, 1.2]
CAVITY_A = [0.93, 1.0, 1.0, 0.98, 0.91, 0.77, 0.60, 0.46, 0.34, 0.30]
CAVITY_B = [0.98, 1.0, 1.0, 0.98, 0.92, 0.76, 0.58, 0.44, 0.32, 0.28]


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


def profile(z: Field, height: float, values: list[float]) -> Field:
    """Return a size along the body: `values` stand at fixed fractions of the lungs' height."""
    return np.asarray(np.interp(z / height, _T, values), dtype=np.float32)


def _superellipse(x: Field, y: Field, a: Any, b: Any, power: float) -> Field:
    ua, ub = np.abs(x / a), np.abs(y / b)
    f = (ua**power + ub**power) ** np.float32(1 / power) if power != 2 else np.sqrt(ua * ua + ub * ub)
    return np.asarray((f - 1) * np.minimum(a, b), dtype=np.float32)


def cavity_distance(c: Canvas, p: Anatomy) -> Field:
    """Return the signed distance (mm) to the inside of the rib cage, negative inside."""
    a = p.half_width * profile(c.z, p.height, CAVITY_A)
    b = p.half_depth * profile(c.z, p.height, CAVITY_B)
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
    a = np.interp(
        c.z / h,
        t,
        [wide * u(0.85, 1.15), wide, wide, max(wide, top * 0.9), top, top * 0.9, neck * 1.4, neck, neck, neck * 1.2],
    ).astype(np.float32)
    b = np.interp(
        c.z / h,
        t,
        [deep * u(0.9, 1.15), deep, deep, deep * 0.95, deep * 0.85, deep * 0.7, neck, neck, neck, neck * 1.3],
    ).astype(np.float32)
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
    cavity = cavity_distance(c, p)
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
        # Now and then the patient lies prone: the table is in front.
        face = -1 if rng.random() < 0.08 else 1
        radius, gap = float(u(300, 900)), p.half_depth + p.wall + p.fat * 0.7 + float(u(0, 25))
        bend = np.sqrt(c.x**2 + (face * c.y - np.float32(gap - radius)) ** 2) - np.float32(radius)
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
        c.pipe(
            [(x, y, z - 200), (x + float(u(-30, 30)), y, z), (x, y + float(u(-20, 20)), z + 200)],
            float(u(0.5, 8)),
            float(u(-950, 100)),
        )


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
