"""Jobs and findings as one line of JSON each, for the pipe between the node and an engine's process.

A mask does not go through the pipe: it lies in a ``.npy`` file beside it. Nothing is pickled, since the process that
reads hostile images must not be able to hand code to its supervisor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inference.engine import ImageFile, Job
from inference.findings import (
    Classification,
    Code,
    Coverage,
    Findings,
    NotAnalysed,
    Segment,
    Segmentation,
    code_as_dict,
)

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
    """Return findings as JSON-ready values; a segmentation's mask is written to ``mask``."""
    values = findings.summary()
    values["segmentation"] = None
    if findings.segmentation is not None:
        np.save(mask, findings.segmentation.labels, allow_pickle=False)
        values["segmentation"] = list(findings.segmentation.images)
        for entry, segment in zip(values["segments"], findings.segmentation.segments, strict=True):
            entry["category"] = code_as_dict(segment.category)
    return values


def findings_from(values: dict[str, Any], mask: Path) -> Findings:
    """Undo :func:`findings_to`.

    Raises
    ------
    KeyError, TypeError, ValueError, OSError
        If the other side wrote anything else.
    """
    segmentation = None
    if values["segmentation"] is not None:
        images = tuple(str(key) for key in values["segmentation"])
        labels = np.load(mask, allow_pickle=False)
        if labels.dtype != np.uint8 or labels.ndim != 3 or len(labels) != len(images):
            raise ValueError("the mask does not fit its images")
        segments = tuple(
            Segment(
                label=int(s["label"]),
                name=str(s["name"]),
                code=Code(**s["code"]),
                category=Code(**s["category"]),
                volume_ml=float(s["volume_ml"]),
            )
            for s in values["segments"]
        )
        segmentation = Segmentation(segments=segments, images=images, labels=labels)
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
        segmentation=segmentation,
        coverage=Coverage(**values["coverage"]) if values["coverage"] else None,
        not_analysed=NotAnalysed(**values["not_analysed"]) if values["not_analysed"] else None,
        seconds=float(values["seconds"]),
    )
