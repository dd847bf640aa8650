"""Drift: a shifted population raises the index, the same one does not, and few tell nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.card import Histogram, load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import CardError
from inference.findings import Findings
from node.ops import stability
from node.ops.stability import index, weighed
from storage import drift
from storage.database import Database
from tests.dicom_factory import ct_series, radiograph
from tests.model_factory import classification_card, mean_brightness, segmentation_card, thresholding, write_model


def drawn(seed: int, count: int, middle: float = 0.0, spread: float = 1.0) -> list[float | str]:
    return [float(value) for value in np.random.default_rng(seed).normal(middle, spread, count)]


def test_the_index_is_that_of_a_worked_example() -> None:
    # (0.6-0.5) ln(0.6/0.5) + (0.4-0.5) ln(0.4/0.5)
    assert index([0.5, 0.5], [0.6, 0.4]) == pytest.approx(0.1 * np.log(1.2) + 0.1 * np.log(1.25))
    assert index([0.2, 0.8], [0.2, 0.8]) == 0


def test_the_same_population_stays_steady_and_a_shifted_one_does_not() -> None:
    reference = drawn(0, 500)
    for seed in range(1, 41):
        assert weighed("x", reference, drawn(seed, 500)).level == "steady"
    shifted = weighed("x", reference, drawn(1, 500, middle=0.4))
    assert (shifted.level, len(shifted.bins)) == ("moderate", 10)
    assert weighed("x", reference, drawn(1, 500, middle=1.0)).level == "much"
    assert weighed("x", reference, drawn(1, 500, spread=2.5)).level == "much"
    assert sum(shifted.then) == pytest.approx(1)
    assert sum(shifted.now) == pytest.approx(1)
    # What is shown is what was counted, and nothing where nothing was.
    assert weighed("x", ["a", "a", "b"], ["a"]).now == (1, 0, 0)
    assert weighed("x", ["a", "a", "b"], []).now == (0, 0, 0)


def test_few_inputs_tell_nothing_or_need_more_than_chance() -> None:
    reference = drawn(0, 500)
    few = weighed("x", reference, drawn(1, 10))
    assert (few.psi, few.level) == (None, "unknown")
    some = weighed("x", reference, drawn(5, 40))
    assert some.psi is not None
    # Above 0.1, as forty of the same population often are, and no alarm.
    assert stability.MODERATE < some.psi < some.chance
    assert some.level == "steady"


def test_a_new_scanner_and_a_new_matrix_are_seen() -> None:
    makers: list[float | str] = ["SIEMENS", "GE"] * 100
    assert weighed("manufacturer", makers, makers[:150]).level == "steady"
    changed = weighed("manufacturer", makers, ["CANON"] * 60 + makers[:90])
    assert changed.level == "much"
    assert changed.bins == ("GE", "SIEMENS", "other")
    rows: list[float | str] = [2500.0] * 200
    assert weighed("rows", rows, [2500.0] * 100).level == "steady"
    assert weighed("rows", rows, [2048.0] * 100).level == "much"


def test_a_card_may_declare_the_reference(tmp_path: Path) -> None:
    declared = Histogram(edges=(-1.0, 0.0, 1.0), shares=(0.159, 0.341, 0.341, 0.159))
    assert weighed("x", declared, drawn(3, 400)).level == "steady"
    assert weighed("x", declared, drawn(3, 400, middle=1.0)).level == "much"
    words = Histogram(categories=("PA", "AP"), shares=(0.7, 0.3))
    assert weighed("view", words, ["PA"] * 70 + ["AP"] * 30).level == "steady"
    for wrong in ({"shares": [0.5, 0.5]}, {"edges": [1, 1], "shares": [0.2, 0.3, 0.5]}, {"edges": [1], "shares": [1]}):
        card = classification_card(reference={"mean": wrong})
        with pytest.raises(CardError, match="reference"):
            load_card(write_model(tmp_path, card, mean_brightness()))


def test_the_first_inputs_are_the_reference_and_the_last_the_window(database: Database) -> None:
    def record(values: list[float | str], digest: str = "d" * 64) -> None:
        with database.write() as connection:
            drift.record(
                connection,
                model="chest",
                version="1",
                digest=digest,
                observations=[{"mean": value, "outcome": "analysed"} for value in values],
                reference=200,
                window=150,
            )

    def weigh() -> stability.Stability:
        with database.read() as connection:
            (one,) = [one for one in drift.observed(connection) if one.digest == "d" * 64]
            return stability.stability(connection, one, None, reference=200, window=150)

    record([0.0], digest="e" * 64)
    record(drawn(0, 200))
    assert weigh().level == "unknown"
    record(drawn(1, 150))
    steady = weigh()
    assert (steady.level, steady.observations, steady.reference) == ("steady", 350, "first inputs")
    for part in range(10):
        record(drawn(part + 2, 30, middle=1.5))
    shifted = weigh()
    assert shifted.level == "much"
    assert [(one.name, one.level) for one in shifted.features] == [("mean", "much"), ("outcome", "steady")]
    assert shifted.features[0].now_count == 150
    with database.read() as connection:
        held = drift.between(connection, "d" * 64, 1, 10_000)
    # What lies between reference and window is let go, some at a time.
    assert 350 <= len(held) < 450
    assert [one["mean"] for one in held[:200]] == drawn(0, 200)


def run(folder: Path, card: dict[str, object], model: object, role: str, paths: list[Path]) -> Findings:
    loaded = load_card(write_model(folder, card, model))  # type: ignore[arg-type]
    return open_engine(loaded).run(Job(loaded.path, {role: tuple(ImageFile(path.stem, path) for path in paths)}))


def test_what_is_observed_describes_input_and_answer_and_names_nobody(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4095, 80), (64, 1))
    path = radiograph(tmp_path, ramp)
    findings = run(tmp_path, classification_card(), mean_brightness(), "radiograph", [path])
    (one,) = findings.statistics["observations"]
    assert one["mean"] == pytest.approx(0.5, abs=0.01)
    assert one["p95"] == pytest.approx(0.95, abs=0.02)
    assert (one["rows"], one["columns"], one["outcome"]) == (64.0, 80.0, "analysed")
    assert one["probability nodule"] == pytest.approx(0.4, abs=0.02)
    told = str(one).upper()
    for said in ("PATIENT", path.stem.upper(), "1.2."):
        assert said not in told

    images = ct_series(tmp_path / "ct", np.full((10, 16, 16), 900), spacing=(3, 1, 1))
    volume = run(tmp_path, segmentation_card(), thresholding(), "ct", images)
    (one,) = volume.statistics["observations"]
    assert (one["slices"], one["slice_spacing_mm"], one["median"]) == (10.0, 3.0, 900.0)
    assert one["volume_ml right lung"] == pytest.approx(7.68)

    lateral = radiograph(tmp_path, ramp, view="LL")
    refused = run(tmp_path, classification_card(), mean_brightness(), "radiograph", [lateral])
    assert refused.statistics["observations"] == [{"outcome": "view"}]
