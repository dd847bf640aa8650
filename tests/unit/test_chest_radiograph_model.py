"""The shipped demonstration model, its card, the way a radiograph is read, and the phantoms that it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.card import Card, load_card
from inference.errors import InputRefused
from inference.preprocess import radiograph_input
from phantoms.radiograph import FINDINGS, TEST, TRAINING, make_radiograph
from training.chest_radiograph.data import PARTS, Radiographs, one
from training.chest_radiograph.measure import auc, predict

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "models" / "chest-radiograph-demo"
FIRST_UNSEEN_SEED = 2_000_000


@pytest.fixture(scope="module")
def card() -> Card:
    return load_card(FOLDER)  # checks the SHA-256 of the model's file


@pytest.fixture(scope="module")
def unseen() -> Radiographs:
    made = [one(FIRST_UNSEEN_SEED + i, replace(PARTS["test"], rows=320)) for i in range(100)]
    sizes = np.stack([size for _, size, _ in made])
    return Radiographs(np.stack([image for image, _, _ in made]), sizes > 0, sizes, np.stack([p for _, _, p in made]))


@pytest.fixture(scope="module")
def probabilities(unseen: Radiographs) -> np.ndarray:
    return predict(FOLDER / "chest-radiograph-demo.onnx", unseen.images)


def test_the_card_says_that_it_is_a_demonstration_trained_on_synthetic_images(card: Card) -> None:
    assert card.demonstration
    assert "demonstration, trained on synthetic images" in card.title
    assert "trained on synthetic images" in str(card.intended_use)


def test_the_cards_outputs_are_the_generators_findings_in_their_order(card: Card) -> None:
    assert [output.name for output in card.outputs] == list(FINDINGS)
    assert [output.index for output in card.outputs] == list(range(5))
    assert {output.code.scheme for output in card.outputs} == {"SCT"}


def test_the_seeds_of_this_test_were_never_seen_in_training_or_evaluation() -> None:
    assert all(part.first + part.count <= FIRST_UNSEEN_SEED for part in PARTS.values())


@pytest.mark.parametrize("index", range(5), ids=FINDINGS)
def test_the_shipped_file_tells_a_finding_from_its_absence_on_unseen_test_phantoms(
    unseen: Radiographs, probabilities: np.ndarray, index: int
) -> None:
    assert unseen.labels[:, index].sum() >= 15
    assert auc(unseen.labels[:, index], probabilities[:, index]) >= 0.95


def test_probabilities_are_float32_between_0_and_1(probabilities: np.ndarray) -> None:
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (100, 5)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1


def test_at_its_thresholds_the_model_is_right_more_often_than_not_in_both_groups(
    card: Card, unseen: Radiographs, probabilities: np.ndarray
) -> None:
    for output in card.outputs:
        truth, called = unseen.labels[:, output.index], probabilities[:, output.index] >= output.threshold
        assert called[truth].mean() > 0.6, output.name
        assert called[~truth].mean() < 0.4, output.name


def test_a_linear_rescale_of_the_pixels_changes_nothing() -> None:
    pixels = make_radiograph(1, ["nodule"], shape=(320, 280)).pixels
    plain = radiograph_input(pixels)
    np.testing.assert_allclose(radiograph_input(pixels * 3.7 - 1024.0), plain, atol=1e-5)
    assert plain.shape == (256, 256)
    assert plain.dtype == np.float32
    assert plain.min() == 0
    assert plain.max() <= 1


def test_a_radiograph_is_padded_to_a_square_and_keeps_its_aspect() -> None:
    pixels = np.tile(np.linspace(100, 200, 200), (400, 1))
    read = radiograph_input(pixels)
    assert not read[:, :63].any()
    assert not read[:, 193:].any()
    assert read[128, 190] > 0.95


def test_shrinking_averages_over_the_source_pixels() -> None:
    checks = np.indices((1024, 1024)).sum(axis=0) % 2 * 1000.0
    assert np.abs(radiograph_input(checks)[8:-8, 8:-8] - 0.5).max() < 0.05


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((0, 512)), "no-pixels"),
        (np.zeros((3, 64, 64)), "no-pixels"),
        (np.full((64, 64), 7), "pixels-constant"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "pixels-not-finite"),
        (np.array([[0.0, np.inf], [1.0, 2.0]]), "pixels-not-finite"),
    ],
)
def test_pixels_that_show_nothing_are_refused_with_a_reason(pixels: np.ndarray, reason: str) -> None:
    with pytest.raises(InputRefused) as refused:
        radiograph_input(pixels)
    assert refused.value.reason == reason


def test_the_same_seed_makes_the_same_radiograph_and_another_seed_another() -> None:
    first, again, other = (make_radiograph(seed, ["pneumothorax"], shape=(160, 140)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.truth == again.truth
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("style", [TRAINING, TEST], ids=lambda style: style.name)
def test_the_truth_names_what_was_put_in_and_nothing_else(style) -> None:
    phantom = make_radiograph(9, ["nodule", "enlarged heart shadow"], shape=(160, 140), style=style)
    assert phantom.pixels.dtype == np.uint16
    assert phantom.pixels.max() <= 4095
    assert [name for name in FINDINGS if phantom.truth[name]] == ["nodule", "enlarged heart shadow"]
    nodule = phantom.truth["nodule"]
    assert style.nodule_mm[0] <= nodule.size_mm <= style.nodule_mm[1]
    assert 0 <= nodule.row < 160
    assert 0 <= nodule.column < 140
    assert phantom.cardiothoracic_ratio >= 0.55


def test_a_nodule_makes_the_radiograph_brighter_where_the_truth_says() -> None:
    phantom = make_radiograph(12, ["nodule"], shape=(640, 560))
    row, column = round(phantom.truth["nodule"].row), round(phantom.truth["nodule"].column)
    half = round(phantom.truth["nodule"].size_mm / phantom.spacing / 2)
    inside = phantom.pixels[row - half // 2 : row + half // 2 + 1, column - half // 2 : column + half // 2 + 1]
    around = phantom.pixels[row - 2 * half : row + 2 * half + 1, column - 2 * half : column + 2 * half + 1]
    assert np.median(inside) > np.median(around)


def test_free_air_in_the_pleura_makes_its_side_darker_at_the_rim() -> None:
    with_air = make_radiograph(3, ["pneumothorax"], shape=(320, 280))
    truth = with_air.truth["pneumothorax"]
    row, column = round(truth.row), round(truth.column)
    mirrored = with_air.pixels.shape[1] - 1 - column
    rim = with_air.pixels[row - 3 : row + 4, column - 1 : column + 2]
    other = with_air.pixels[row - 3 : row + 4, mirrored - 1 : mirrored + 2]
    assert (column < 140) == (truth.side == "right")
    assert rim.mean() < other.mean()


def test_an_unknown_finding_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="fracture"):
        make_radiograph(1, ["fracture"])


@pytest.mark.parametrize(
    "field",
    [
        "roll_deg",
        "yaw_mm",
        "tilt_mm",
        "scale",
        "offset_mm",
        "photons",
        "scatter",
        "grid_line",
        "sharpen",
        "collimation_mm",
        "collimation_skew_deg",
    ],
)
def test_training_and_test_draw_pose_and_exposure_from_ranges_that_do_not_overlap(field: str) -> None:
    for low, high in getattr(TRAINING, field):
        for start, end in getattr(TEST, field):
            assert end <= low or start >= high
