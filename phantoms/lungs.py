"""Paint the inside of the synthetic chest: mediastinum, airway, lungs with vessels and disease; know the true lung."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from phantoms.abdomen import paint_abdomen
from phantoms.anatomy import CAVITY_B, SIDES, Anatomy, Rng, cavity_distance, profile
from phantoms.canvas import FULL, Box, Canvas, Field, smooth_noise


def _domes(c: Canvas, p: Anatomy, rng: Rng) -> dict[int, Field]:
    """Return, for each side, the height (mm) of the diaphragm above each voxel's column."""
    out: dict[int, Field] = {}
    for side, top in zip(SIDES, p.dome, strict=True):
        cx, cy = side * p.half_width * float(rng.uniform(0.42, 0.55)), p.half_depth * float(rng.uniform(-0.2, 0.05))
        r2 = ((c.x - cx) / (0.58 * p.half_width)) ** 2 + ((c.y - cy) / (0.98 * p.half_depth)) ** 2
        bend = r2 ** np.float32(rng.uniform(0.8, 1.6))
        back = np.clip((c.y - cy) / p.half_depth + 0.6, 0.25, 1.2)
        front = float(rng.uniform(0.35, 1.0))  # how deep the recess in front reaches beside that behind
        field = top - (top + 10) * np.clip(bend, 0, 2.5) * (front + (1.05 - front) * back)
        out[side] = (field + p.roughness * smooth_noise(rng, c.hu.shape, c.voxel, 50.0)).astype(np.float32)
    return out


def _mediastinum(c: Canvas, p: Anatomy, rng: Rng) -> dict[int, Field]:
    """Return, for each side, the signed distance to the mediastinal tissue (positive outside it)."""
    u, s, h = rng.uniform, p.scale, p.height
    t = c.z / h
    v = c.y / (p.half_depth * profile(c.z, h, CAVITY_B))
    front, back = p.junction
    axis = float(u(-8, 8)) * s + 4 * smooth_noise(rng, c.hu.shape, c.voxel, 70.0)
    out: dict[int, Field] = {}
    for side in SIDES:
        mid = float(u(15, 28)) * s
        width = np.interp(
            v,
            [-1.0, -0.65, -0.35, 0.1, 0.4, 0.62, 0.85, 1.1],
            [front, front, mid * 0.9, mid, back + 3, 18 * s, 18 * s, 14 * s],
        )
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
        (
            c.tube(
                [
                    (heart[0] - 12 * s, heart[1] + 5, heart[2] + 25 * s),
                    (-8 * s, -18 * s, arch - 25 * s),
                    (-4 * s, -8 * s, arch - 5),
                    (10 * s, 8 * s, arch),
                    (down, vy - 18 * s, arch - 16 * s),
                    (down, vy - 8 * s, arch - 60 * s),
                    (down * 0.6, vy - 22 * s, -80 * s),
                    (5, vy - 24 * s, -400),
                ],
                ra,
            ),
            b,
            2.0,
        ),
        (
            c.tube([(-20 * s, -14 * s, p.height * 1.05), (-24 * s, -14 * s, heart[2] + 20 * s)], 8 * s),
            b * float(u(0.8, 2.5)),
            2.0,
        ),
        (
            c.tube(
                [
                    (8 * s, -22 * s, p.carina - 15 * s),
                    (0, -8 * s, p.carina - 14 * s),
                    (p.hilum[-1][0], p.hilum[-1][1] - 6, p.hilum[-1][2]),
                ],
                [13 * s, 11 * s, 8 * s],
            ),
            b,
            1.5,
        ),
        (
            c.tube(
                [
                    (8 * s, -22 * s, p.carina - 15 * s),
                    (22 * s, -6 * s, p.carina - 10 * s),
                    (p.hilum[1][0], p.hilum[1][1] + 6, p.hilum[1][2]),
                ],
                [13 * s, 11 * s, 8 * s],
            ),
            b,
            1.5,
        ),
        (c.tube([(8 * s, -4, arch + 4), (18 * s, 4, p.height), (25 * s, 0, p.height * 1.3)], 6 * s), b, 1.5),
        (c.tube([(-4 * s, -8, arch + 4), (-16 * s, 0, p.height), (-25 * s, 0, p.height * 1.3)], 7 * s), b, 1.5),
        (
            c.tube(
                [(4 * s, vy - 30 * s, p.height * 1.1), (6 * s, vy - 27 * s, p.carina), (12 * s, vy - 32 * s, base)],
                7 * s,
            ),
            35.0,
            1.5,
        ),
    ]
    for side in SIDES:
        size = np.array([u(7, 15), u(10, 20), u(14, 30)]) * s
        pieces.append((c.ellipsoid(p.hilum[side], size), 45.0, 0.5))
    return [(shape[0], shape[1], value, wall) for shape, value, wall in pieces if shape is not None]


def _airway(p: Anatomy, rng: Rng) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """Return the central airway (trachea, main bronchi) and the lobar bronchi as (points, radii)."""
    u, s, r = rng.uniform, p.scale, p.trachea
    cx, cy = p.carina_xy
    bow = float(u(-6, 6)) * s
    trachea = [
        (float(u(-4, 4)), cy - float(u(5, 30)) * s, p.height * 1.7),
        (bow, cy - 8 * s, p.height * 1.05),
        (bow * 0.5, cy - 3, (p.height + p.carina) / 2),
        (cx, cy, p.carina),
    ]
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
    cavity = cavity_distance(c, p) + np.float32(u(1.0, 3.0))
    domes = _domes(c, p, rng)
    sides = _mediastinum(c, p, rng)
    organs = _vessels_and_heart(c, p, rng)
    ceiling = np.where(c.x < 0, domes[-1], domes[1])
    paint_abdomen(c, p, rng, cavity, ceiling)
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
    np.minimum(solid, np.maximum(np.abs(c.x) - 17 * s, p.vertebra_y - c.y), out=solid)
    lesion = _lesions(c, p, rng, cavity)
    for label, side in ((1, -1), (2, 1)):
        d = np.maximum(cavity, -sides[side])
        d = np.maximum(d, (domes[side] - c.z) * np.float32(0.7))
        d = np.maximum(d, np.maximum(c.z - np.float32(p.height), -6 - c.z))
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
    if rng.random() < 0.3:  # air in the oesophagus, or a hernia through the hiatus
        x, y = 0.0 + float(u(-4, 12)) * s, p.vertebra_y - 29 * s
        z = float(u(0.1, 0.95)) * p.height
        bubble = c.ellipsoid((x, y, z), np.array([u(2, 7), u(2, 6), u(10, 60)]) * s)
        if bubble is not None:
            c.paint(bubble[0], bubble[1], -980.0, within=(labels[bubble[0]] == 0).astype(np.float32))
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
        edge = np.clip(1 + cavity_distance(c, p) / 30, 0, 1)
        hu += low * edge * np.clip(1 - net * 3, 0, 1) * float(u(300, 800))
    return np.asarray(np.minimum(hu, 300), dtype=np.float32)
