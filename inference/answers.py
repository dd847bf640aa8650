"""What a model's answer has to be for a finding to be made of it.

An answer outside ``outputs[].limits`` becomes "not analysed" (:class:`NotAnalysed`). One that the card cannot mean at
all (not a number, a probability beyond 0 to 1, an unknown label) is the engine's fault and an :class:`EngineFailure`:
it is tried again, and parks the workitem where that does not help.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import EngineFailure
from inference.findings import Findings, NotAnalysed
from inference.reasons import REASONS

if TYPE_CHECKING:
    from inference.card import Card, Output
    from inference.findings import Segment

__all__ = ["checked"]


def checked(card: Card, findings: Findings) -> Findings:
    """Hold an answer against what the card says that it can be; one outside is "not analysed", with its reason.

    A mask without a voxel is an answer only where a card says so, by limits from 0 mL on: everywhere else a model that
    marks nothing has more likely failed than found that there is no lung.

    Raises
    ------
    EngineFailure
        ``broke``: a value that is no number, a probability beyond 0 to 1, a label or a name that the card has not.
    """
    if findings.not_analysed is not None:
        return findings
    _require_sound(card, findings)
    outputs = {output.name: output for output in card.outputs}
    segments = findings.segmentation.segments if findings.segmentation else ()
    for segment in segments:
        bounds = outputs[segment.name].limits.volume_ml
        if bounds and segment.volume_ml is not None and not bounds[0] <= segment.volume_ml <= bounds[1]:
            return _without(
                findings,
                "volume-out-of-range",
                f"{segment.name}: {segment.volume_ml:.1f} mL; the model's card takes {bounds[0]:g} to {bounds[1]:g} mL",
            )
        bounds, share = outputs[segment.name].limits.area_share, _share(findings, segment)
        if bounds and not bounds[0] <= share <= bounds[1]:
            return _without(
                findings,
                "area-out-of-range",
                f"{segment.name}: {share:.4f} of the image; the model's card takes {bounds[0]:g} to {bounds[1]:g}",
            )
    if segments and not any((segment.volume_ml or segment.pixels or 0) > 0 for segment in segments):
        allowed = [_limits_of(outputs[segment.name]) for segment in segments]
        if not all(bounds and bounds[0] <= 0 for bounds in allowed):
            return _without(
                findings, "empty-mask", "the model marked nothing, which its card does not know as an answer"
            )
    for one in findings.measurements:
        bounds = outputs[one.name].limits.value
        if bounds and not bounds[0] <= one.value <= bounds[1]:
            return _without(
                findings,
                "value-out-of-range",
                f"{one.name}: {one.value:.4g}; the model's card takes {bounds[0]:g} to {bounds[1]:g}",
            )
    return findings


def _share(findings: Findings, segment: Segment) -> float:
    """Return what part of a radiograph a segment covers."""
    assert findings.segmentation is not None
    return (segment.pixels or 0) / max(math.prod(findings.segmentation.labels.shape[1:]), 1)


def _limits_of(output: Output) -> tuple[float, float] | None:
    return output.limits.area_share if output.limits.volume_ml is None else output.limits.volume_ml


def _without(findings: Findings, reason: str, text: str) -> Findings:
    return replace(
        findings,
        classifications=(),
        measurements=(),
        detections=(),
        segmentation=None,
        heat_maps=(),
        not_analysed=NotAnalysed(reason=reason, text=text, code=REASONS[reason]),
    )


def _require_sound(card: Card, findings: Findings) -> None:
    names = {output.name for output in card.outputs}
    segments = findings.segmentation.segments if findings.segmentation else ()
    said = {one.name for one in findings.classifications} | {one.name for one in findings.measurements}
    said |= {one.name for one in findings.detections} | {one.name for one in segments}
    strange = sorted(said - names)
    if strange:
        raise EngineFailure("broke", f"the model answered {strange[0][:64]!r}, which its card does not name")
    probabilities = [c.probability for c in findings.classifications] + [d.probability for d in findings.detections]
    if not all(0 <= probability <= 1 for probability in probabilities):
        raise EngineFailure("broke", "the model answered probabilities that are not numbers from 0 to 1")
    values = [*(m.value for m in findings.measurements), *(v for s in segments for v in (s.volume_ml, s.area_mm2))]
    if not all(math.isfinite(value) for value in values if value is not None):
        raise EngineFailure("broke", "the model answered values that are not numbers")
    if findings.segmentation is not None and findings.segmentation.labels.size:
        known = np.zeros(256, bool)
        known[[0, *(segment.label for segment in segments), *findings.segmentation.together]] = True
        labels = findings.segmentation.labels
        if not known[: int(labels.max()) + 1].all() and not known[np.unique(labels)].all():
            raise EngineFailure("broke", "the model answered a label that its card does not name")
