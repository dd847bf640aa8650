"""Paint a synthetic head and upper neck, in which there is air but no lung."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from phantoms.anatomy import SIDES, Rng
from phantoms.canvas import FULL, Canvas, smooth_noise


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
    c.pipe(
        [
            (0, -90 * s, -25 * s),
            (0, -25 * s, -22 * s),
            (0, -8 * s, -50 * s),
            (0, -8 * s, -110 * s),
            (0, -15 * s, -260 * s),
        ],
        [7 * s, 9 * s, float(u(4, 11)) * s, float(u(5, 11)) * s, 9 * s],
        -990,
    )
    if rng.random() < 0.3:
        c.blob((0, -60 * s, -55 * s), np.array([20, 22, u(3, 12)]) * s, -990)
    return np.asarray(ndimage.binary_opening(c.hu < -450, iterations=1) | (c.hu < -700))
