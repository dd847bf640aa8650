"""The way of a radiograph through a segmentation: a mask for each structure, on the pixels as the image stores them.

Structures of a projection lie over one another (heart and left lung, spine and mediastinum), so each has a plane of its
own. They have no volume; their area is known as far as the header says how far pixels lie apart, and where.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.admission import Admitted
from inference.classify import prepared
from inference.errors import EngineFailure, InputRefused
from inference.explain import Frame
from inference.findings import Findings, Segment, Segmentation
from inference.fingerprint import fingerprint
from inference.imagefile import texts_of, value_of
from inference.outgoing import keeps_text
from inference.postprocess import probabilities_of
from inference.statistics import of_radiograph

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom import Dataset

    from inference.card import Card
    from inference.engine import ImageFile, Model
    from inference.findings import Plane

    Scores = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.uint8]

__all__ = ["masks_on_source", "pixel_area", "scores_of", "segment_radiograph"]


def segment_radiograph(card: Card, model: Model, files: Sequence[ImageFile]) -> Findings:
    """Segment the first radiograph of a role that is what the card means; the documents name those that are left.

    One, since a DICOM Segmentation of several images needs a frame of reference, which radiographs do not share.

    Raises
    ------
    InputRefused
        If too few of the images are what the card means.
    EngineFailure
        If the model broke, or answered what its card does not say.
    """
    role = card.inputs[0]
    admitted = Admitted(role, files, textless=keeps_text(card))
    found: Findings | None = None
    further = 0
    for file, radiograph, dataset in admitted:
        if found is not None:
            further += 1
            continue
        try:
            pixels, square = prepared(card, radiograph)
        except InputRefused as refusal:
            admitted.without(refusal)
            continue
        began = time.perf_counter()
        answer = model.infer({card.tensors["image"]: pixels[None, None]})["output"]
        seconds = time.perf_counter() - began
        labels = masks_on_source(card, scores_of(card, answer)[0], Frame(radiograph, square))
        found = Findings(
            images=(file.key,),
            segmentation=Segmentation(
                segments=_segments(card, labels, dataset), images=(file.key,) * len(labels), labels=labels
            ),
            fingerprints={file.key: fingerprint(pixels)},
            statistics={"inputs": [of_radiograph(dataset, radiograph)]},
            seconds=seconds,
        )
    assert found is not None, "the gate has raised where no image passes"
    words = admitted.warnings()
    if further:
        words = (*words, f"Not analysed, {further} of {len(files)} images: the model marks one of a series, the first.")
    return replace(found, warnings=words)


def scores_of(card: Card, answer: npt.NDArray[Any]) -> Scores:
    """Return a model's answers as what is decided on: probabilities, where the card declares an activation.

    Parameters
    ----------
    answer
        (images, channels, n, n), over the whole input, any n. With a threshold the channels are the card's outputs, in
        their order; without one a channel's number is a label, and 0 the background.

    Returns
    -------
    numpy.ndarray
        float32, of the same shape.

    Raises
    ------
    EngineFailure
        ``broke``, if the shape is another, or a value is not a number.
    """
    least = max(output.label or 0 for output in card.outputs) + 1
    wanted = len(card.outputs) if _threshold(card) is not None else None
    channels = answer.shape[1] if answer.ndim == 4 else 0
    if answer.ndim != 4 or answer.shape[2] != answer.shape[3] or (channels != wanted if wanted else channels < least):
        meant = f"{wanted}" if wanted else f"{least} or more"
        raise EngineFailure(
            "broke", f"the model answered shape {answer.shape}; its card means (images, {meant} channels, n, n)"
        )
    if not np.isfinite(answer).all():
        raise EngineFailure("broke", "the model answered values that are not numbers")
    kind = next((step.activation.kind for step in card.postprocess if step.activation), None)
    return probabilities_of(np.asarray(answer, np.float32), kind, axis=1)


def masks_on_source(card: Card, scores: Scores, frame: Frame) -> Labels:
    """Decide on the pixels of the source image, to which the scores are interpolated.

    Parameters
    ----------
    scores
        float32, (channels, n, n), as :func:`scores_of` gives them.
    frame
        Where the input lies in the displayed image, and how that was turned.

    Returns
    -------
    numpy.ndarray
        uint8, (outputs, rows, columns), on the stored pixels: plane k holds the label of output k, and 0 elsewhere.

    Raises
    ------
    EngineFailure
        ``broke``, if a pixel has a channel that is no label of the card.
    """
    threshold = _threshold(card)
    labels = [output.label or 0 for output in card.outputs]
    if threshold is not None:
        marked = (frame.interpolated(one) >= threshold for one in scores)
    else:
        best = _best(scores, frame)
        if not np.isin(np.unique(best), [0, *labels]).all():
            raise EngineFailure("broke", "the model answered a label that its card does not name")
        marked = (best == label for label in labels)
    return np.stack([frame.placed(one * np.uint8(label)) for one, label in zip(marked, labels, strict=True)])


def _best(scores: Scores, frame: Frame) -> npt.NDArray[np.uint8]:
    """Return the number of the channel with the largest score; two planes are held at a time, not all of them."""
    largest = frame.interpolated(scores[0]).copy()
    best = np.zeros(largest.shape, np.uint8)
    for channel, one in enumerate(scores[1:256], start=1):
        fine = frame.interpolated(one)
        above = fine > largest
        largest[above] = fine[above]
        best[above] = channel
    return best


def _threshold(card: Card) -> float | None:
    return next((step.threshold.value for step in card.postprocess if step.threshold), None)


def _segments(card: Card, labels: Labels, dataset: Dataset) -> tuple[Segment, ...]:
    area = pixel_area(dataset)
    segments = []
    for output, mask in zip(card.outputs, labels, strict=True):
        assert output.label is not None
        assert output.category is not None
        pixels = int(np.count_nonzero(mask))
        segments.append(
            Segment(
                label=output.label,
                name=output.name,
                code=output.code,
                category=output.category,
                pixels=pixels,
                area_mm2=pixels * area[0] if area else None,
                plane=area[1] if area else None,
            )
        )
    return tuple(segments)


def pixel_area(dataset: Dataset) -> tuple[float, Plane] | None:
    """Return the area of a radiograph's pixel in mm2 and the plane at which it holds; None where nothing is known.

    By PS3.3 Section 10.7.1.3: Imager Pixel Spacing (0018,1164) holds at the detector. So does Pixel Spacing (0028,0030)
    that equals it; one that differs was corrected, or calibrated by what Pixel Spacing Calibration Type (0028,0A02)
    says. Pixel Spacing alone and without that type says nothing of its plane. Magnification is never guessed.
    """
    imager, spacing = (_spacing(dataset, keyword) for keyword in ("ImagerPixelSpacing", "PixelSpacing"))
    used = spacing or imager
    if used is None:
        return None
    plane: Plane = "unstated"
    if imager is not None and np.allclose(used, imager, rtol=1e-4):
        plane = "detector"
    elif imager is not None or any(texts_of(dataset, "PixelSpacingCalibrationType")):
        plane = "calibrated"
    return used[0] * used[1], plane


def _spacing(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    """Return the distance of rows and of columns in mm."""
    try:
        rows, columns = (float(one) for one in value_of(dataset, keyword))
    except (TypeError, ValueError, OverflowError):
        return None
    return (rows, columns) if min(rows, columns) > 0 and math.isfinite(rows * columns) else None
