"""Paint soft-edged shapes into a CT volume: the drawing tools of the synthetic CT phantoms.

A canvas holds Hounsfield units on a regular grid together with the *anatomical* coordinates of every voxel centre
(mm; +x patient left, +y posterior, +z superior). The coordinates may be rotated, tilted and warped, so a shape that
is written as a plain ellipsoid comes out crooked, as in a person. Shapes are signed distances (mm, negative inside);
a voxel that an edge crosses takes a mixture, as the partial volume in a real scanner does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]
FULL: Box = (slice(None), slice(None), slice(None))


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float], length: float
) -> Field:
    """Return a smooth random field.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        Voxels along slice, row and column.
    spacing
        Millimetres along the same axes.
    length
        Correlation length in mm.

    Returns
    -------
    Field
        Array of `shape`, mean 0 and standard deviation about 1.
    """
    coarse = [int(np.ceil(n * s / length)) + 4 for n, s in zip(shape, spacing, strict=True)]
    out = rng.standard_normal(coarse).astype(np.float32)
    phase = rng.random(3)
    for axis, (n, s) in enumerate(zip(shape, spacing, strict=True)):
        # Cubic B-spline, one axis at a time: cheap, and without the creases that a linear one would show.
        at = (np.arange(n) * s / length + phase[axis]).astype(np.float32)
        low = at.astype(int)
        f = at - low
        weights = np.zeros((n, coarse[axis]), np.float32)
        rows = np.arange(n)
        weights[rows, low] = (1 - f) ** 3 / 6
        weights[rows, low + 1] = (3 * f**3 - 6 * f**2 + 4) / 6
        weights[rows, low + 2] = (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6
        weights[rows, low + 3] += f**3 / 6
        out = np.moveaxis(np.tensordot(weights, out, (1, axis)), 0, axis)
    return np.ascontiguousarray(out * np.float32(2.9), dtype=np.float32)


@dataclass
class Canvas:
    """A CT volume being painted.

    Attributes
    ----------
    hu
        float32 [slice, row, column].
    x, y, z
        Anatomical coordinates of the voxel centres in mm, same shape.
    voxel
        (slice, row, column) in mm.
    """

    hu: Field
    x: Field
    y: Field
    z: Field
    voxel: tuple[float, float, float]

    @property
    def edge(self) -> float:
        """Width in mm over which an edge is mixed."""
        return max(0.8, float(self.voxel[1]))

    def box(self, centre: npt.ArrayLike, reach: float) -> Box | None:
        """Return the index box that holds every voxel within `reach` mm of `centre`, or None when it is empty."""
        c = np.asarray(centre, dtype=float)
        out = []
        # Each axis is searched on the lines through the canvas middle, so a margin allows for rotation and warp.
        slack = 18.0
        mid = [n // 2 for n in self.hu.shape]
        lines = (
            (self.z[:, mid[1], mid[2]], c[2], 0.12),
            (self.y[mid[0], :, mid[2]], c[1], 0.2),
            (self.x[mid[0], mid[1], :], c[0], 0.2),
        )
        for values, at, lean in lines:
            off = float(np.abs(c).max()) * lean
            hit = np.flatnonzero(np.abs(values - at) <= reach + slack + off)
            if hit.size == 0:
                return None
            out.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return (out[0], out[1], out[2])

    def alpha(self, distance: Field) -> Field:
        """Return the share of each voxel that lies inside a shape with this signed distance (mm)."""
        return np.asarray(np.clip(np.float32(0.5) - distance / np.float32(self.edge), 0, 1), dtype=np.float32)

    def paint(self, box: Box, distance: Field, value: Any, within: Field | None = None) -> None:
        """Mix `value` (HU, scalar or array of the box's shape) into the voxels inside the shape."""
        a = self.alpha(distance)
        if within is not None:
            a = a * within
        part = self.hu[box]
        part += a * (value - part)

    def ellipsoid(
        self, centre: npt.ArrayLike, radii: npt.ArrayLike, turn: npt.NDArray[np.float64] | None = None
    ) -> tuple[Box, Field] | None:
        """Return (box, signed distance) of an ellipsoid; `turn` is a 3x3 rotation whose rows are its axes."""
        r = np.maximum(np.broadcast_to(np.asarray(radii, dtype=np.float32), (3,)), 0.3)
        box = self.box(centre, float(r.max()) + 4)
        if box is None:
            return None
        c = np.asarray(centre, dtype=np.float32)
        d = [self.x[box] - c[0], self.y[box] - c[1], self.z[box] - c[2]]
        if turn is not None:
            t = turn.astype(np.float32)
            d = [t[i, 0] * d[0] + t[i, 1] * d[1] + t[i, 2] * d[2] for i in range(3)]
        f = np.sqrt(sum((d[i] / r[i]) ** 2 for i in range(3)))
        g = np.sqrt(sum((d[i] / r[i] ** 2) ** 2 for i in range(3))) + np.float32(1e-6)
        return box, ((f - 1) * f / g).astype(np.float32)

    def tube(self, points: npt.ArrayLike, radii: npt.ArrayLike) -> tuple[Box, Field] | None:
        """Return (box, signed distance) of a tube along a polyline [n, 3] with one radius (mm) a point."""
        p = np.asarray(points, dtype=np.float32)
        r = np.broadcast_to(np.asarray(radii, dtype=np.float32), (len(p),))
        middle = (p.max(0) + p.min(0)) / 2
        half = (p.max(0) - p.min(0)) / 2
        boxes = [self.box(q, float(r.max()) + 4) for q in (*p, middle)]
        found = [b for b in boxes if b is not None]
        if not found or half.max() > 2000:
            return None
        box: Box = tuple(  # type: ignore[assignment]
            slice(min(b[i].start for b in found), max(b[i].stop for b in found)) for i in range(3)
        )
        x, y, z = self.x[box], self.y[box], self.z[box]
        best: Field | None = None
        for k in range(len(p) - 1):
            a, v = p[k], p[k + 1] - p[k]
            n = float(v @ v) + 1e-6
            t = np.clip(((x - a[0]) * v[0] + (y - a[1]) * v[1] + (z - a[2]) * v[2]) / n, 0, 1)
            q = (x - a[0] - t * v[0]) ** 2 + (y - a[1] - t * v[1]) ** 2 + (z - a[2] - t * v[2]) ** 2
            d = np.sqrt(q) - (r[k] + t * (r[k + 1] - r[k]))
            best = d if best is None else np.minimum(best, d)
        return None if best is None else (box, best.astype(np.float32))

    def blob(
        self, centre: npt.ArrayLike, radii: npt.ArrayLike, value: Any, turn: npt.NDArray[np.float64] | None = None
    ) -> None:
        """Paint an ellipsoid."""
        shape = self.ellipsoid(centre, radii, turn)
        if shape is not None:
            self.paint(shape[0], shape[1], value)

    def pipe(self, points: npt.ArrayLike, radii: npt.ArrayLike, value: float) -> None:
        """Paint a tube."""
        shape = self.tube(points, radii)
        if shape is not None:
            self.paint(shape[0], shape[1], value)


def rotation(rng: np.random.Generator, degrees: float) -> npt.NDArray[np.float64]:
    """Return a random rotation matrix whose Euler angles have this standard deviation."""
    a, b, c = np.deg2rad(rng.normal(0, degrees, 3))
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(rx @ ry @ rz)


def make_canvas(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0),
    turn_degrees: float = 0.0,
    lean: tuple[float, float] = (0.0, 0.0),
    warp_mm: float = 0.0,
) -> Canvas:
    """Return an empty canvas (air) with its anatomical coordinates.

    Parameters
    ----------
    rng
        Source of randomness.
    shape, spacing
        Voxels and mm along slice, row and column.
    centre
        Anatomical coordinates (x, y, z; mm) of the middle of the volume.
    turn_degrees
        Rotation of the patient about the long axis.
    lean
        Sideways and backward lean, mm per mm of height.
    warp_mm
        Standard deviation of a smooth random displacement.
    """
    grid = [((np.arange(n, dtype=np.float32) - (n - 1) / 2) * s) for n, s in zip(shape, spacing, strict=True)]
    z, y, x = (grid[0][:, None, None], grid[1][None, :, None], grid[2][None, None, :])
    c, s = np.float32(np.cos(np.deg2rad(turn_degrees))), np.float32(np.sin(np.deg2rad(turn_degrees)))
    ax = np.broadcast_to(c * x - s * y + np.float32(lean[0]) * z + np.float32(centre[0]), shape).astype(np.float32)
    ay = np.broadcast_to(s * x + c * y + np.float32(lean[1]) * z + np.float32(centre[1]), shape).astype(np.float32)
    az = np.broadcast_to(z + np.float32(centre[2]), shape).astype(np.float32)
    if warp_mm > 0:
        ax, ay, az = (
            a + np.float32(warp_mm) * smooth_noise(rng, shape, spacing, float(rng.uniform(45, 110)))
            for a in (ax, ay, az)
        )
    return Canvas(np.full(shape, -1000, dtype=np.float32), ax, ay, az, spacing)
