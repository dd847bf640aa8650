"""Write the card of `chest-radiograph-demo` from what was trained and measured."""

from __future__ import annotations

import hashlib
from pathlib import Path

# SNOMED CT concepts of findings, in the order of the model's outputs.
CODES = {
    "nodule": ("786838002", "Nodule of lung"),
    "consolidation": ("95436008", "Lung consolidation"),
    "pleural effusion": ("60046008", "Pleural effusion"),
    "pneumothorax": ("36118008", "Pneumothorax"),
    "enlarged heart shadow": ("8186001", "Cardiomegaly"),
}

_TEMPLATE = """\
name: chest-radiograph-demo
version: 1.1.0
title: Five findings on frontal chest radiographs (demonstration, trained on synthetic images)
task: classification
engine: onnx
files: {{{file}: {{sha256: {digest}}}}}
demonstration: true
intended_use: >-
  Demonstration only, trained on synthetic images. Shows how a classifier of frontal chest radiographs runs in this
  node. Not for any decision about a patient.
limits: >-
  Never trained or validated on a patient's radiograph: on real images its answers mean nothing. Frontal views of the
  whole chest only. Synthetic images hold no tubes, lines, devices, fractures or children, nor
  any disease but the five named.
licence: Apache-2.0
training_data: >-
  {train} synthetic radiographs of phantoms/radiograph.py, style TRAINING; no image of a patient.
performance: >-
  On {test} synthetic radiographs of style TEST (other pose, noise, contrast, collimation and sizes), area under the ROC
  curve: {areas}. By size in docs/models/chest-radiograph-demo.md. Nothing is known about real images.
made_by: training/chest_radiograph/train.py
inputs:
  - role: radiograph
    kind: radiograph
    match: {{Modality: [CR, DX], not: {{ViewPosition: [LL, RL, LATERAL, LLD, RLD]}}}}
    minimum_instances: 1
    select: each
    limits: {{plausible: chest-radiograph}}
tensors: {{image: image, output: probability}}
preprocess:
  - radiograph_input: {{size: 256}}
outputs:
{outputs}
"""


def write_card(model: Path, thresholds: dict[str, float], areas: dict[str, float], test: int, train: int) -> None:
    """Write `card.yaml` beside the model file, with its SHA-256, the thresholds and the measured areas."""
    outputs = "\n".join(
        f'  - {{index: {i}, name: {name}, code: {{value: "{value}", scheme: SCT, meaning: {meaning}}}, '
        f"threshold: {thresholds[name]}}}"
        for i, (name, (value, meaning)) in enumerate(CODES.items())
    )
    text = _TEMPLATE.format(
        file=model.name,
        digest=hashlib.sha256(model.read_bytes()).hexdigest(),
        train=train,
        test=test,
        areas=", ".join(f"{name} {area:.3f}" for name, area in areas.items()),
        outputs=outputs,
    )
    (model.parent / "card.yaml").write_text(text)
