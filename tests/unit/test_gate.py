"""Before a model its input, and after it its answer, are held against the card; outside there is a coded reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from inference import admission, gate
from inference.answers import checked
from inference.card import load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import EngineFailure, InputRefused
from inference.findings import Classification, Code, Findings, Measurement, NotAnalysed, Segment, Segmentation
from inference.headers import age_years, seen
from inference.inputs import InputRole, Limits
from inference.reasons import REASONS
from tests.dicom_factory import ct_series, radiograph
from tests.enhanced_factory import enhanced
from tests.evidence_factory import content, make, uids_of
from tests.model_factory import (
    classification_card,
    constant_label,
    mean_brightness,
    segmentation_card,
    thresholding,
    write_model,
)


def header(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def role(kind: str = "radiograph", **limits: Any) -> InputRole:
    return InputRole(role="image", kind=kind, limits=Limits(**limits))


def refused(of: InputRole, dataset: Dataset) -> str:
    with pytest.raises(InputRefused) as refusal:
        gate.header(of, dataset)
    assert refusal.value.code == REASONS[refusal.value.reason]
    return refusal.value.reason


AXIAL, CORONAL, OBLIQUE = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [1, 0, 0, 0, 0.72, 0.69]


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "reason"),
    [
        ({"age_years": [18, 90]}, {"PatientAge": "018Y"}, {"PatientAge": "017Y"}, "age"),
        ({"age_years": [18, 90]}, {"PatientAge": "090Y"}, {"PatientAge": "091Y"}, "age"),
        ({"age_years": [0, 0]}, {"PatientAge": "011M"}, {"PatientAge": "012M"}, "age"),
        ({"age_years": [0, 1]}, {"PatientAge": "080W"}, {"PatientAge": "731D"}, "age"),
        (
            {"age_years": [18, 90]},
            {"PatientBirthDate": "20020131", "StudyDate": "20200201"},
            {"PatientBirthDate": "20020201", "StudyDate": "20200130"},
            "age",
        ),
        ({"pixel_spacing_mm": [0.1, 0.3]}, {"PixelSpacing": [0.2, 0.2]}, {"PixelSpacing": [0.2, 0.4]}, "pixel-spacing"),
        (
            {"pixel_spacing_mm": [0.1, 0.3]},
            {"ImagerPixelSpacing": [0.2, 0.2]},
            {"ImagerPixelSpacing": [1.2, 1.2]},
            "pixel-spacing",
        ),
        ({"matrix": [512, 4096]}, {"Rows": 512, "Columns": 4096}, {"Rows": 2000, "Columns": 400}, "matrix"),
        (
            {"photometric": ["MONOCHROME2"]},
            {"PhotometricInterpretation": "MONOCHROME2"},
            {"PhotometricInterpretation": "MONOCHROME1"},
            "photometric",
        ),
        ({"laterality": ["L"]}, {"ImageLaterality": "L"}, {"Laterality": "R"}, "laterality"),
        (
            {"orientation": ["axial"]},
            {"ImageOrientationPatient": AXIAL},
            {"ImageOrientationPatient": CORONAL},
            "orientation",
        ),
        (
            {"orientation": ["axial", "coronal"]},
            {"ImageOrientationPatient": CORONAL},
            {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
            "orientation",
        ),
        ({"contrast": "with"}, {"ContrastBolusAgent": "IOMERON 300"}, {}, "contrast"),
        ({"contrast": "without"}, {"ContrastBolusAgent": "NONE"}, {"ContrastBolusAgent": "X"}, "contrast"),
    ],
)
def test_each_limit_lets_what_is_inside_pass_and_refuses_what_is_outside_for_its_own_reason(
    limits: dict[str, Any], inside: dict[str, Any], outside: dict[str, Any], reason: str
) -> None:
    assert gate.header(role(**limits), header(**inside)) == ()
    assert refused(role(**limits), header(**outside)) == reason


def test_geometry_is_read_from_the_functional_groups_of_a_multi_frame_image() -> None:
    shared = header(
        PixelMeasuresSequence=[header(PixelSpacing=[0.7, 0.7])],
        PlaneOrientationSequence=[header(ImageOrientationPatient=AXIAL)],
        FrameAnatomySequence=[header(FrameLaterality="U")],
    )
    found = seen(header(SharedFunctionalGroupsSequence=[shared]))
    assert (found.spacing_mm, found.orientation, found.laterality) == ((0.7, 0.7), "axial", "U")
    assert seen(header(ImageOrientationPatient=OBLIQUE)).orientation == "axial"


def test_what_is_not_known_is_allowed_and_said_or_refused_as_the_card_has_it() -> None:
    (said,) = gate.header(role(age_years=[18, 90]), header())
    assert "age" in said
    assert refused(role(age_years=[18, 90], unknown={"age_years": "refuse"}), header()) == "age"
    assert refused(role(pixel_spacing_mm=[0.1, 0.3]), header()) == "pixel-spacing"
    assert gate.header(role(pixel_spacing_mm=[0.1, 0.3], unknown={"pixel_spacing_mm": "allow"}), header())
    # An age without its unit could be days: it is not guessed at.
    assert age_years(header(PatientAge="62")) is None
    assert refused(role(orientation=["axial"]), header()) == "orientation"


def test_what_the_card_does_not_match_is_refused_for_the_attribute_that_it_is() -> None:
    reads = InputRole(
        role="image",
        kind="radiograph",
        match={"Modality": ["CR", "DX"], "BodyPartExamined": "CHEST", "not": {"ViewPosition": "LL"}},
    )
    chest = {"Modality": "DX", "BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    gate.means(reads, header(**chest))
    for changed, reason in (
        ({"Modality": "CT"}, "modality"),
        ({"ViewPosition": "LL"}, "view"),
        ({"BodyPartExamined": "HAND"}, "body-part"),
    ):
        with pytest.raises(InputRefused) as refusal:
            gate.means(reads, header(**chest | changed))
        assert refusal.value.reason == reason


def classify(folder: Path, images: list[Path], limits: dict[str, Any]) -> Findings:
    inputs = [{"role": "radiograph", "kind": "radiograph", "match": {"Modality": ["CR", "DX"]}, "limits": limits}]
    card = load_card(write_model(folder, classification_card(inputs=inputs), mean_brightness()))
    files = tuple(ImageFile(path.stem, path) for path in images)
    return open_engine(card).run(Job(card.path, {"radiograph": files}))


def test_images_of_one_series_pass_or_fail_each_for_itself_and_those_left_out_are_told(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 4000, 96), (96, 1))
    large, small = radiograph(tmp_path, ramp), radiograph(tmp_path, ramp[:64, :64])
    findings = classify(tmp_path, [small, large], {"matrix": [80, 200]})
    assert findings.images == (large.stem,)
    assert any("1 of 2 images" in said and "matrix" in said for said in findings.warnings)
    alone = classify(tmp_path, [small], {"matrix": [80, 200]})
    assert alone.not_analysed is not None
    assert (alone.not_analysed.reason, alone.not_analysed.code) == ("matrix", REASONS["matrix"])
    assert alone.classifications == ()


def segment(folder: Path, images: list[Path], model: Any, **changes: Any) -> Findings:
    card = load_card(write_model(folder, segmentation_card(**changes), model))
    return open_engine(card).run(Job(card.path, {"ct": tuple(ImageFile(path.stem, path) for path in images)}))


def test_a_volume_that_covers_too_little_or_lies_otherwise_is_not_segmented(tmp_path: Path) -> None:
    images = ct_series(tmp_path / "ct", np.full((10, 16, 16), 900), spacing=(3, 1, 1))
    for limits, reason in (({"coverage_mm": [100, 800]}, "coverage"), ({"orientation": ["coronal"]}, "orientation")):
        inputs = [{"role": "ct", "kind": "volume", "limits": limits}]
        findings = segment(tmp_path / reason, images, thresholding(), inputs=inputs)
        assert findings.not_analysed is not None
        assert findings.not_analysed.reason == reason
        assert findings.segmentation is None


def test_every_image_of_a_volume_is_held_against_the_card_but_for_localizers(tmp_path: Path) -> None:
    hu, frame = np.full((6, 16, 16), 900), "2.25.7"
    images = ct_series(tmp_path / "ct", hu, spacing=(3, 1, 1), frame_of_reference_uid=frame)
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    scout = ct_series(tmp_path / "scout", hu[:1], orientation=coronal, frame_of_reference_uid=frame)
    change(scout[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    match = {"Modality": "CT", "BodyPartExamined": "CHEST", "not": {"ImageType": "LOCALIZER"}, "CallingAETitle": "*"}
    inputs = [
        {"role": "ct", "kind": "volume", "match": match, "limits": {"contrast": "without", "orientation": ["axial"]}}
    ]

    def reason(name: str) -> str:
        found = segment(tmp_path / name, [*scout, *images], thresholding(), inputs=inputs)
        given = tuple(ImageFile(path.stem, path) for path in [*scout, *images])
        if found.not_analysed is None:
            assert admission.series(InputRole.model_validate(inputs[0]), given).words == ()
            return ""
        with pytest.raises(InputRefused) as caught:
            admission.series(InputRole.model_validate(inputs[0]), given)
        assert caught.value.reason == found.not_analysed.reason
        return found.not_analysed.reason

    for path in images:
        change(path, BodyPartExamined="CHEST")
    assert reason("all") == ""
    change(images[3], ContrastBolusAgent="IOHEXOL")
    assert reason("contrast") == "contrast"
    change(images[3], ContrastBolusAgent="NONE", BodyPartExamined="HEAD")
    assert reason("head") == "body-part"


def change(path: Path, **values: Any) -> None:
    dataset = dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def test_the_frames_of_an_enhanced_image_are_held_too_where_an_engine_reads_it_by_itself(tmp_path: Path) -> None:
    path = enhanced(tmp_path, np.zeros((10, 16, 16)), [(0, 0, 3.0 * number) for number in range(10)])

    def series(**changes: Any) -> str:
        role = InputRole(role="ct", kind="volume", **changes)
        try:
            admission.series(role, [ImageFile("enhanced", path)])
        except InputRefused as refusal:
            return refusal.reason
        return ""

    assert series(limits=Limits(coverage_mm=(20, 40)), slice_spacing_mm=(1, 5)) == ""
    assert series(limits=Limits(coverage_mm=(100, 400))) == "coverage"
    assert series(slice_spacing_mm=(1, 2)) == "slice-spacing"


def test_series_that_an_engine_reads_by_itself_are_held_against_the_card_by_their_headers(tmp_path: Path) -> None:
    files = [ImageFile(path.stem, path) for path in ct_series(tmp_path, np.zeros((10, 16, 16)), spacing=(3, 1, 1))]

    def series(**changes: Any) -> str:
        try:
            admission.series(InputRole(role="ct", kind="volume", match={"Modality": "CT"}, **changes), files)
        except InputRefused as refusal:
            return refusal.reason
        return ""

    assert series(slice_spacing_mm=(1, 5), limits=Limits(coverage_mm=(20, 40), orientation=("axial",))) == ""
    assert series(slice_spacing_mm=(1, 2)) == "slice-spacing"
    assert series(limits=Limits(coverage_mm=(100, 400))) == "coverage"
    assert series(limits=Limits(pixel_spacing_mm=(0.1, 0.5))) == "pixel-spacing"


def test_a_volume_out_of_the_cards_range_and_an_empty_mask_are_no_findings(tmp_path: Path) -> None:
    images = ct_series(tmp_path / "ct", np.full((10, 16, 16), 900), spacing=(3, 1, 1))
    outputs = segmentation_card()["outputs"]
    bounded = [outputs[0] | {"limits": {"volume_ml": [10, 5000]}}, outputs[1]]
    too_small = segment(tmp_path / "a", images, thresholding(), outputs=bounded)
    assert too_small.not_analysed is not None
    assert too_small.not_analysed.reason == "volume-out-of-range"
    assert "7.7 mL" in too_small.not_analysed.text
    empty = segment(tmp_path / "b", images, constant_label(0), postprocess=[])
    assert empty.not_analysed is not None
    assert empty.not_analysed.reason == "empty-mask"
    nothing_is_an_answer = [one | {"limits": {"volume_ml": [0, 5000]}} for one in outputs]
    declared = segment(tmp_path / "c", images, constant_label(0), postprocess=[], outputs=nothing_is_an_answer)
    assert declared.not_analysed is None
    assert declared.segmentation is not None


CODE = Code(value="1", scheme="99T", meaning="one")
SAID = Classification(name="nodule", code=CODE, probability=0.4, threshold=0.5, image="a")


@pytest.mark.parametrize("probability", [float("nan"), float("inf"), -0.01, 1.01])
def test_a_probability_that_is_none_is_the_engines_failure(tmp_path: Path, probability: float) -> None:
    card = load_card(write_model(tmp_path, classification_card(), mean_brightness()))
    good = Findings(images=("a",), classifications=(SAID,))
    assert checked(card, good) is good
    with pytest.raises(EngineFailure, match="probabilities"):
        checked(card, replace(good, classifications=(replace(SAID, probability=probability),)))


def test_an_answer_that_the_card_does_not_name_is_the_engines_failure(tmp_path: Path) -> None:
    card = load_card(write_model(tmp_path, segmentation_card(), thresholding()))
    labels = np.zeros((1, 4, 4), np.uint8)
    labels[0, 0, 0] = 9
    lung = Segment(label=1, name="right lung", code=CODE, category=CODE, volume_ml=1.0)
    for segments, text in (((lung,), "label"), ((replace(lung, name="spleen"),), "spleen")):
        with pytest.raises(EngineFailure, match=text):
            checked(
                card,
                Findings(
                    images=("a",), segmentation=Segmentation(segments=segments, images=("a",), labels=labels.copy())
                ),
            )


def test_a_measured_value_out_of_range_is_no_finding(tmp_path: Path) -> None:
    unit = {"value": "a", "scheme": "UCUM", "meaning": "year"}
    output = {"index": 0, "name": "age", "code": vars_of(CODE), "unit": unit, "limits": {"value": [0, 19]}}
    changes = {"task": "measurement", "outputs": [output]}
    card = load_card(write_model(tmp_path, classification_card(**changes), mean_brightness()))
    measured = Measurement(name="age", code=CODE, value=19.0, unit=CODE, image="a")
    assert checked(card, Findings(images=("a",), measurements=(measured,))).measurements
    beyond = checked(card, Findings(images=("a",), measurements=(replace(measured, value=25.0),)))
    assert beyond.measurements == ()
    assert beyond.not_analysed is not None
    assert beyond.not_analysed.reason == "value-out-of-range"
    with pytest.raises(EngineFailure, match="not numbers"):
        checked(card, Findings(images=("a",), measurements=(replace(measured, value=float("nan")),)))


def vars_of(code: Code) -> dict[str, str]:
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}


def test_the_reason_is_coded_in_the_report_and_what_was_not_known_is_said_there(tmp_path: Path) -> None:
    path = radiograph(tmp_path, np.tile(np.linspace(0, 4000, 64), (64, 1)))
    code = REASONS["age"]
    refused_findings = Findings(
        images=uids_of([path]), not_analysed=NotAnalysed(reason="age", text="too young", code=code)
    )
    report = make(refused_findings, [path])["SR"]
    (reason,) = content(report, "Reason for")
    assert reason.ConceptCodeSequence[0].CodeValue == "114009"
    assert any("too young (age)" in item.TextValue for item in content(report, "Comment"))
    said = Findings(images=uids_of([path]), classifications=(replace(SAID, image=uids_of([path])[0]),), warnings=("W",))
    assert any(item.TextValue == "W" for item in content(make(said, [path])["SR"], "Comment"))
