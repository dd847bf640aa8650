"""The shipped lung model on phantoms that its training never saw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from inference.card import Card, load_card
from inference.engines.onnx import OnnxModel
from inference.postprocess import keep_components, volumes_ml
from phantoms.thorax import ThoraxPhantom, make_head, make_thorax

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "models" / "lung-ct"
UNSEEN = 910_000  # seeds of training lie far below


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(FOLDER)  # refuses a file whose SHA-256 is not the card's


@pytest.fixture(scope="module")
def model(card: Card) -> OnnxModel:
    return OnnxModel(card)


def segment(card: Card, model: OnnxModel, hu: npt.NDArray[np.int16], spacing: Any) -> npt.NDArray[np.uint8]:
    labels = model.infer({"hu": hu, "spacing": np.asarray(spacing, np.float32)})["output"]
    assert labels.shape == hu.shape
    assert labels.dtype == np.uint8
    for step in card.postprocess:
        if step.keep_components:
            keep_components(labels, spacing, step.keep_components.minimum_ml, step.keep_components.minimum_fraction)
    return labels


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def no_lungs(card: Card, labels: npt.NDArray[np.uint8], spacing: Any) -> bool:
    least = next(step.require_volume.minimum_ml for step in card.postprocess if step.require_volume)
    return sum(volumes_ml(labels, spacing, (1, 2)).values()) < least


@pytest.mark.parametrize(
    ("seed", "shape", "spacing"),
    [
        (UNSEEN + 1, (60, 192, 192), (4.0, 1.9, 1.9)),
        (UNSEEN + 2, (80, 160, 176), (3.0, 2.2, 2.1)),
        (UNSEEN + 3, (32, 288, 256), (8.0, 1.3, 1.4)),
    ],
)
def test_both_lungs_of_an_unseen_phantom_are_found(
    card: Card, model: OnnxModel, seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    phantom = make_thorax(seed, shape=shape, spacing=spacing)
    labels = segment(card, model, phantom.hu, spacing)
    assert dice(labels == 1, phantom.labels == 1) >= 0.95
    assert dice(labels == 2, phantom.labels == 2) >= 0.95


def test_the_right_lung_lies_on_the_patients_right(card: Card, model: OnnxModel) -> None:
    phantom = make_thorax(UNSEEN + 4, shape=(40, 192, 192), spacing=(6.0, 1.9, 1.9))
    labels = segment(card, model, phantom.hu, phantom.spacing)
    columns = [np.nonzero(labels == side)[2].mean() for side in (1, 2)]
    assert columns[0] + 30 < columns[1]  # columns run towards the patient's left


def test_a_dozen_slices_are_segmented_as_in_the_whole_chest(card: Card, model: OnnxModel) -> None:
    phantom = make_thorax(UNSEEN + 5, shape=(48, 192, 192), spacing=(5.0, 1.9, 1.9))
    whole = segment(card, model, phantom.hu, phantom.spacing)
    part = segment(card, model, np.ascontiguousarray(phantom.hu[16:28]), phantom.spacing)
    for side in (1, 2):
        assert dice(part == side, whole[16:28] == side) >= 0.95


def test_padding_beyond_a_round_field_of_view_is_not_lung(card: Card, model: OnnxModel) -> None:
    phantom = make_thorax(UNSEEN + 6, shape=(40, 192, 192), spacing=(6.0, 1.9, 1.9))
    r = np.hypot(*np.meshgrid(*(np.linspace(-1, 1, n) for n in (192, 192)), indexing="ij"))
    hu = np.where(r > 1, np.int16(-3024), phantom.hu)
    labels = segment(card, model, hu, phantom.spacing)
    assert not labels[:, r > 1.02].any()
    assert dice(labels > 0, (phantom.labels > 0) & (r <= 1)) >= 0.95


@pytest.mark.parametrize(
    "make",
    [
        # Round field of view with padding of 0 HU: the air around the head is walled in, as lung would be.
        lambda: make_head(UNSEEN + 8, shape=(24, 192, 192), spacing=(6.0, 1.2, 1.2)),
        lambda: make_head(UNSEEN + 7, shape=(24, 160, 160), spacing=(6.0, 1.5, 1.5)),
        lambda: make_thorax(UNSEEN + 9, shape=(24, 160, 160), spacing=(8.0, 2.4, 2.4), region="abdomen"),
    ],
    ids=["walled-in head", "head", "abdomen"],
)
def test_where_there_are_no_lungs_none_are_reported(
    card: Card, model: OnnxModel, make: Callable[[], ThoraxPhantom]
) -> None:
    phantom = make()
    assert no_lungs(card, segment(card, model, phantom.hu, phantom.spacing), phantom.spacing)


def test_air_and_padding_alone_hold_no_lungs(card: Card, model: OnnxModel) -> None:
    for value in (-1000, -3024, 40):
        hu = np.full((10, 64, 96), value, np.int16)
        assert no_lungs(card, segment(card, model, hu, (5.0, 2.0, 2.0)), (5.0, 2.0, 2.0))
