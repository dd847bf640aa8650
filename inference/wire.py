"""Jobs and findings as one line of JSON each, for the pipe between the node and an engine's process.

Masks and heat maps do not go through the pipe: they lie in ``.npy`` files beside it. Nothing is pickled, since the
process that reads hostile images must not be able to hand code to its supervisor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from inference.engine import ImageFile, Job
from inference.findings import (
    Classification,
    Code,
    Coverage,
    Detection,
    Findings,
    HeatMap,
    Measurement,
    NotAnalysed,
    Plane,
    Segment,
    Segmentation,
    code_as_dict,
)
from inference.marking import checked_together

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["findings_from", "findings_to", "job_from", "job_to"]


def job_to(job: Job) -> dict[str, Any]:
    """Return a job as JSON-ready values."""
    return {
        "card_path": str(job.card_path),
        "input_set": {role: [[f.key, str(f.path)] for f in files] for role, files in job.input_set.items()},
    }


def job_from(values: dict[str, Any]) -> Job:
    """Undo :func:`job_to`."""
    return Job(
        card_path=Path(values["card_path"]),
        input_set={
            role: tuple(ImageFile(key, Path(path)) for key, path in files)
            for role, files in values["input_set"].items()
        },
    )


def findings_to(findings: Findings, mask: Path) -> dict[str, Any]:
    """Return findings as JSON-ready values; a mask is written to ``mask``, heat maps to files named after it."""
    values = findings.summary()
    values["segmentation"] = None
    if findings.segmentation is not None:
        np.save(mask, findings.segmentation.labels, allow_pickle=False)
        values["segmentation"] = list(findings.segmentation.images)
        values["frames"] = list(findings.segmentation.frames)
        values["together"] = [[value, *those] for value, those in findings.segmentation.together.items()]
        for entry, segment in zip(values["segments"], findings.segmentation.segments, strict=True):
            entry["category"] = code_as_dict(segment.category)
    values["heat_maps"] = []
    for number, one in enumerate(findings.heat_maps):
        np.save(_heat_map(mask, number), one.values, allow_pickle=False)
        values["heat_maps"].append({"name": one.name, "code": code_as_dict(one.code), "image": one.image})
    return values


def findings_from(values: dict[str, Any], mask: Path) -> Findings:
    """Undo :func:`findings_to`; the files are removed.

    Raises
    ------
    KeyError, TypeError, ValueError, OSError
        If the other side wrote anything else.
    """
    stated = values["not_analysed"]
    return Findings(
        images=tuple(str(key) for key in values["images"]),
        classifications=tuple(
            Classification(
                name=str(c["name"]),
                code=Code(**c["code"]),
                probability=float(c["probability"]),
                threshold=float(c["threshold"]),
                image=str(c["image"]),
            )
            for c in values["classifications"]
        ),
        measurements=tuple(
            Measurement(
                name=str(m["name"]),
                code=Code(**m["code"]),
                value=float(m["value"]),
                unit=Code(**m["unit"]),
                image=str(m["image"]),
            )
            for m in values["measurements"]
        ),
        detections=tuple(
            Detection(
                name=str(d["name"]),
                code=Code(**d["code"]),
                probability=float(d["probability"]),
                threshold=float(d["threshold"]),
                image=str(d["image"]),
                box=_box(d["box"]),
            )
            for d in values["detections"]
        ),
        segmentation=None if values["segmentation"] is None else _segmentation(values, mask),
        heat_maps=tuple(
            HeatMap(
                name=str(h["name"]),
                code=Code(**h["code"]),
                image=str(h["image"]),
                values=_taken(_heat_map(mask, number), dimensions=2),
            )
            for number, h in enumerate(values["heat_maps"])
        ),
        coverage=Coverage(**values["coverage"]) if values["coverage"] else None,
        not_analysed=None
        if not stated
        else NotAnalysed(
            reason=str(stated["reason"]),
            text=str(stated["text"]),
            code=Code(**stated["code"]) if stated["code"] else None,
        ),
        warnings=tuple(str(one) for one in values["warnings"]),
        provider=str(values["provider"]),
        precision=str(values["precision"]),
        statistics=dict(values["statistics"]),
        fingerprints={str(key): str(one) for key, one in values["fingerprints"].items()},
        seconds=float(values["seconds"]),
    )


def _segmentation(values: dict[str, Any], mask: Path) -> Segmentation:
    images = tuple(str(key) for key in values["segmentation"])
    labels = _taken(mask, dimensions=3)
    if len(labels) != len(images):
        raise ValueError("the mask does not fit its images")
    segments = tuple(
        Segment(
            label=int(s["label"]),
            name=str(s["name"]),
            code=Code(**s["code"]),
            category=Code(**s["category"]),
            volume_ml=_number(s["volume_ml"]),
            pixels=None if s["pixels"] is None else int(s["pixels"]),
            area_mm2=_number(s["area_mm2"]),
            plane=_plane(s["plane"]),
        )
        for s in values["segments"]
    )
    frames = tuple(int(number) for number in values["frames"])
    if frames and len(frames) != len(images):
        raise ValueError("the frames do not fit their images")
    # What was kept before structures of a volume could overlap says nothing of it.
    together = checked_together(
        {value: tuple(those) for value, *those in values.get("together", ())}, [segment.label for segment in segments]
    )
    return Segmentation(segments=segments, images=images, labels=labels, frames=frames, together=together)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _plane(value: Any) -> Plane | None:
    if value not in (None, *get_args(Plane)):
        raise ValueError("an area holds at no plane that there is")
    return cast("Plane | None", value)


def _taken(file: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    array = np.load(file, allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != dimensions:
        raise ValueError("a mask or a heat map is not what it should be")
    file.unlink()
    return cast("npt.NDArray[np.uint8]", array)


def _heat_map(mask: Path, number: int) -> Path:
    return mask.with_name(f"{mask.stem}-map-{number}.npy")


def _box(values: Any) -> tuple[float, float, float, float]:
    top, left, bottom, right = (float(one) for one in values)
    return top, left, bottom, right
