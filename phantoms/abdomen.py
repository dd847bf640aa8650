"""Paint the upper abdomen of a synthetic body, above all its gas, which a model must not take for lung."""

from __future__ import annotations

from typing import Any

import numpy as np

from phantoms.anatomy import SIDES, Anatomy, Rng
from phantoms.canvas import FULL, Box, Canvas, Field, rotation, smooth_noise


def paint_abdomen(c: Canvas, p: Anatomy, rng: Rng, cavity: Field, ceiling: Field) -> None:
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
        (float(u(0.3, 0.6)) * p.half_width, -float(u(0.0, 0.45)) * p.half_depth, top - float(u(30, 60)) * s),
        np.array([u(25, 62), u(25, 62), u(30, 70)]) * s,
        rotation(rng, 20),
    )
    if stomach is not None:
        box, d = stomach
        inside(stomach, 40.0)
        food = np.clip(smooth_noise(rng, c.hu[box].shape, c.voxel, float(u(4, 10))) - float(u(0.3, 2.0)), 0, 1)
        inside((box, d + 3), 30 - float(u(0, 900)) * food)
        if rng.random() < 0.7:
            level = float(u(-0.7, 0.2)) * p.half_depth
            inside((box, np.maximum(d + 3, c.y[box] - level)), float(u(-1000, -900)))
    speckle = smooth_noise(rng, c.hu.shape, c.voxel, float(u(4, 12)))
    for _ in range(int(rng.integers(2, 26))):  # loops of bowel; some lie right below the diaphragm
        high = rng.random() < 0.4
        z = float(u(0.2, 0.9)) * top if high else float(u(-260, 20))
        at = (float(u(-0.9, 0.9)) * p.half_width, float(u(-0.85, 0.1)) * p.half_depth, z)
        e = c.ellipsoid(at, np.array([u(8, 55), u(8, 34), u(8, 45)]) * s, rotation(rng, 40))
        if e is not None:
            inside(e, 40.0)
            gas = rng.random() < 0.65
            inner = -980.0 if gas else -20 - 500 * np.clip(speckle[e[0]] - 0.3, 0, 1)
            inside((e[0], e[1] + 2.5), inner)
