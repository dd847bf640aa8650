"""Findings: what an engine says, in domain terms, with no DICOM in it.

An image is named by whatever key the caller gave it (the node gives SOP Instance UIDs). Masks are in the order
of those keys, on the grid of the source images: nothing here was ever resampled away from what was received.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "Classification",
    "Code",
    "Coverage",
    "Detection",
    "Findings",
    "HeatMap",
    "Measurement",
    "NotAnalysed",
    "Plane",
    "Segment",
    "Segmentation",
    "code_as_dict",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded concept: value, coding scheme designator (PS3.16 Section 8) and meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAnalysed:
    """Why a model made no finding, coded where a standard code exists. Never to be read as "nothing found"."""

    reason: str
    text: str
    code: Code | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """One finding about one image: present or absent at the card's threshold, with the probability (0 to 1)."""

    name: str
    code: Code
    probability: float
    threshold: float
    image: str

    @property
    def present(self) -> bool:
        """Whether the probability reaches the card's threshold."""
        return self.probability >= self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One value about one image, in a UCUM unit."""

    name: str
    code: Code
    value: float
    unit: Code
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One thing found in one image, and where.

    ``box`` is (top, left, bottom, right) in the pixels of the image as it stores them: 0 is the outer edge of the
    first row or column, so that a box over the whole image is (0, 0, Rows, Columns).
    """

    name: str
    code: Code
    probability: float
    threshold: float
    image: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Where in one image a classifier looked for one finding.

    ``values`` is uint8 of shape (rows, columns): on the pixels of the image as it stores them, 255 where the evidence
    for the finding is strongest, 0 where there is none.
    """

    name: str
    code: Code
    image: str
    values: npt.NDArray[np.uint8]


#: Where the distance of a radiograph's pixels holds (PS3.3 Section 10.7.1.3): at the detector, where magnification
#: makes all that lies before it larger; at a depth that it was calibrated for; or the header does not say.
Plane = Literal["detector", "calibrated", "unstated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One segmented structure: its label in the mask, its codes (anatomy, CID 7150 category) and its size.

    A structure of a volume has ``volume_ml``. On a radiograph, a projection, it has none: ``pixels`` counts what it
    covers, ``area_mm2`` is its area where the header says how far pixels lie apart, and ``plane`` where that holds.
    """

    label: int
    name: str
    code: Code
    category: Code
    volume_ml: float | None = None
    pixels: int | None = None
    area_mm2: float | None = None
    plane: Plane | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """Segments and the mask that holds them.

    ``labels`` is uint8 of shape (planes, rows, columns): plane ``i`` lies on the pixels of image ``images[i]``, exactly
    as that image stores its rows and columns; 0 is background. Of a multi-frame image it lies on frame ``frames[i]``,
    counted from 1, and the image is named once for each of its planes; 0 stands for a single-frame image, and so does
    an empty ``frames`` for all of them.

    Structures may overlap. In a volume ``together`` has a value of its own for each set of labels that hold in a voxel
    together, which is no segment's label (:mod:`inference.marking`). Of a radiograph the image is named once for each
    of the segments, in their order, and that plane holds that segment alone.
    """

    segments: tuple[Segment, ...]
    images: tuple[str, ...]
    labels: npt.NDArray[np.uint8]
    frames: tuple[int, ...] = ()
    together: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What the model could see: the number of slices, their spacing and the extent along the normal, in mm."""

    images: int
    spacing_mm: float
    extent_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one model says about one input set. Either ``not_analysed`` stands, or the answer to what was asked does.

    ``warnings`` are for people, and never hold a patient's identity. ``provider`` and ``precision`` say what really
    ran; ``statistics`` describe the input, feature by feature, as JSON-ready values; ``fingerprints`` are perceptual
    hashes, by image. ``cached`` findings were not computed now, but the time before on the same input.
    """

    images: tuple[str, ...]
    classifications: tuple[Classification, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    detections: tuple[Detection, ...] = ()
    segmentation: Segmentation | None = None
    heat_maps: tuple[HeatMap, ...] = ()
    coverage: Coverage | None = None
    not_analysed: NotAnalysed | None = None
    warnings: tuple[str, ...] = ()
    provider: str = ""
    precision: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cached: bool = False

    def summary(self) -> dict[str, Any]:
        """Return all but masks and maps as JSON-ready values: what the database keeps and reports are built from."""
        values: dict[str, Any] = {
            "images": list(self.images),
            "classifications": [
                {
                    "name": c.name,
                    "code": code_as_dict(c.code),
                    "probability": c.probability,
                    "threshold": c.threshold,
                    "present": c.present,
                    "image": c.image,
                }
                for c in self.classifications
            ],
            "measurements": [
                {
                    "name": m.name,
                    "code": code_as_dict(m.code),
                    "value": m.value,
                    "unit": code_as_dict(m.unit),
                    "image": m.image,
                }
                for m in self.measurements
            ],
            "detections": [
                {
                    "name": d.name,
                    "code": code_as_dict(d.code),
                    "probability": d.probability,
                    "threshold": d.threshold,
                    "image": d.image,
                    "box": list(d.box),
                }
                for d in self.detections
            ],
            "segments": [
                {
                    "label": s.label,
                    "name": s.name,
                    "code": code_as_dict(s.code),
                    "volume_ml": s.volume_ml,
                    "pixels": s.pixels,
                    "area_mm2": s.area_mm2,
                    "plane": s.plane,
                }
                for s in (self.segmentation.segments if self.segmentation else ())
            ],
            "coverage": None
            if self.coverage is None
            else {
                "images": self.coverage.images,
                "spacing_mm": self.coverage.spacing_mm,
                "extent_mm": self.coverage.extent_mm,
            },
            "not_analysed": None,
            "warnings": list(self.warnings),
            "provider": self.provider,
            "precision": self.precision,
            "statistics": self.statistics,
            "fingerprints": self.fingerprints,
            "seconds": self.seconds,
            "cached": self.cached,
        }
        if self.not_analysed is not None:
            code = self.not_analysed.code
            values["not_analysed"] = {
                "reason": self.not_analysed.reason,
                "text": self.not_analysed.text,
                "code": code and code_as_dict(code),
            }
        return values


def code_as_dict(code: Code) -> dict[str, str]:
    """Return a code as JSON-ready values."""
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}
