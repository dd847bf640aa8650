"""The shipped lung model on a real chest CT, against a reference made by classical means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.lung_ct.evaluate import Labels, Model, Spacing, Volume, dice, read_series
from training.lung_ct.reference import segment

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "models" / "lung-ct"


@pytest.fixture(scope="module")
def chest(shared_data: Path) -> tuple[Volume, Spacing, Labels]:
    hu, spacing = read_series(shared_data / "ct_thorax_series" / "Lung_Dx-A0002_B40f")
    return hu, spacing, segment(hu, spacing)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(FOLDER)


def test_each_lung_of_a_real_ct_agrees_with_the_reference(chest: tuple[Volume, Spacing, Labels], model: Model) -> None:
    hu, spacing, reference = chest
    labels = model(hu, spacing)
    for side in (1, 2):
        assert dice(labels == side, reference == side) >= 0.95


def test_a_sharp_noisy_kernel_changes_little(chest: tuple[Volume, Spacing, Labels], model: Model) -> None:
    from scipy import ndimage

    hu, spacing, reference = (chest[0][:, ::2, ::2], chest[1], chest[2][:, ::2, ::2])
    spacing = (spacing[0], spacing[1] * 2, spacing[2] * 2)
    noise = np.random.default_rng(1).normal(0, 90, hu.shape)
    sharp = hu + 1.0 * (hu - ndimage.gaussian_filter(hu.astype(float), (0, 1, 1))) + noise
    labels = model(np.clip(sharp, -1024, 3000).astype(np.int16), spacing)
    for side in (1, 2):
        assert dice(labels == side, reference == side) >= 0.94


def test_a_part_of_the_chest_is_enough(chest: tuple[Volume, Spacing, Labels], model: Model) -> None:
    hu, spacing, reference = chest
    labels = model(hu[12:22], spacing)
    for side in (1, 2):
        assert dice(labels == side, reference[12:22] == side) >= 0.95
