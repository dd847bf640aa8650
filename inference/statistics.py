"""What an input and its answer were like, in figures that name nobody: what drift is measured on.

One observation is a mapping of features to numbers or short categories: the pixels' mean, spread and percentiles, the
size and spacing, the patient's age in whole years (90 for all that are older), the scanner's manufacturer, and what
the model said. No UID, date, name or free text is among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.findings import Findings
from inference.headers import seen
from inference.imagefile import texts_of

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.findings import Coverage
    from inference.radiograph import Radiograph

__all__ = ["Features", "observed", "of_header", "of_radiograph", "of_volume"]

Features = dict[str, float | str]

#: Of so many pixels or voxels, evenly spread, is known what all of them are like.
_SAMPLE = 100_000
#: Ages above are one group: an age of 97 may be somebody's name (45 CFR 164.514(b)(2)(i)(C)).
_OLDEST = 90
_CATEGORY = re.compile(r"[^A-Z0-9 ._+-]")


def of_header(dataset: Dataset) -> Features:
    """Describe an image by its header alone."""
    found = seen(dataset)
    features: Features = {}
    if found.rows and found.columns:
        features |= {"rows": float(found.rows), "columns": float(found.columns)}
    if found.spacing_mm:
        features["pixel_spacing_mm"] = round(found.spacing_mm[0], 4)
    if found.age_years is not None:
        features["age_years"] = float(min(int(found.age_years), _OLDEST))
    for feature, keyword in (
        ("manufacturer", "Manufacturer"),
        ("view", "ViewPosition"),
        ("kernel", "ConvolutionKernel"),
    ):
        words = texts_of(dataset, keyword)
        if words and words[0]:
            features[feature] = _CATEGORY.sub("", words[0])[:24].strip() or "OTHER"
    return features


def of_radiograph(dataset: Dataset, radiograph: Radiograph) -> Features:
    """Describe a radiograph: its pixels on a scale from the darkest (0) to the brightest (1) that its header allows."""
    width = max(radiograph.high - radiograph.low, 1e-6)
    return of_header(dataset) | _levels(radiograph.pixels, radiograph.low, width)


def of_volume(dataset: Dataset, array: npt.NDArray[Any], coverage: Coverage) -> Features:
    """Describe a volume: its voxels in their own units (HU for CT), its slices and what they cover."""
    return (
        of_header(dataset)
        | _levels(array, 0.0, 1.0)
        | {
            "slices": float(coverage.images),
            "slice_spacing_mm": round(coverage.spacing_mm, 3),
            "coverage_mm": round(coverage.extent_mm, 1),
        }
    )


def observed(findings: Findings) -> Findings:
    """Join what the inputs were like with what became of them: one observation an image, or one a volume.

    ``findings.statistics`` holds ``inputs``, in the order of the images; it holds ``observations`` afterwards.
    """
    inputs: list[Mapping[str, Any]] = list(findings.statistics.get("inputs", ()))
    if findings.not_analysed is not None:
        outcome = {"outcome": findings.not_analysed.reason}
        return replace(findings, statistics={"observations": [{**(inputs[0] if inputs else {}), **outcome}]})
    by_image: dict[str, Features] = {key: {} for key in findings.images}
    for one in findings.classifications:
        by_image.setdefault(one.image, {})[f"probability {one.name}"] = round(one.probability, 4)
    for measured in findings.measurements:
        by_image.setdefault(measured.image, {})[f"value {measured.name}"] = round(measured.value, 4)
    volumes: Features = {}
    for segment in findings.segmentation.segments if findings.segmentation else ():
        if segment.volume_ml is not None:
            volumes[f"volume_ml {segment.name}"] = round(segment.volume_ml, 2)
        elif segment.pixels is not None and findings.segmentation is not None:
            rows, columns = findings.segmentation.labels.shape[1:]
            volumes[f"area_share {segment.name}"] = round(segment.pixels / (rows * columns), 4)
    observations: list[dict[str, Any]]
    if any(by_image.values()) and len(inputs) == len(findings.images):
        observations = [{**own, **by_image[key]} for own, key in zip(inputs, findings.images, strict=True)]
    else:
        said = next(iter(by_image.values()), {}) if len(by_image) == 1 else {}
        observations = [{**(inputs[0] if inputs else {}), **said, **volumes}]
    return replace(findings, statistics={"observations": [{**one, "outcome": "analysed"} for one in observations]})


def _levels(values: npt.NDArray[Any], zero: float, width: float) -> Features:
    step = max(1, round((values.size / _SAMPLE) ** (1 / values.ndim)))
    sample = np.asarray(values[(slice(None, None, step),) * values.ndim], np.float32)
    sample = (sample - np.float32(zero)) / np.float32(width)
    low, middle, high = np.percentile(sample, [5, 50, 95])
    told = {"mean": sample.mean(), "standard_deviation": sample.std(), "p5": low, "median": middle, "p95": high}
    return {name: float(f"{float(value):.5g}") for name, value in told.items()}
