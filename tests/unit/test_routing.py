"""Which series a route gives to a model, and why."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from onnx import helper
from pydicom.datadict import dictionary_VR, tag_for_keyword

from inference.card import Card, load_card
from node.settings import Route, load_settings
from node.workflow.filling import fill_roles
from node.workflow.routing import candidates_of, could_select, weigh
from storage.records import Instance, Series, Study
from tests.model_factory import segmentation_card, write_model

ROOT = Path(__file__).resolve().parents[2]
AT = datetime(2024, 1, 1, tzinfo=UTC)
AXIAL = [1, 0, 0, 0, 1, 0]


def _json(**attributes: Any) -> dict[str, Any]:
    return {
        f"{tag_for_keyword(key):08X}": {
            "vr": dictionary_VR(key),
            "Value": value if isinstance(value, list) else [value],
        }
        for key, value in attributes.items()
    }


def _study(**attributes: Any) -> Study:
    return Study(
        id=1,
        study_instance_uid="1.2.3",
        state="COMPLETE",
        patient_id="",
        patient_name="",
        patient_name_folded="",
        patient_birth_date="",
        patient_sex="",
        accession_number="",
        study_date="",
        study_time="",
        study_description="",
        attributes=_json(**attributes),
        excluded=False,
        historical=False,
        evidence_changed=False,
        first_received_at=AT,
        last_received_at=AT,
        quiet_from=AT,
    )


class _Builder:
    """Series of a study, slice by slice."""

    def __init__(self, **study: Any) -> None:
        self.study = _study(**study)
        self.series: list[Series] = []
        self.instances: list[Instance] = []

    def add(
        self,
        description: str,
        count: int,
        *,
        modality: str = "CT",
        spacing: float = 1.0,
        orientation: list[float] = AXIAL,
        sop_class: str = "1.2.840.10008.5.1.4.1.1.2",
        image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL"),
        each: list[dict[str, Any]] | None = None,
        **attributes: Any,
    ) -> _Builder:
        number = len(self.series) + 1
        self.series.append(
            Series(
                id=number,
                study_id=1,
                series_instance_uid=f"1.2.3.{number}",
                modality=modality,
                series_number=str(number),
                series_description=description,
                attributes=_json(Modality=modality, SeriesDescription=description, **attributes),
            )
        )
        for index in range(count):
            own = {
                "ImageType": list(image_type),
                "ImageOrientationPatient": orientation,
                "ImagePositionPatient": [0.0, 0.0, index * spacing],
                **(each[index] if each else {}),
            }
            uid = f"1.2.3.{number}.{index + 1}"
            self.instances.append(
                Instance(
                    id=len(self.instances) + 1,
                    study_id=1,
                    series_id=number,
                    sop_instance_uid=uid,
                    sop_class_uid=sop_class,
                    transfer_syntax_uid="1.2.840.10008.1.2.1",
                    instance_number=str(index + 1),
                    attributes=_json(**own),
                    identity={},
                    digest=f"{len(self.instances):064x}",
                    size=1,
                    blob=uid,
                    made_here=False,
                    conflicting=False,
                    defect="",
                    excluded=False,
                    calling_ae_title="CT1",
                    received_at=AT,
                )
            )
        return self

    @property
    def candidates(self) -> list[Any]:
        return candidates_of(self.study, self.series, self.instances)


@pytest.fixture(scope="module")
def routes() -> dict[str, Route]:
    with contextlib.chdir(ROOT):
        return {route.name: route for route in load_settings(Path("conf/node.yaml")).route_list}


@pytest.fixture(scope="module")
def lung() -> Card:
    return load_card(ROOT / "conf" / "models" / "lung-ct")


@pytest.fixture(scope="module")
def radiograph() -> Card:
    return load_card(ROOT / "conf" / "models" / "chest-radiograph-demo")


def test_of_four_reconstructions_a_localizer_and_a_dose_report_the_best_is_read_and_the_rest_explained(
    routes: dict[str, Route], lung: Card
) -> None:
    study = (
        _Builder(StudyDescription="CT Chest")
        .add("Topogram", 2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
        .add("Thorax 5.0 B31f", 60, spacing=5.0, ConvolutionKernel="B31f")
        .add("Thorax 1.0 B31f", 300, spacing=1.0, ConvolutionKernel="B31f")
        .add("Thorax cor", 80, spacing=3.0, orientation=[1, 0, 0, 0, 0, -1], image_type=("DERIVED", "PRIMARY", "MPR"))
        .add("Thorax MIP", 60, spacing=5.0, image_type=("DERIVED", "SECONDARY", "MIP"))
        .add("Dose Report", 1, modality="SR", sop_class="1.2.840.10008.5.1.4.1.1.88.67")
    )
    decision = weigh(study.candidates, routes["chest-ct"], lung, demonstrations=False)
    assert decision.matched
    (chosen,) = decision.input_sets
    assert chosen.roles["ct"].series.series_description == "Thorax 1.0 B31f"
    told = "\n".join(decision.reasons)
    assert "best of 4: series 3 (Thorax 1.0 B31f): axial, original, slices 1 mm apart" in told
    assert "not series 2 (Thorax 5.0 B31f): thinnest: slices 5 mm apart" in told
    assert "not series 4 (Thorax cor): axial: not axial" in told
    assert "not series 5 (Thorax MIP): original: derived" in told
    assert "series 1 (Topogram): not for role ct: a localizer" in told
    assert "series 6 (Dose Report): no: Modality is not CT (SR)" in told


@pytest.mark.parametrize(
    ("study", "series", "expected"),
    [
        ({"StudyDescription": "Thorax^ThoraxRoutine (Adult)"}, {}, True),
        ({}, {"ProtocolName": "ThoraxRoutine"}, True),
        ({}, {"ProtocolName": "5.1 CHEST W/O"}, True),
        ({}, {"BodyPartExamined": "CHEST"}, True),
        ({}, {"BodyPartExamined": "CHEST ABDOMEN"}, True),
        ({"StudyDescription": "CTPA"}, {}, True),
        ({"StudyDescription": "CT HEAD W/O"}, {"BodyPartExamined": "HEAD"}, False),
        ({}, {}, False),
    ],
)
def test_the_shipped_route_catches_chests_by_whatever_says_so(
    routes: dict[str, Route], lung: Card, study: dict[str, Any], series: dict[str, Any], expected: bool
) -> None:
    built = _Builder(**study).add("2.0", 40, **series)
    assert weigh(built.candidates, routes["chest-ct"], lung, demonstrations=False).matched is expected


def test_a_chest_that_the_model_cannot_read_is_said_to_be_not_analysed(routes: dict[str, Route], lung: Card) -> None:
    study = _Builder(StudyDescription="CT Chest").add("biopsy", 3)
    decision = weigh(study.candidates, routes["chest-ct"], lung, demonstrations=False)
    assert decision.matched
    assert decision.input_sets == ()
    assert decision.not_analysed is not None
    assert f"3 of at least {lung.inputs[0].minimum_instances} images" in decision.not_analysed["text"]


def test_nothing_is_analysed_on_a_series_of_which_an_image_is_truncated(routes: dict[str, Route], lung: Card) -> None:
    study = _Builder(StudyDescription="CT Chest").add("lung", 100).add("soft", 100)
    study.instances[7] = replace(study.instances[7], defect="truncated: an element is longer than what is left")
    decision = weigh(study.candidates, routes["chest-ct"], lung, demonstrations=False)
    assert [one.roles[lung.inputs[0].role].title for one in decision.input_sets] == ["series 2 (soft)"]
    assert any("1 of 100 images cannot be analysed: truncated" in one for one in decision.reasons)
    alone = _Builder(StudyDescription="CT Chest").add("lung", 100)
    alone.instances[7] = replace(alone.instances[7], defect="truncated: an element is longer than what is left")
    refused = weigh(alone.candidates, routes["chest-ct"], lung, demonstrations=False)
    assert refused.input_sets == ()
    assert refused.not_analysed is not None
    assert "truncated" in refused.not_analysed["text"]


def test_the_demonstration_model_runs_only_where_it_is_switched_on(routes: dict[str, Route], radiograph: Card) -> None:
    study = _Builder(StudyDescription="Chest PA").add("PA", 1, modality="DX", sop_class="1.2.840.10008.5.1.4.1.1.1.1.1")
    off = weigh(study.candidates, routes["chest-radiograph"], radiograph, demonstrations=False)
    assert not off.matched
    assert off.not_analysed is None
    assert "demonstration_models is false" in off.reasons[-1]
    assert len(weigh(study.candidates, routes["chest-radiograph"], radiograph, demonstrations=True).input_sets) == 1


def test_a_lateral_beside_a_frontal_radiograph_is_left_out(routes: dict[str, Route], radiograph: Card) -> None:
    views = [{"ViewPosition": "LL"}, {"ViewPosition": "PA"}]
    study = _Builder(StudyDescription="Chest 2 views").add(
        "Chest", 2, modality="DX", sop_class="1.2.840.10008.5.1.4.1.1.1.1.1", each=views
    )
    (chosen,) = weigh(study.candidates, routes["chest-radiograph"], radiograph, demonstrations=True).input_sets
    assert [one.sop_instance_uid for one in chosen.roles["radiograph"].instances] == ["1.2.3.1.2"]


def test_an_input_sets_digest_forgets_the_order_of_arrival_and_knows_the_bytes(
    routes: dict[str, Route], lung: Card
) -> None:
    def digest(study: _Builder) -> str:
        (chosen,) = weigh(study.candidates, routes["chest-ct"], lung, demonstrations=False).input_sets
        return chosen.digest

    one = _Builder(StudyDescription="CT Chest").add("1.0", 20)
    shuffled = _Builder(StudyDescription="CT Chest").add("1.0", 20)
    shuffled.instances.reverse()
    fewer = _Builder(StudyDescription="CT Chest").add("1.0", 19)
    assert digest(one) == digest(shuffled)
    assert digest(one) != digest(fewer)


def test_other_makers_reports_open_no_revision(routes: dict[str, Route], lung: Card) -> None:
    study = _Builder(StudyDescription="CT Chest").add("SR", 1, modality="SR", sop_class="1.2.840.10008.5.1.4.1.1.88.33")
    assert not any(could_select(one, tuple(routes.values()), {"lung-ct": lung}) for one in study.candidates)


ROLES = {
    "flair": ({"SeriesDescription": "*FLAIR*"}, False),
    "t1": ({"SeriesDescription": "*T1*"}, False),
    "t1ce": ({"all": [{"SeriesDescription": "*T1*"}, {"ContrastBolusAgent": "*"}]}, False),
    "t2": ({"SeriesDescription": "*T2*", "not": {"SeriesDescription": "*FLAIR*"}, "EchoTime": {"min": 70}}, False),
    "dwi": ({"SeriesDescription": "*DWI*"}, True),
}


@pytest.fixture
def tumour(tmp_path: Path) -> Card:
    """A card of four roles and one that may be absent, in the order of the usual data sets."""
    inputs = [
        {
            "role": role,
            "kind": "volume",
            "match": {"Modality": "MR"} | match,
            "optional": optional,
            "minimum_instances": 10,
            "prefer": ["thinnest"],
        }
        for role, (match, optional) in ROLES.items()
    ]
    model = helper.make_model(helper.make_graph([], "none", [], []))
    card = segmentation_card("tumour", inputs=inputs, layout="ncdhw", tensors={"image": "i", "output": "o"}, slab=None)
    return load_card(write_model(tmp_path, {key: value for key, value in card.items() if value is not None}, model))


def brain(*left_out: str) -> _Builder:
    study = _Builder(StudyDescription="MR Brain")
    for description, extra in {
        "AX T2 FLAIR": {"EchoTime": 120.0},
        "AX T1 POST": {"ContrastBolusAgent": "Gadovist", "EchoTime": 10.0, "spacing": 0.9},
        "AX T1": {"EchoTime": 10.0, "spacing": 1.0},
        "AX T2": {"EchoTime": 100.0},
        "SAG T1": {"EchoTime": 10.0, "spacing": 5.0},
        "AX DWI": {"EchoTime": 80.0},
    }.items():
        if description not in left_out:
            study.add(description, 20, modality="MR", sop_class="1.2.840.10008.5.1.4.1.1.4", **extra)
    return study


@pytest.fixture
def brains() -> Route:
    return Route.model_validate(
        {"name": "brain", "match": {"Modality": "MR"}, "models": ["tumour"], "deliver": ["pacs"]}
    )


def test_each_role_of_a_card_gets_the_series_that_its_rules_mean_and_none_gets_two(tumour: Card, brains: Route) -> None:
    decision = weigh(brain().candidates, brains, tumour, demonstrations=False)
    (chosen,) = decision.input_sets
    assert {role: one.series.series_description for role, one in chosen.roles.items()} == {
        "flair": "AX T2 FLAIR",
        "t1": "AX T1",
        "t1ce": "AX T1 POST",
        "t2": "AX T2",
        "dwi": "AX DWI",
    }
    assert list(chosen.roles) == list(ROLES)
    assert "not series 2 (AX T1 POST) for role t1: it is role t1ce" in decision.reasons
    assert any(reason.startswith("role t1: series 3 (AX T1), of 3 that can be read") for reason in decision.reasons)
    assert all(could_select(one, (brains,), lambda _: [tumour]) for one in brain().candidates)


def test_a_role_that_may_be_absent_is_not_missed(tumour: Card, brains: Route) -> None:
    decision = weigh(brain("AX DWI").candidates, brains, tumour, demonstrations=False)
    assert "dwi" not in decision.input_sets[0].roles
    assert "role dwi: no series; it may be absent" in decision.reasons


def test_missing_roles_are_said_by_their_names_and_nothing_is_analysed(tumour: Card, brains: Route) -> None:
    study = brain("AX T2", "AX T1", "SAG T1")
    decision = weigh(study.candidates, brains, tumour, demonstrations=False)
    assert decision.input_sets == ()
    assert decision.not_analysed is not None
    assert decision.not_analysed["reason"] == "missing-role"
    assert decision.not_analysed["text"].startswith("no series for t1, t2: ")
    assert "series 2 (AX T1 POST) is needed for role t1ce" in decision.not_analysed["text"]


@pytest.mark.parametrize(
    ("ranked", "optional", "filled", "missing"),
    [
        ({"a": ["1", "2"], "b": ["1"]}, [], {"a": "2", "b": "1"}, []),
        ({"a": ["1", "2"], "b": ["1", "3"], "c": ["1"]}, [], {"a": "2", "b": "3", "c": "1"}, []),
        ({"a": ["1", "2"], "b": ["2", "3"], "c": ["1", "2"]}, [], {"a": "2", "b": "3", "c": "1"}, []),
        ({"a": ["1"], "b": ["1"]}, [], {"a": "1"}, ["b"]),
        ({"a": ["1", "2"], "b": ["1"]}, ["b"], {"a": "1"}, []),
        ({"a": [], "b": ["1"]}, [], {"b": "1"}, ["a"]),
    ],
)
def test_series_are_shared_out_so_that_every_role_that_can_be_filled_is(
    ranked: dict[str, list[str]], optional: list[str], filled: dict[str, str], missing: list[str]
) -> None:
    assert fill_roles(ranked, optional) == (filled, missing)
