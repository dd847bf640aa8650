"""Make synthetic CT volumes of the chest, the head and the abdomen with their true lung masks.

Nothing here is learned from or copied out of a scan: anatomy is drawn from ellipsoids, tubes and smooth random fields
whose sizes are drawn at random around textbook values. Axes of every array are (slice, row, column): slices from
inferior to superior, rows towards posterior, columns towards the patient's left (LPS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from phantoms.anatomy import Anatomy, draw_anatomy, paint_body
from phantoms.canvas import make_canvas
from phantoms.head import paint_head
from phantoms.lungs import paint_lungs
from phantoms.scanner import ScanStyle, draw_style, scan

RIGHT_LUNG = 1
LEFT_LUNG = 2

Region = Literal["lungs", "any", "abdomen"]


@dataclass(frozen=True)
class ThoraxPhantom:
    """A synthetic CT volume and its truth.

    Attributes
    ----------
    hu
        int16 [slice, row, column], Hounsfield units.
    labels
        uint8, same shape: 0 background, 1 right lung (the patient's right), 2 left lung. Air-containing lung with
        its vessels; trachea, main bronchi, masses, consolidation and effusion are not lung.
    other_air
        bool, same shape: air that is not lung (outside the body, airway, stomach, bowel, sinuses).
    volumes_ml
        Volume of each label in mL, keyed by label.
    spacing
        (slice, row, column) in mm.
    """

    hu: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    other_air: npt.NDArray[np.bool_]
    volumes_ml: dict[int, float]
    spacing: tuple[float, float, float]


def make_thorax(
    seed: int,
    *,
    shape: tuple[int, int, int] = (60, 256, 256),
    spacing: tuple[float, float, float] = (4.0, 1.4, 1.4),
    region: Region = "lungs",
    disease: bool = True,
    variation: float = 1.0,
    style: ScanStyle | None = None,
) -> ThoraxPhantom:
    """Return a synthetic chest CT.

    Parameters
    ----------
    seed
        Same seed and arguments, same phantom.
    shape, spacing
        Voxels and mm along slice, row and column.
    region
        "lungs" keeps both lungs inside the volume when it is tall enough (170 mm or more); "any" puts the volume
        anywhere between mid-abdomen and neck; "abdomen" ends below the lungs.
    disease
        Allow masses, effusion, consolidation, emphysema, fibrosis and bullae.
    variation
        Scale of the random differences in pose (0: straight and centred).
    style
        Scanner, kernel and noise; drawn at random when None.

    Returns
    -------
    ThoraxPhantom
    """
    rng = np.random.default_rng([seed, 20])
    extent = shape[0] * spacing[0]
    anatomy: Anatomy = draw_anatomy(rng, disease=disease)
    height = anatomy.height
    if region == "lungs":
        if extent >= 170:
            height = min(height, 0.9 * extent)
            anatomy = anatomy.with_height(height)
        middle = 0.5 * height + rng.uniform(-0.03, 0.03) * extent * variation
    elif region == "any":
        middle = rng.uniform(-0.35, 1.25) * height
    else:
        middle = -0.5 * extent - rng.uniform(5, 60)
    canvas = make_canvas(
        rng,
        shape,
        spacing,
        centre=(variation * rng.normal(0, 12), variation * rng.normal(5, 12), middle),
        turn_degrees=variation * rng.normal(0, 4.5),
        lean=(variation * rng.normal(0, 0.04), variation * rng.normal(0, 0.04)),
        warp_mm=variation * rng.uniform(0.5, 4.0),
    )
    paint_body(canvas, anatomy, rng)
    labels, other_air = paint_lungs(canvas, anatomy, rng)
    hu = scan(canvas, style or draw_style(rng), rng)
    return _phantom(hu, labels, other_air, spacing)


def make_head(
    seed: int,
    *,
    shape: tuple[int, int, int] = (40, 256, 256),
    spacing: tuple[float, float, float] = (5.0, 1.0, 1.0),
    style: ScanStyle | None = None,
) -> ThoraxPhantom:
    """Return a synthetic head CT: skull, sinuses, mastoid cells, nose, pharynx, air around; no lung.

    Parameters
    ----------
    seed, shape, spacing, style
        As in `make_thorax`.
    """
    rng = np.random.default_rng([seed, 21])
    canvas = make_canvas(
        rng,
        shape,
        spacing,
        centre=(rng.normal(0, 8), rng.normal(5, 10), rng.uniform(-40, 20)),
        turn_degrees=rng.normal(0, 6),
        lean=(rng.normal(0, 0.08), rng.normal(0, 0.2)),
        warp_mm=rng.uniform(0.5, 3.0),
    )
    other_air = paint_head(canvas, rng)
    hu = scan(canvas, style or draw_style(rng), rng)
    return _phantom(hu, np.zeros(shape, np.uint8), other_air, spacing)


def _phantom(
    hu: npt.NDArray[np.int16],
    labels: npt.NDArray[np.uint8],
    other_air: npt.NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> ThoraxPhantom:
    ml = float(np.prod(spacing)) / 1000
    volumes = {label: float((labels == label).sum()) * ml for label in (RIGHT_LUNG, LEFT_LUNG)}
    return ThoraxPhantom(hu, labels, other_air, volumes, spacing)
