"""The coded concepts that our documents use, each with where it comes from.

Codes of DCM, SCT and UCUM are those of PS3.16 Annex D and its context groups. The concepts of our own are the
title of the SR, since no standard code says that software alone is speaking (CID 7021 is extensible), and how the area
of a structure on a projection was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inference.findings import Code

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

PRIVATE_SCHEME: Final = "99OVERREAD"

#: Viewers that see (126000, DCM, "Imaging Measurement Report") load the document as drawn measurements and fail where
#: a group has no coordinates; most of ours have none, so the title says instead what the document is.
REPORT_TITLE: Final = Code(value="AIRESULT", scheme=PRIVATE_SCHEME, meaning="AI Result, Research Use")

PRESENT: Final = Code(value="52101004", scheme="SCT", meaning="Present")  # CID 240
ABSENT: Final = Code(value="272519000", scheme="SCT", meaning="Absent")  # CID 240

SUMMARY_OF_ANALYSES: Final = Code(value="111065", scheme="DCM", meaning="Summary of Analyses")
SUCCEEDED: Final = Code(value="111222", scheme="DCM", meaning="Succeeded")  # CID 6042
NOT_ATTEMPTED: Final = Code(value="111225", scheme="DCM", meaning="Not Attempted")  # CID 6042
#: Why nothing was analysed; SNOMED CT has it, DICOM's own lists have no such question.
REASON: Final = Code(value="410666004", scheme="SCT", meaning="Reason for")
COMMENT: Final = Code(value="121106", scheme="DCM", meaning="Comment")
QUALITATIVE_EVALUATIONS: Final = Code(value="C0034375", scheme="UMLS", meaning="Qualitative Evaluations")  # TID 1500
IMAGING_MEASUREMENTS: Final = Code(value="126010", scheme="DCM", meaning="Imaging Measurements")
PROCEDURE_REPORTED: Final = Code(value="121058", scheme="DCM", meaning="Procedure Reported")
PROBABILITY: Final = Code(value="122157", scheme="DCM", meaning="Probability")
VOLUME: Final = Code(value="118565006", scheme="SCT", meaning="Volume")
SEGMENTED_VOXELS: Final = Code(value="126030", scheme="DCM", meaning="Sum of segmented voxel method for volume")
AREA: Final = Code(value="42798000", scheme="SCT", meaning="Area")  # CID 7469
#: No standard code says at which plane an area on a projection holds, and without that it misleads.
AREA_METHODS: Final[dict[str, Code]] = {
    "detector": Code(
        value="AREADETECTOR", scheme=PRIVATE_SCHEME, meaning="Segmented pixels at the detector, magnified as there"
    ),
    "calibrated": Code(
        value="AREACALIBRATED", scheme=PRIVATE_SCHEME, meaning="Segmented pixels at the depth of their calibration"
    ),
    "unstated": Code(
        value="AREAUNSTATED", scheme=PRIVATE_SCHEME, meaning="Segmented pixels, plane of their spacing not stated"
    ),
}
DEVICE: Final = Code(value="121007", scheme="DCM", meaning="Device")
ARTIFICIAL_INTELLIGENCE: Final = Code(value="123110", scheme="DCM", meaning="Artificial Intelligence")  # CID 7162
PROCESSING_EQUIPMENT: Final = Code(value="109102", scheme="DCM", meaning="Processing Equipment")  # CID 7005

IMAGE_LIBRARY: Final = Code(value="111028", scheme="DCM", meaning="Image Library")
IMAGE_LIBRARY_GROUP: Final = Code(value="126200", scheme="DCM", meaning="Image Library Group")
SOURCE: Final = Code(value="260753009", scheme="SCT", meaning="Source")
MODALITY: Final = Code(value="121139", scheme="DCM", meaning="Modality")
FRAME_OF_REFERENCE: Final = Code(value="112227", scheme="DCM", meaning="Frame of Reference UID")
SPACING_BETWEEN_SLICES: Final = Code(value="112226", scheme="DCM", meaning="Spacing between slices")

NO_UNITS: Final = Code(value="1", scheme="UCUM", meaning="no units")
MILLILITER: Final = Code(value="mL", scheme="UCUM", meaning="milliliter")
SQUARE_MILLIMETER: Final = Code(value="mm2", scheme="UCUM", meaning="square millimeter")
MILLIMETER: Final = Code(value="mm", scheme="UCUM", meaning="millimeter")

#: What a study is called that names no procedure of its own: nothing that the headers do not say (CID 100).
GENERIC_PROCEDURES: Final[dict[str, Code]] = {
    "CT": Code(value="25045-6", scheme="LN", meaning="CT unspecified body region"),
    "MR": Code(value="25056-3", scheme="LN", meaning="MRI unspecified body region"),
    "CR": Code(value="43468-8", scheme="LN", meaning="XR unspecified body region"),
    "DX": Code(value="43468-8", scheme="LN", meaning="XR unspecified body region"),
}
IMAGING_PROCEDURE: Final = Code(value="363679005", scheme="SCT", meaning="Imaging procedure")

#: CID 29.
MODALITIES: Final[dict[str, str]] = {
    "CT": "Computed Tomography",
    "MR": "Magnetic Resonance",
    "CR": "Computed Radiography",
    "DX": "Digital Radiography",
}


def concept(code: Code) -> CodedConcept:
    """Return a code as an item of a code sequence (PS3.3 Section 8.8)."""
    from highdicom.sr import CodedConcept

    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)
