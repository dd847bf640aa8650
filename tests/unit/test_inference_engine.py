"""A card's model over an input set: findings on the source images, or a stated reason why there are none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from inference.card import load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import EngineFailure
from inference.findings import Findings
from inference.host import EngineHost
from inference.labelling import slabs
from inference.postprocess import keep_components, volumes_ml
from inference.wire import findings_from, findings_to, job_from, job_to
from tests.dicom_factory import ct_series, radiograph
from tests.model_factory import classification_card, mean_brightness, segmentation_card, thresholding, write_model


def images_of(paths: list[Path]) -> tuple[ImageFile, ...]:
    return tuple(ImageFile(path.stem, path) for path in paths)


def blobs(slices: int = 21) -> np.ndarray[Any, np.dtype[np.int64]]:
    hu = np.full((slices, 16, 18), -1000)
    hu[2:18, 3:8, 2:7] = 800
    hu[5:16, 6:11, 10:16] = 1800
    return hu


def segment(folder: Path, images: tuple[ImageFile, ...], **changes: Any) -> Findings:
    card = load_card(write_model(folder, segmentation_card(**changes), thresholding()))
    return open_engine(card).run(Job(card.path, {"ct": images}))


def classify(folder: Path, images: tuple[ImageFile, ...], plus: float = 0.0, **changes: Any) -> Findings:
    card = load_card(write_model(folder, classification_card(**changes), mean_brightness(plus)))
    return open_engine(card).run(Job(card.path, {"radiograph": images}))


def test_a_segmentation_gives_masks_volumes_and_coverage(tmp_path: Path) -> None:
    hu = blobs()
    images = images_of(ct_series(tmp_path / "ct", hu, spacing=(2, 0.5, 0.5)))
    findings = segment(tmp_path, images)
    assert findings.not_analysed is None
    assert findings.segmentation is not None
    assert findings.segmentation.images == findings.images == tuple(image.key for image in images)
    assert (findings.segmentation.labels == (hu > 200).astype(int) + (hu > 1200)).all()
    assert [s.volume_ml for s in findings.segmentation.segments] == pytest.approx(
        [16 * 5 * 5 * 0.0005, 11 * 5 * 6 * 0.0005]
    )
    assert findings.coverage is not None
    assert findings.coverage.images == 21
    assert findings.seconds > 0


def test_slabs_leave_no_seam(tmp_path: Path) -> None:
    images = images_of(ct_series(tmp_path / "ct", np.random.default_rng(0).integers(-1000, 2000, (37, 9, 7))))
    whole = segment(tmp_path / "whole", images, slab=None, postprocess=[])
    for slices, overlap in [(8, 2), (5, 0), (7, 6), (36, 1), (40, 3), (1, 0)]:
        cut = segment(
            tmp_path / f"{slices}-{overlap}", images, slab={"slices": slices, "overlap": overlap}, postprocess=[]
        )
        assert cut.segmentation is not None
        assert whole.segmentation is not None
        assert (cut.segmentation.labels == whole.segmentation.labels).all()


@pytest.mark.parametrize("total", [1, 5, 31, 32, 33, 58, 59, 300])
@pytest.mark.parametrize(("slices", "overlap"), [(32, 6), (32, 0), (8, 7), (5, 1)])
def test_every_slice_is_kept_once_and_away_from_the_cuts(total: int, slices: int, overlap: int) -> None:
    kept: list[int] = []
    for read, keep in slabs(total, slices, overlap):
        assert read.start <= keep.start < keep.stop <= read.stop <= total
        assert read.stop - read.start == min(slices, total)
        if read.start > 0:
            assert keep.start - read.start >= overlap // 2
        if read.stop < total:
            assert read.stop - keep.stop >= overlap // 2
        kept += range(keep.start, keep.stop)
    assert kept == list(range(total))


def test_a_volume_without_what_the_card_requires_is_not_analysed_in_the_cards_words(tmp_path: Path) -> None:
    images = images_of(ct_series(tmp_path / "ct", np.full((6, 8, 8), -1000)))
    findings = segment(tmp_path, images)
    assert findings.segmentation is None
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "nothing-bright"
    assert findings.not_analysed.text == "nothing bright in the volume"
    assert len(findings.images) == 6
    assert findings.coverage is not None


def test_a_series_with_a_gap_is_not_analysed_and_says_where(tmp_path: Path) -> None:
    images = images_of(ct_series(tmp_path / "ct", blobs()))
    findings = segment(tmp_path, images[:7] + images[8:])
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "gap-in-series"
    assert "mm" in findings.not_analysed.text
    assert len(findings.images) == 20


def test_what_the_card_does_not_read_is_not_analysed(tmp_path: Path) -> None:
    images = images_of(ct_series(tmp_path / "ct", blobs(), spacing=(12, 1, 1)))
    inputs = [{"role": "ct", "kind": "volume", "minimum_instances": 2, "slice_spacing_mm": [0.3, 10]}]
    findings = segment(tmp_path / "spacing", images, inputs=inputs)
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "slice-spacing"
    inputs = [{"role": "ct", "kind": "volume", "minimum_instances": 50}]
    findings = segment(tmp_path / "few", images, inputs=inputs)
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "too-few-slices"
    card = load_card(tmp_path / "few" / "blobs")
    findings = open_engine(card).run(Job(card.path, {"mr": images}))
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "missing-role"


def test_small_components_leave_the_mask_by_volume_and_by_fraction() -> None:
    labels = np.zeros((10, 20, 20), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[8, 8:10, 8:10] = 1
    labels[8, 15, 15] = 1
    labels[8, 15, 16] = 2
    spacing = (10.0, 10.0, 10.0)
    assert volumes_ml(labels, spacing, [1, 2, 3]) == {1: 130.0, 2: 1.0, 3: 0.0}
    assert volumes_ml(keep_components(labels.copy(), spacing, minimum_ml=2), spacing, [1, 2]) == {1: 129.0, 2: 0.0}
    assert volumes_ml(keep_components(labels.copy(), spacing, minimum_ml=4), spacing, [1])[1] == 129.0
    assert volumes_ml(keep_components(labels.copy(), spacing, minimum_ml=4.5), spacing, [1])[1] == 125.0
    by_fraction = keep_components(labels.copy(), spacing, minimum_fraction=0.03)
    assert volumes_ml(by_fraction, spacing, [1, 2]) == {1: 129.0, 2: 1.0}


def test_components_touch_through_faces_alone() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    labels[1, 1, 2] = 1
    assert keep_components(labels, (1, 1, 1), minimum_fraction=0.9).sum() == 2


@pytest.mark.parametrize("seed", range(8))
def test_components_are_those_that_a_plain_search_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = (random.random((7, 9, 11)) < 0.45).astype(np.uint8) * random.integers(1, 3, (7, 9, 11), dtype=np.uint8)
    expected = labels.copy()
    for label in (1, 2):
        components, found = ndimage.label(labels == label)
        for component in range(1, found + 1):
            if (components == component).sum() < 4:
                expected[components == component] = 0
    assert (keep_components(labels, (10, 10, 10), minimum_ml=4) == expected).all()


def test_each_radiograph_of_the_input_set_is_classified_under_its_own_key(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4000, 64), (64, 1))
    images = images_of([radiograph(tmp_path, ramp), radiograph(tmp_path, ramp**2 / 4000, modality="DX")])
    findings = classify(tmp_path, images)
    assert [c.image for c in findings.classifications] == [image.key for image in images] == list(findings.images)
    first, second = findings.classifications
    assert first.probability == pytest.approx(0.5, abs=0.01)
    assert second.probability == pytest.approx(1 / 3, abs=0.02)
    assert (first.name, first.threshold, second.present) == ("nodule", 0.5, False)


def test_a_view_outside_the_cards_meaning_is_left_out(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4000, 64), (64, 1))
    frontal, lateral = images_of([radiograph(tmp_path, ramp), radiograph(tmp_path, ramp, view="LL")])
    assert classify(tmp_path / "a", (lateral, frontal)).images == (frontal.key,)
    alone = classify(tmp_path / "b", (lateral,))
    assert alone.not_analysed is not None
    assert alone.not_analysed.reason == "view"


def test_a_picture_in_a_corner_of_its_bits_is_not_analysed_where_the_model_would_see_an_even_grey(
    tmp_path: Path,
) -> None:
    ramp = np.tile(np.linspace(0, 4095, 96), (96, 1))
    usual = radiograph(tmp_path / "i", ramp)
    narrow = radiograph(tmp_path / "i", ramp, bits_stored=16)
    # A bright marker widens the range, but not what is to be seen of the patient.
    marked = ramp.copy()
    marked[:4, :8] = 65535
    marker = radiograph(tmp_path / "i", marked, bits_stored=16)
    steps = {
        "preprocess": [{"torchxrayvision_input": {"size": 64}}],
        "postprocess": [{"activation": {"kind": "sigmoid"}}],
    }
    findings = classify(tmp_path / "m", images_of([narrow, usual, marker]), **steps)
    assert findings.images == (usual.stem,)
    (said,) = findings.warnings
    assert said.startswith("Not analysed, 2 of 3 images: the picture uses 6.2 % of the values")
    alone = classify(tmp_path / "m", images_of([narrow]), **steps).not_analysed
    assert alone is not None
    assert alone.reason == "narrow-range"
    # By percentiles the same picture is the same, whatever its bits.
    by_percentiles = [
        classify(tmp_path / "m", images_of([one])).classifications[0].probability for one in (usual, narrow)
    ]
    assert by_percentiles[0] == by_percentiles[1]


def test_a_radiograph_without_rows_is_not_analysed(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.tile(np.linspace(0, 4000, 64), (64, 1)))
    dataset = pydicom.dcmread(path)
    dataset.Rows = 0
    dataset.save_as(path)
    findings = classify(tmp_path, images_of([path]))
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "no-pixels"
    assert findings.images == (path.stem,)


@pytest.mark.parametrize("plus", [float("nan"), 1.0, -1.0])
def test_answers_that_are_no_probabilities_break_the_engine(tmp_path: Path, plus: float) -> None:
    images = images_of([radiograph(tmp_path, np.tile(np.linspace(0, 4000, 64), (64, 1)))])
    with pytest.raises(EngineFailure) as failure:
        classify(tmp_path, images, plus)
    assert failure.value.reason == "broke"
    assert "no probabilities" in failure.value.text


def test_tensors_that_the_model_does_not_have_break_with_both_names(tmp_path: Path) -> None:
    card = load_card(
        write_model(tmp_path, segmentation_card(tensors={"image": "pixels", "output": "labels"}), thresholding())
    )
    with pytest.raises(EngineFailure, match="pixels"):
        open_engine(card)


def test_the_supervised_process_says_what_the_engine_says(tmp_path: Path) -> None:
    images = images_of(ct_series(tmp_path / "ct", blobs()))
    direct = segment(tmp_path, images)
    card = load_card(tmp_path / "blobs")
    with EngineHost(card, folder=tmp_path) as host:
        job = Job(card.path, {"ct": images[::-1]})
        hosted = host.run(job)
        first = host.pid
        assert direct.segmentation is not None
        assert hosted.segmentation is not None
        assert hosted.segmentation.images == direct.segmentation.images[::-1]
        assert (hosted.segmentation.labels[::-1] == direct.segmentation.labels).all()
        assert hosted.segmentation.segments == direct.segmentation.segments
        assert hosted.coverage == direct.coverage
        refused = host.run(Job(card.path, {"ct": images[:1]}))
        assert refused.not_analysed is not None
        assert refused.not_analysed.reason == "too-few-slices"
        assert host.pid == first is not None
    assert host.pid is None
    assert not list(tmp_path.glob("engine-*"))


def test_a_job_for_another_card_is_refused(tmp_path: Path) -> None:
    card = load_card(write_model(tmp_path, segmentation_card(), thresholding()))
    with EngineHost(card) as host, pytest.raises(ValueError, match="came to the engine of"):
        host.run(Job(tmp_path / "other" / "card.yaml", {}))


def test_jobs_and_findings_pass_the_pipe_unchanged(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4000, 64), (64, 1))
    job = Job(tmp_path / "card.yaml", {"radiograph": images_of([radiograph(tmp_path, ramp)])})
    assert job_from(job_to(job)) == job
    findings = classify(tmp_path, job.input_set["radiograph"])
    assert findings_from(findings_to(findings, tmp_path / "mask.npy"), tmp_path / "mask.npy") == findings


def test_importing_inference_is_light() -> None:
    code = "import sys, inference, inference.host, inference.registry; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnxruntime", "scipy", "node", "storage", "highdicom"} & set(loaded)
