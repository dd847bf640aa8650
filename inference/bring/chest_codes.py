"""Codes of what torchxrayvision's models say: findings of a chest radiograph, views, sex, and anatomy.

Every code was looked up; ``docs/models/torchxrayvision.md`` says where each was found. What has no standard code that
could be verified has one of this project's own (``99OVERREAD``), never a guessed one.
"""

from __future__ import annotations

__all__ = ["ANATOMY", "FINDINGS", "Coded"]

#: Value, coding scheme designator (PS3.16 Section 8), meaning.
Coded = tuple[str, str, str]

_OWN = "99OVERREAD"

#: By the library's own name of a target.
FINDINGS: dict[str, Coded] = {
    "Atelectasis": ("46621007", "SCT", "Atelectasis"),
    "Consolidation": ("95436008", "SCT", "Lung consolidation"),
    "Infiltration": ("112121", "DCM", "Infiltrate"),
    "Pneumothorax": ("36118008", "SCT", "Pneumothorax"),
    "Edema": ("19242006", "SCT", "Pulmonary edema"),
    "Emphysema": ("87433001", "SCT", "Pulmonary emphysema"),
    "Fibrosis": ("51615001", "SCT", "Fibrosis of lung"),
    "Effusion": ("60046008", "SCT", "Pleural effusion"),
    "Pneumonia": ("233604007", "SCT", "Pneumonia"),
    "Pleural_Thickening": ("PLEURALTHICK", _OWN, "Pleural thickening"),
    "Cardiomegaly": ("8186001", "SCT", "Cardiomegaly"),
    "Nodule": ("786838002", "SCT", "Nodule of lung"),
    "Mass": ("309529002", "SCT", "Mass of lung"),
    "Hernia": ("39839004", "SCT", "Diaphragmatic hernia"),
    "Lung Lesion": ("LUNGLESION", _OWN, "Lung lesion"),
    "Fracture": ("125605004", "SCT", "Fracture of bone"),
    "Lung Opacity": ("112001", "DCM", "Opacity"),
    "Enlarged Cardiomediastinum": ("WIDEMEDIASTINUM", _OWN, "Enlarged cardiomediastinum"),
    "Frontal": ("399033003", "SCT", "Frontal projection"),
    "Lateral": ("49370004", "SCT", "Lateral"),
    "Male": ("M", "DCM", "Male"),
    "Female": ("F", "DCM", "Female"),
}

#: Structures of the anatomy segmentation. A code without its side would lose the side, so bones have own ones.
ANATOMY: dict[str, Coded] = {
    "Left Clavicle": ("LEFTCLAVICLE", _OWN, "Left clavicle"),
    "Right Clavicle": ("RIGHTCLAVICLE", _OWN, "Right clavicle"),
    "Left Scapula": ("LEFTSCAPULA", _OWN, "Left scapula"),
    "Right Scapula": ("RIGHTSCAPULA", _OWN, "Right scapula"),
    "Left Lung": ("44029006", "SCT", "Left lung"),
    "Right Lung": ("3341006", "SCT", "Right lung"),
    "Left Hilus Pulmonis": ("LEFTHILUM", _OWN, "Hilum of left lung"),
    "Right Hilus Pulmonis": ("RIGHTHILUM", _OWN, "Hilum of right lung"),
    "Heart": ("80891009", "SCT", "Heart"),
    "Aorta": ("15825003", "SCT", "Aorta"),
    "Facies Diaphragmatica": ("DIAPHRAGMFACE", _OWN, "Diaphragmatic surface"),
    "Mediastinum": ("72410000", "SCT", "Mediastinum"),
    "Weasand": ("32849002", "SCT", "Esophagus"),
    "Spine": ("421060004", "SCT", "Spine"),
}
