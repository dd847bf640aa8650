"""The way of a radiograph through a model: to probabilities of findings, measured values or boxes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.admission import Admitted
from inference.detect import detections_of, in_padding
from inference.errors import EngineFailure, InputRefused
from inference.explain import Frame, heat_maps
from inference.findings import Classification, Detection, Findings, HeatMap, Measurement
from inference.fingerprint import fingerprint
from inference.outgoing import keeps_text
from inference.postprocess import as_probabilities, calibrated, probabilities_of
from inference.preprocess import centre_crop, padded_square, radiograph_input, torchxrayvision_input
from inference.statistics import of_radiograph

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.engine import ImageFile, Model
    from inference.preprocess import Square
    from inference.radiograph import Radiograph
    from inference.statistics import Features

    Vector = npt.NDArray[np.float64]

__all__ = ["classify", "prepared", "probabilities"]


def classify(card: Card, model: Model, files: Sequence[ImageFile]) -> Findings:
    """Classify the radiographs of one role, measure them or find things in them, each for itself.

    Raises
    ------
    InputRefused
        If too few of the images are what the card means.
    EngineFailure
        If the model broke, or answered what its card does not say.
    """
    role = card.inputs[0]
    classifications: list[Classification] = []
    measurements: list[Measurement] = []
    detections: list[Detection] = []
    maps: list[HeatMap] = []
    hashes: dict[str, str] = {}
    images: list[str] = []
    seconds = 0.0
    padding = 0
    # One series may hold a frontal and a lateral view: only what the card means is read.
    admitted = Admitted(role, files, textless=keeps_text(card))
    inputs: list[Features] = []
    for file, radiograph, dataset in admitted:
        try:
            pixels, square = prepared(card, radiograph)
        except InputRefused as refusal:
            admitted.without(refusal)
            continue
        inputs.append(of_radiograph(dataset, radiograph))
        began = time.perf_counter()
        answers = model.infer({card.tensors["image"]: pixels[None, None]})
        seconds += time.perf_counter() - began
        images.append(file.key)
        hashes[file.key] = fingerprint(pixels)
        if card.task == "classification":
            classifications.extend(_classifications(card, answers["output"], file.key))
            if card.explain:
                maps.extend(
                    heat_maps(
                        card,
                        model,
                        pixels,
                        answers,
                        lambda answer: probabilities(card, answer),
                        Frame(radiograph, square),
                        file.key,
                    )
                )
        elif card.task == "detection":
            found, beside = detections_of(card, answers, len(pixels), Frame(radiograph, square), file.key)
            detections.extend(found)
            padding += beside
        else:
            measurements.extend(_measurements(card, answers["output"], file.key))
    return Findings(
        images=tuple(images),
        classifications=tuple(classifications),
        measurements=tuple(measurements),
        detections=tuple(detections),
        heat_maps=tuple(maps),
        warnings=(*admitted.warnings(), *in_padding(padding)),
        fingerprints=hashes,
        statistics={"inputs": inputs},
        seconds=seconds,
    )


def prepared(card: Card, radiograph: Radiograph) -> tuple[npt.NDArray[np.float32], Square]:
    """Return float32 (size, size), by the one step that the card declares, and the square that it shows."""
    step = card.preprocess[0]
    shape = radiograph.pixels.shape
    if step.radiograph_input:
        return radiograph_input(radiograph.pixels, size=step.radiograph_input.size), padded_square(*shape)
    assert step.torchxrayvision_input is not None, "a card of radiographs has one of the two"
    return torchxrayvision_input(radiograph, size=step.torchxrayvision_input.size), centre_crop(*shape)


def probabilities(card: Card, answer: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return answers of the shape (images, outputs) as probabilities of the same shape, by the card's steps."""
    return np.stack([_probabilities_of_one(card, _vector(card, one[None])) for one in answer])


def _probabilities_of_one(card: Card, scores: Vector) -> Vector:
    probabilities = _activated(card, scores)
    for step in card.postprocess:
        if step.calibrate:
            probabilities = calibrated(probabilities, step.calibrate.thresholds)
    return as_probabilities(probabilities)


def _activated(card: Card, scores: Vector) -> Vector:
    for step in card.postprocess:
        if step.activation:
            scores = probabilities_of(scores, step.activation.kind, axis=0)
    return scores


def _classifications(card: Card, answer: npt.NDArray[Any], image: str) -> list[Classification]:
    probabilities = _probabilities_of_one(card, _vector(card, answer))
    return [
        Classification(
            name=output.name,
            code=output.code,
            probability=float(probabilities[output.index]),
            threshold=output.threshold,
            image=image,
        )
        for output in card.outputs
        if output.index is not None and output.threshold is not None
    ]


def _measurements(card: Card, answer: npt.NDArray[Any], image: str) -> list[Measurement]:
    values = _activated(card, _vector(card, answer))
    if not np.isfinite(values).all():
        raise EngineFailure("broke", "the model answered values that are not numbers")
    return [
        Measurement(
            name=output.name, code=output.code, value=float(values[output.index]), unit=output.unit, image=image
        )
        for output in card.outputs
        if output.index is not None and output.unit is not None
    ]


def _vector(card: Card, answer: npt.NDArray[Any]) -> Vector:
    highest = max(output.index for output in card.outputs if output.index is not None)
    if answer.ndim != 2 or answer.shape[0] != 1 or answer.shape[1] <= highest:
        raise EngineFailure(
            "broke", f"the model answered shape {answer.shape}; its card means (1, {highest + 1} or more)"
        )
    vector: Vector = answer[0].astype(np.float64)
    return vector
