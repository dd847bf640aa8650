"""Segment the lungs of a chest CT by classical means, as a reference for the model.

The reference is air-containing lung inside the body, vessels included; trachea and main bronchi down to the hilum,
effusion and consolidation are excluded. The method works at full resolution and shares no code with the model, its
labels or the phantoms: body mask, threshold, an airway followed from slice to slice that may not leak, connected
components, a watershed where the lungs touch, and a closing for the vessels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Volume = npt.NDArray[np.int16]


def disc(radius_mm: float, spacing: tuple[float, float, float]) -> Mask:
    """Return a disc as an in-plane structuring element [row, column]."""
    ry, rx = (max(1, round(radius_mm / s)) for s in spacing[1:])
    y, x = np.ogrid[-ry : ry + 1, -rx : rx + 1]
    return np.asarray((y / ry) ** 2 + (x / rx) ** 2 <= 1.0)


def body_mask(hu: Volume, spacing: tuple[float, float, float]) -> Mask:
    """Return the body with everything that it encloses; table, clothes and cables are left out."""
    out = np.zeros(hu.shape, bool)
    element = disc(3.0, spacing)
    for k, plane in enumerate(hu):
        solid = ndimage.binary_opening(plane > -350, element)
        labels, n = ndimage.label(solid)
        if n == 0:
            continue
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        out[k] = ndimage.binary_fill_holes(labels == sizes.argmax())
    return out


def airway(hu: Volume, body: Mask, spacing: tuple[float, float, float]) -> Mask:
    """Follow the trachea from the top slice down through the main bronchi.

    In each slice the air that overlaps the airway of the slice above is taken, at the highest threshold for which it
    stays small (a main bronchus: 450 mm2 in all). A branch that cannot be kept small has reached the lung: it ends.
    """
    out = np.zeros(hu.shape, bool)
    area = spacing[1] * spacing[2]
    reach = disc(4.0, spacing)
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), (0, 0.6, 0.6))
    last: Mask | None = None
    for k in range(len(hu) - 1, -1, -1):
        if last is None:
            # The first slice with a compact hole of air in the middle of the body.
            labels, n = ndimage.label((smooth[k] < -600) & body[k])
            best, best_off = 0, 1e9
            columns = np.flatnonzero(body[k].any(0))
            for c in range(1, n + 1):
                part = labels == c
                mm2 = part.sum() * area
                rows_, cols_ = np.nonzero(part)
                off = abs(cols_.mean() - columns.mean()) * spacing[2]
                extent = max(np.ptp(rows_) * spacing[1], np.ptp(cols_) * spacing[2])
                if 40 < mm2 < 600 and extent < 35 and off < 45 and off < best_off:
                    best, best_off = c, off
            if best:
                last = labels == best
                out[k] = last
            continue
        grown = ndimage.binary_dilation(last, reach)
        found = np.zeros_like(last)
        parts, n = ndimage.label(last)
        for c in range(1, n + 1):
            seed_zone = ndimage.binary_dilation(parts == c, reach)
            before = (parts == c).sum() * area
            for threshold in (-600, -700, -800, -860, -900, -930, -950, -970):
                labels, _ = ndimage.label((smooth[k] < threshold) & body[k])
                hit = np.unique(labels[seed_zone])
                hit = hit[hit > 0]
                if hit.size == 0:
                    break
                region = np.isin(labels, hit)
                share = (region & grown).sum() / region.sum()
                if region.sum() * area < min(max(2.2 * before, 120.0), 600.0) and share > 0.35:
                    found |= region
                    break
        if not found.any():
            break
        last = found
        out[k] = found
    return out


def close(mask: Mask, radius_mm: float, spacing: tuple[float, float, float]) -> Mask:
    """Close a slice with a disc, by distances: as fast for a large disc as for a small one."""
    pad = int(np.ceil(radius_mm / min(spacing[1:]))) + 2
    wide = np.pad(mask, pad)
    grown = ndimage.distance_transform_edt(~wide, sampling=spacing[1:]) <= radius_mm
    shrunk = ndimage.distance_transform_edt(grown, sampling=spacing[1:]) > radius_mm
    return np.asarray((shrunk | wide)[pad:-pad, pad:-pad])


def _keep(mask: Mask, minimum: float) -> Mask:
    labels, n = ndimage.label(mask)
    if n == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= minimum)[labels])


def split_sides(air: Mask, spacing: tuple[float, float, float]) -> npt.NDArray[np.uint8]:
    """Return 1 (right) and 2 (left) for the two lungs; where they touch, a watershed of the depth parts them."""
    out = np.zeros(air.shape, np.uint8)
    ml = float(np.prod(spacing)) / 1000
    middle = float(np.nonzero(air)[2].mean())
    labels, _ = ndimage.label(air)
    for c, box in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[box] == c
        if part.sum() * ml < 3:
            continue
        columns = np.nonzero(part)[2] + box[2].start
        right = float((columns < middle).mean())
        if 0.1 < right < 0.9 and part.sum() * ml > 300:
            out[box][part] = _watershed(part, middle - box[2].start, spacing)[part]
        else:
            out[box][part] = 1 if right >= 0.5 else 2
    return out


def _watershed(part: Mask, middle: float, spacing: tuple[float, float, float]) -> npt.NDArray[np.uint8]:
    depth = np.stack([ndimage.distance_transform_edt(p, sampling=spacing[1:]) for p in part])
    column = np.arange(part.shape[2])[None, None, :]
    seeds = np.zeros(part.shape, np.int16)
    seeds[(depth > 12) & (column < middle - 10 / spacing[2])] = 1
    seeds[(depth > 12) & (column > middle + 10 / spacing[2])] = 2
    seeds[~part] = 3
    cost = (65000 - np.clip(depth * 500, 0, 60000)).astype(np.uint16)
    return np.asarray(ndimage.watershed_ift(cost, seeds), np.uint8)


def segment(hu: Volume, spacing: tuple[float, float, float]) -> npt.NDArray[np.uint8]:
    """Return the reference labels.

    Parameters
    ----------
    hu
        int16 [slice, row, column], inferior to superior, columns towards the patient's left, rows posterior.
    spacing
        (slice, row, column) in mm.

    Returns
    -------
    labels
        uint8, same shape: 1 right lung, 2 left lung.
    """
    body = body_mask(hu, spacing)
    out = np.zeros(hu.shape, np.uint8)
    if not body.any():
        return out
    rows, columns = np.flatnonzero(body.any((0, 2))), np.flatnonzero(body.any((0, 1)))
    box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    out[box] = _segment(hu[box], body[box], spacing)
    return out


def _segment(hu: Volume, body: Mask, spacing: tuple[float, float, float]) -> npt.NDArray[np.uint8]:
    ml = float(np.prod(spacing)) / 1000
    area = spacing[1] * spacing[2]
    tube = airway(hu, body, spacing)
    wall = ndimage.binary_dilation(tube, disc(2.0, spacing)[None])
    smooth = ndimage.gaussian_filter(hu.astype(np.float32), (0, 0.7, 0.7))
    air = (smooth < -400) & body & ~wall
    air = np.stack([_keep(plane, 30 / area) for plane in air])
    labels, n = ndimage.label(air)
    sizes = np.bincount(labels.ravel(), minlength=n + 1).astype(float) * ml
    sizes[0] = 0
    lungs = (sizes >= 0.1 * sizes.max())[labels]
    out = np.zeros(hu.shape, np.uint8)
    sides = split_sides(lungs, spacing)
    for side in (1, 2):
        mask = sides == side
        for k, plane in enumerate(mask):
            if not plane.any():
                continue
            closed = close(plane, 6.0, spacing)
            holes = ndimage.binary_fill_holes(closed) & ~closed
            closed |= holes & ~_keep(holes, 300 / area)  # a vessel is small; a mass stays out
            mask[k] = closed
        mask &= body & ~wall & (out == 0)
        out[mask] = side
    return out
