"""Parameter families of the synthetic chest radiographs: how one is posed, exposed, processed and collimated.

Two families are declared, `TRAINING` and `TEST`. What a reader of an evaluation must be able to rely on (pose, noise,
contrast, collimation) lies in intervals that do not overlap; the sizes of findings overlap, with another distribution
and a wider range in the test family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]
Intervals = tuple[Interval, ...]


@dataclass(frozen=True)
class Style:
    """Ranges from which one radiograph is drawn; an entry of several intervals is drawn from their union.

    Lengths are in mm on the detector, angles in degrees.
    """

    name: str
    roll_deg: Intervals
    """In-plane rotation of the patient; positive turns the head towards the patient's left."""
    yaw_mm: Intervals
    """Turn about the long axis, as the shift of anterior against posterior structures."""
    tilt_mm: Intervals
    """Kypholordotic tilt, as the rise of the clavicles over the lung apices."""
    scale: Intervals
    """Magnification and size of the patient together."""
    offset_mm: Intervals
    """Shift of the patient from the centre of the image, each axis."""
    lung_height_mm: Intervals
    """Apex to right dome: how deep the breath is."""
    photons: Intervals
    """Quanta per square mm behind 1 mm of soft tissue equivalent at the reference exposure; less is noisier."""
    scatter: Intervals
    """Scattered to primary light, as a fraction of the blurred primary."""
    grid_line: Intervals
    """Amplitude of residual lines of the anti-scatter grid, in line integral."""
    curve: Literal["gamma", "sigmoid"]
    """Family of the display curve."""
    contrast: Intervals
    """Exponent of the gamma curve, or slope of the sigmoid."""
    sharpen: Intervals
    """Weight of unsharp masking."""
    collimation_mm: Intervals
    """Width of each collimated border."""
    collimation_skew_deg: Intervals
    """Angle of the collimator blades against the detector."""
    nodule_mm: Interval
    consolidation_mm: Interval
    effusion_mm: Interval
    """Height of the fluid at the lateral wall above the costophrenic angle."""
    pneumothorax_mm: Interval
    """Width of the apical rim."""
    normal_ratio: Interval
    enlarged_ratio: Interval
    """Cardiothoracic ratio of a heart that is called enlarged."""
    log_sizes: bool = False
    """True: sizes are log-uniform (more small ones); False: uniform."""


def draw(rng: np.random.Generator, intervals: Intervals) -> float:
    """Draw uniformly from a union of intervals, each weighed by its length (equal weights if all are points)."""
    lengths = [high - low for low, high in intervals]
    total = sum(lengths)
    weights = [length / total for length in lengths] if total > 0 else None
    low, high = intervals[int(rng.choice(len(intervals), p=weights))]
    return float(rng.uniform(low, high))


TRAINING = Style(
    name="training",
    roll_deg=((-3.0, 3.0),),
    yaw_mm=((-9.0, 9.0),),
    tilt_mm=((-6.0, 10.0),),
    scale=((0.92, 1.06),),
    offset_mm=((-12.0, 12.0),),
    lung_height_mm=((190.0, 245.0),),
    photons=((5000.0, 20000.0),),
    scatter=((0.05, 0.25),),
    grid_line=((0.0, 0.004),),
    curve="gamma",
    contrast=((0.75, 1.35),),
    sharpen=((0.0, 0.5),),
    collimation_mm=((0.0, 12.0),),
    collimation_skew_deg=((0.0, 0.0),),
    nodule_mm=(6.0, 28.0),
    consolidation_mm=(40.0, 130.0),
    effusion_mm=(14.0, 130.0),
    pneumothorax_mm=(10.0, 55.0),
    normal_ratio=(0.36, 0.48),
    enlarged_ratio=(0.55, 0.66),
    log_sizes=True,
)

TEST = Style(
    name="test",
    roll_deg=((-6.0, -3.0), (3.0, 6.0)),
    yaw_mm=((-14.0, -9.0), (9.0, 14.0)),
    tilt_mm=((-10.0, -6.0), (10.0, 14.0)),
    scale=((0.86, 0.92), (1.06, 1.10)),
    offset_mm=((-20.0, -12.0), (12.0, 20.0)),
    lung_height_mm=((180.0, 190.0), (190.0, 240.0)),
    photons=((2500.0, 5000.0),),
    scatter=((0.25, 0.40),),
    grid_line=((0.004, 0.010),),
    curve="sigmoid",
    contrast=((3.0, 5.0),),
    sharpen=((0.5, 1.0),),
    collimation_mm=((12.0, 26.0),),
    collimation_skew_deg=((-2.5, -0.5), (0.5, 2.5)),
    nodule_mm=(6.0, 30.0),
    consolidation_mm=(35.0, 140.0),
    effusion_mm=(12.0, 150.0),
    pneumothorax_mm=(8.0, 60.0),
    normal_ratio=(0.38, 0.50),
    enlarged_ratio=(0.55, 0.70),
)
