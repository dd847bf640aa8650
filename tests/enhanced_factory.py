"""Makes enhanced multi-frame images for tests: frames anywhere, in any order, with any functional groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.dicom_factory import AXIAL, _composite, _ds, write


def enhanced(
    folder: Path,
    values: npt.ArrayLike,
    positions: Sequence[Sequence[float]],
    *,
    modality: str = "CT",
    orientation: Sequence[float] = AXIAL,
    pixel_spacing: Sequence[float] = (0.8, 0.8),
    thickness: float = 2.0,
    rescale: tuple[float, float] | None = (1.0, -1024.0),
    shared: Sequence[str] = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence"),
    content: Sequence[Mapping[str, Any]] | None = None,
    groups: Sequence[Mapping[str, Mapping[str, Any]]] | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **attributes: Any,
) -> Path:
    """Write one multi-frame image and return its file.

    Parameters
    ----------
    values
        What the pixels measure (HU of a CT), shape (frames, rows, columns).
    positions
        Image Position (Patient) of each frame, LPS, mm.
    rescale
        (slope, intercept), or None for no Pixel Value Transformation.
    shared
        The functional groups that stand once for all frames; any other stands in each.
    content
        More attributes of each frame's Frame Content.
    groups
        More functional groups of each frame: sequence keyword to its item's attributes.
    """
    planes = np.asarray(values)
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "PixelMeasuresSequence": {
            "PixelSpacing": [_ds(one) for one in pixel_spacing],
            "SliceThickness": _ds(thickness),
        },
        "PlaneOrientationSequence": {"ImageOrientationPatient": [_ds(one) for one in orientation]},
    }
    slope, intercept = rescale or (1.0, 0.0)
    if rescale:
        common["PixelValueTransformationSequence"] = {
            "RescaleSlope": _ds(slope),
            "RescaleIntercept": _ds(intercept),
            "RescaleType": "HU" if modality == "CT" else "US",
        }
    frames = []
    for number, position in enumerate(positions):
        frame = Dataset()
        put(frame, "PlanePositionSequence", {"ImagePositionPatient": [_ds(one) for one in position]})
        put(frame, "FrameContentSequence", {"StackID": "1", **(content[number] if content else {})})
        for sequence, item in common.items():
            if sequence not in shared:
                put(frame, sequence, item)
        for sequence, more in (groups[number] if groups else {}).items():
            put(frame, sequence, more)
        frames.append(frame)
    once = Dataset()
    for sequence, item in common.items():
        if sequence in shared:
            put(once, sequence, item)
    sop_class = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    dataset = _composite(sop_class, modality, None, None)
    dataset |= {
        "SOPInstanceUID": generate_uid(),
        "InstanceNumber": "1",
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        "FrameOfReferenceUID": generate_uid(),
        "PositionReferenceIndicator": "",
        "NumberOfFrames": str(len(planes)),
        "SharedFunctionalGroupsSequence": [once],
        "PerFrameFunctionalGroupsSequence": frames,
        "BodyPartExamined": "CHEST",
    }
    pixels = np.rint((planes - intercept) / slope).clip(0, 65535).astype("<u2")
    return write(folder, dataset | attributes, pixels, transfer_syntax=transfer_syntax)


def put(holder: Dataset, sequence: str, item: Mapping[str, Any]) -> None:
    """Set a functional group."""
    one = Dataset()
    one.update(item)
    setattr(holder, sequence, [one])
