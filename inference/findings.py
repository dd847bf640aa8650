"""Findings: what an engine says, in domain terms, with no DICOM in it.

An image is named by whatever key the caller gave it (the node gives SOP Instance UIDs). Masks are in the order
of those keys, on the grid of the source images: nothing here was ever resampled away from what was received.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Classification", "Code", "Coverage", "Findings", "NotAnalysed", "Segment", "Segmentation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A coded concept: value, coding scheme designator (PS3.16 Section 8) and meaning."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAnalysed:
    """Why a model made no finding. Never to be read as "nothing found"."""

    reason: str
    text: str


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
class Segment:
    """One segmented structure: its label in the mask, its codes (anatomy, CID 7150 category) and its volume in mL."""

    label: int
    name: str
    code: Code
    category: Code
    volume_ml: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """Segments and the mask that holds them.

    ``labels`` is uint8 of shape (images, rows, columns): plane ``i`` lies on the pixels of image ``images[i]``,
    exactly as that image stores its rows and columns; 0 is background.
    """

    segments: tuple[Segment, ...]
    images: tuple[str, ...]
    labels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What the model could see: the number of slices, their spacing and the extent along the normal, in mm."""

    images: int
    spacing_mm: float
    extent_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What one model says about one input set. Either ``not_analysed`` stands, or at least one finding does."""

    images: tuple[str, ...]
    classifications: tuple[Classification, ...] = ()
    segmentation: Segmentation | None = None
    coverage: Coverage | None = None
    not_analysed: NotAnalysed | None = None
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return all but the mask as JSON-ready values: what the database keeps and reports are built from."""
        return {
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
            "segments": [
                {"label": s.label, "name": s.name, "code": code_as_dict(s.code), "volume_ml": s.volume_ml}
                for s in (self.segmentation.segments if self.segmentation else ())
            ],
            "coverage": None
            if self.coverage is None
            else {
                "images": self.coverage.images,
                "spacing_mm": self.coverage.spacing_mm,
                "extent_mm": self.coverage.extent_mm,
            },
            "not_analysed": None
            if self.not_analysed is None
            else {"reason": self.not_analysed.reason, "text": self.not_analysed.text},
            "seconds": self.seconds,
        }


def code_as_dict(code: Code) -> dict[str, str]:
    """Return a code as JSON-ready values."""
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}
