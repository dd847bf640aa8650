"""The steps that a card declares around its model: what they are called and what they take, not how they are done."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from inference.fields import Limit, OneOf, Strict

__all__ = [
    "Activation",
    "Calibrate",
    "Clip",
    "CropOrPad",
    "FillHoles",
    "KeepComponents",
    "Orient",
    "Over",
    "PostprocessStep",
    "PreprocessStep",
    "RadiographInput",
    "RequireVolume",
    "Resample",
    "Scale",
    "Slab",
    "Threshold",
    "TorchXRayVisionInput",
    "Window",
    "ZScore",
]

_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}


def _axes(value: str) -> str:
    pairs = {frozenset((letter, _OPPOSITE.get(letter, ""))) for letter in value}
    if len(value) != 3 or len(pairs) != 3 or not set(value) <= set(_OPPOSITE):
        raise ValueError("expected three letters, one of each of LR, PA, SI: what each array axis grows towards")
    return value


Axes = Annotated[str, AfterValidator(_axes)]
Edge = Annotated[int, Field(ge=1, le=4096)]
Millimetres = Annotated[float, Field(gt=0, le=1000)]
#: What a step that depends on all of a volume looks at: what its images show, or also what was filled in beyond them.
Over = Literal["images", "grid"]


class Slab(Strict):
    """How a volume is cut along its slices: ``slices`` at a time, neighbours sharing ``overlap`` slices in all."""

    slices: int = Field(ge=1)
    overlap: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _sound(self) -> Slab:
        if self.overlap >= self.slices:
            raise ValueError("overlap: expected less than slices")
        return self


class Window(Strict):
    """A sliding window over a volume that is larger than what the model reads at once.

    ``overlap`` is the least share of a window that its neighbour along an axis covers too; ``mirror`` names axes over
    whose flips the answers are averaged (test-time augmentation).
    """

    size: tuple[Edge, Edge, Edge]
    overlap: float = Field(default=0.25, ge=0, lt=1)
    blend: Literal["gaussian", "constant"] = "gaussian"
    mirror: tuple[Literal[0, 1, 2], ...] = ()


class RadiographInput(Strict):
    """Bring a radiograph to a square of ``size`` pixels, as :func:`inference.preprocess.radiograph_input` does."""

    size: int = Field(default=256, ge=16, le=4096)


class TorchXRayVisionInput(Strict):
    """Bring a radiograph to what torchxrayvision's models were trained on: a square of ``size``, -1024 to 1024."""

    size: int = Field(default=224, ge=16, le=4096)


class Orient(Strict):
    """Turn the array so that its axes grow towards what three letters say: ``RAS``, ``LPS``, ``SPL``."""

    axes: Axes


class Resample(Strict):
    """Interpolate to this distance of voxels, in mm, in the order of the array's axes."""

    spacing_mm: tuple[Millimetres, Millimetres, Millimetres]
    interpolation: Literal["linear", "nearest"] = "linear"


class CropOrPad(Strict):
    """Cut or fill evenly at both ends of each axis until the array has this shape.

    Last of all steps, it fills with a value of what these made.
    """

    shape: tuple[Edge, Edge, Edge]
    #: Beyond the images, in their own units; by default air (-1024 HU) around a CT and 0 around anything else. As the
    #: last step, in the model's units, and 0 by default.
    value: float | None = None


class Clip(Strict):
    """Bring values beyond to the nearer bound."""

    low: float
    high: float


class Scale(Strict):
    """Map ``low`` to 0 and ``high`` to 1, or ``percentiles`` of the input; ``clip`` cuts what lies beyond.

    Percentiles are of what the images show (``over: images``), or of all of the model's grid (``over: grid``).
    """

    low: float | None = None
    high: float | None = None
    percentiles: Limit | None = None
    clip: bool = True
    over: Over = "images"

    @model_validator(mode="after")
    def _sound(self) -> Scale:
        if (self.low is None) != (self.high is None) or (self.low is None) == (self.percentiles is None):
            raise ValueError("expected low and high, or percentiles")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError("low: expected less than high")
        if self.percentiles is not None and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles: expected [least, most] within 0 to 100")
        return self


class ZScore(Strict):
    """Subtract the mean and divide by the standard deviation, of all voxels or of those that are not 0.

    Of what the images show (``over: images``), or of all of the model's grid (``over: grid``).
    """

    nonzero: bool = False
    over: Over = "images"


class PreprocessStep(OneOf):
    """One step before the model."""

    radiograph_input: RadiographInput | None = None
    torchxrayvision_input: TorchXRayVisionInput | None = None
    orient: Orient | None = None
    resample: Resample | None = None
    crop_or_pad: CropOrPad | None = None
    clip: Clip | None = None
    scale: Scale | None = None
    z_score: ZScore | None = None


#: Steps that change where a voxel lies; they come first, since they are done as one interpolation. What is filled in
#: beyond the images may also come last.
GEOMETRIC = frozenset({"orient", "resample", "crop_or_pad"})
#: Steps of a radiograph.
PROJECTION = frozenset({"radiograph_input", "torchxrayvision_input"})


class Activation(Strict):
    """Turn what the model says into probabilities: along the channels (softmax), or each for itself (sigmoid)."""

    kind: Literal["sigmoid", "softmax"]


class Threshold(Strict):
    """Where a channel of a segmentation reaches this, the voxel has that channel's label.

    In a radiograph, where structures overlap, each channel is for itself. In a volume ``overlap`` says what becomes of
    a voxel in which several channels reach the value: all have it (``keep``: structures that lie over one another), or
    one (the ``largest``, or the ``last`` of the outputs). By default the answer is refused, since only whoever made the
    model can say which is meant, and to cut silently would make each volume but one less than what the model found.
    """

    value: float = Field(default=0.5, gt=0, lt=1)
    overlap: Literal["refuse", "largest", "last", "keep"] = "refuse"


class Calibrate(Strict):
    """Stretch each probability so that its own operating point becomes 0.5; None leaves an output at 0.5.

    With operating point t, p becomes p / (2 t) below it and 1 - (1 - p) / (2 (1 - t)) from it on, as torchxrayvision
    does with ``op_threshs``.
    """

    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)] | None, ...] = Field(min_length=1)


class KeepComponents(Strict):
    """Leave out connected components that are too small: below ``minimum_ml``, or below a fraction of the largest."""

    minimum_ml: float = Field(default=0.0, ge=0)
    minimum_fraction: float = Field(default=0.0, ge=0, le=1)


class FillHoles(Strict):
    """Give background that one label encloses, within a plane of the images, that label."""

    labels: tuple[int, ...] = ()


class RequireVolume(Strict):
    """Below ``minimum_ml`` in all there is no finding, but the statement named by ``otherwise``."""

    minimum_ml: float = Field(gt=0)
    otherwise: str


class PostprocessStep(OneOf):
    """One step after the model."""

    activation: Activation | None = None
    threshold: Threshold | None = None
    calibrate: Calibrate | None = None
    keep_components: KeepComponents | None = None
    fill_holes: FillHoles | None = None
    require_volume: RequireVolume | None = None
