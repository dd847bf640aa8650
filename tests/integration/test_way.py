"""The main job: a pushed study is read by a model and comes back as SR, SEG and a message."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import generate_uid

from demo.peers import wait_until
from phantoms.radiograph import make_radiograph
from phantoms.thorax import make_thorax
from tests.dicom_factory import ct_series, radiograph
from tests.system import SEG, SR, Site, chest_ct, head_ct, push, results_in


def _read(raw: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(io.BytesIO(raw))


def test_a_chest_ct_comes_back_as_sr_and_seg_and_the_emr_is_told(site: Site, tmp_path: Path) -> None:
    phantom = make_thorax(7, shape=(40, 128, 128), spacing=(6.0, 2.7, 2.7))
    study_uid = generate_uid()
    files = ct_series(
        tmp_path,
        phantom.hu,
        spacing=(6.0, 2.7, 2.7),
        origin=(-170.0, -170.0, -240.0),
        study_uid=study_uid,
        AccessionNumber="A4711",
    )
    push(files, site.node.dimse_port)
    (message,) = site.wait_for_report(study_uid)

    assert message["acknowledgement"] == "AA"
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 1}
    (seg,) = map(_read, site.pacs.instances_of(study_uid, "SEG"))
    (sr,) = map(_read, site.pacs.instances_of(study_uid, "SR"))
    assert (seg.SOPClassUID, sr.SOPClassUID) == (SEG, SR)
    assert sr.VerificationFlag == "UNVERIFIED"
    assert _volumes_ml(seg) == pytest.approx([phantom.volumes_ml[1], phantom.volumes_ml[2]], rel=0.1)

    story = site.node.story(study_uid)
    assert "lung-ct" in str(story)
    assert "quiet for 1.5 s" in str(story)
    assert "AA" in str(story)


def test_dicomweb_client_finds_and_retrieves_source_and_results(site: Site, tmp_path: Path) -> None:
    study_uid, files = chest_ct(tmp_path, seed=8)
    client = DICOMwebClient(url=f"{site.node.url}/dicom-web")
    client.store_instances([pydicom.dcmread(file) for file in files])
    site.wait_for_report(study_uid)
    found = client.search_for_instances(study_instance_uid=study_uid)
    kinds = sorted(str(one["00080016"]["Value"][0]) for one in found)
    assert kinds.count(SR) == 1
    assert kinds.count(SEG) == 1
    assert len(kinds) == len(files) + 2
    retrieved = client.retrieve_study(study_uid)
    assert sorted(str(one.SOPInstanceUID) for one in retrieved) == sorted(
        str(one["00080018"]["Value"][0]) for one in found
    )


def test_a_head_that_calls_itself_a_chest_is_said_to_be_not_analysed(site: Site, tmp_path: Path) -> None:
    study_uid, files = head_ct(tmp_path, seed=3)
    push(files, site.node.dimse_port)
    (message,) = site.wait_for_report(study_uid)
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 0}
    assert "no lungs in the volume" in message["text"]
    assert " mL" not in message["text"]
    (sr,) = map(_read, site.pacs.instances_of(study_uid, "SR"))
    assert "no lungs in the volume" in sr.to_json()


def test_of_several_reconstructions_one_is_read(site: Site, tmp_path: Path) -> None:
    study_uid = generate_uid()
    frame = generate_uid()
    thick = make_thorax(9, shape=(26, 96, 96), spacing=(10.0, 3.6, 3.6))
    thin = make_thorax(9, shape=(40, 96, 96), spacing=(6.0, 3.6, 3.6))
    shared: dict[str, Any] = {"study_uid": study_uid, "frame_of_reference_uid": frame}
    wanted = generate_uid()
    files = ct_series(
        tmp_path / "a", thick.hu, spacing=(10.0, 3.6, 3.6), SeriesNumber="2", SeriesDescription="10 soft", **shared
    )
    files += ct_series(
        tmp_path / "b",
        thin.hu,
        spacing=(6.0, 3.6, 3.6),
        SeriesNumber="3",
        SeriesDescription="6 soft",
        series_uid=wanted,
        **shared,
    )
    files += ct_series(
        tmp_path / "c",
        thin.hu,
        spacing=(6.0, 3.6, 3.6),
        SeriesNumber="4",
        SeriesDescription="MIP",
        ImageType=["DERIVED", "SECONDARY", "MIP"],
        **shared,
    )
    files += ct_series(
        tmp_path / "d",
        thin.hu[:2],
        spacing=(6.0, 3.6, 3.6),
        SeriesNumber="1",
        SeriesDescription="Scout",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        **shared,
    )
    push(files, site.node.dimse_port)
    site.wait_for_report(study_uid)
    (seg,) = map(_read, site.pacs.instances_of(study_uid, "SEG"))
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == wanted
    told = str(site.node.story(study_uid))
    assert "best of 3: series 3 (6 soft)" in told
    assert "thinnest: slices 10 mm apart" in told


def test_a_radiograph_is_classified_by_the_demonstration_model_and_says_so(site: Site, tmp_path: Path) -> None:
    phantom = make_radiograph(5, ("pleural effusion",), shape=(512, 448))
    study_uid = generate_uid()
    file = radiograph(tmp_path, phantom.pixels, modality="DX", study_uid=study_uid)
    push([file], site.node.dimse_port)
    (message,) = site.wait_for_report(study_uid)
    assert "demonstration" in message["text"].lower()
    (sr,) = map(_read, site.pacs.instances_of(study_uid, "SR"))
    assert "trained on synthetic images" in sr.to_json()
    assert results_in(site.pacs, study_uid)["SEG"] == 0


def test_the_same_study_sent_twice_is_read_once(site: Site, tmp_path: Path) -> None:
    study_uid, files = chest_ct(tmp_path, seed=11)
    push(files, site.node.dimse_port)
    site.wait_for_report(study_uid)
    before = site.node.story(study_uid)
    push(files, site.node.dimse_port)
    after = site.node.story(study_uid)
    assert len(after["revisions"]) == len(before["revisions"]) == 1
    assert len(site.messages_about(study_uid)) == 1


def test_later_slices_open_a_revision_whose_documents_name_their_predecessors(site: Site, tmp_path: Path) -> None:
    study_uid, files = chest_ct(tmp_path, seed=12)
    push(files[:14], site.node.dimse_port)
    site.wait_for_report(study_uid)
    push(files[14:], site.node.dimse_port)
    first, second = site.wait_for_report(study_uid, 2)
    assert first["control_id"] != second["control_id"]
    reports = list(map(_read, site.pacs.instances_of(study_uid, "SR")))
    assert len(reports) == 2
    (earlier,) = (one for one in reports if "PredecessorDocumentsSequence" not in one)
    (later,) = (one for one in reports if "PredecessorDocumentsSequence" in one)
    named = {
        str(item.ReferencedSOPInstanceUID)
        for study in later.PredecessorDocumentsSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert str(earlier.SOPInstanceUID) in named


def test_a_worse_reconstruction_that_comes_later_causes_no_work_and_no_message(site: Site, tmp_path: Path) -> None:
    study_uid, frame = generate_uid(), generate_uid()
    phantom = make_thorax(14, shape=(40, 96, 96), spacing=(6.0, 3.6, 3.6))
    shared: dict[str, Any] = {"study_uid": study_uid, "frame_of_reference_uid": frame}
    push(ct_series(tmp_path / "a", phantom.hu, spacing=(6.0, 3.6, 3.6), **shared), site.node.dimse_port)
    site.wait_for_report(study_uid)
    push(ct_series(tmp_path / "b", phantom.hu[::2][:12], spacing=(9.0, 3.6, 3.6), **shared), site.node.dimse_port)

    def second_reported() -> bool:
        revisions = site.node.story(study_uid)["revisions"]
        return len(revisions) == 2 and revisions[-1]["state"] == "REPORTED"

    wait_until(second_reported, 60, "the second revision to be reported", interval=0.3)
    assert results_in(site.pacs, study_uid) == {"SR": 1, "SEG": 1}
    assert len(site.messages_about(study_uid)) == 1


def test_a_rerun_makes_new_documents_that_name_the_old_ones_and_a_further_message(site: Site, tmp_path: Path) -> None:
    study_uid, files = chest_ct(tmp_path, seed=15)
    push(files, site.node.dimse_port)
    site.wait_for_report(study_uid)
    site.node.run("rerun", study_uid)
    site.wait_for_report(study_uid, 2)
    assert results_in(site.pacs, study_uid) == {"SR": 2, "SEG": 2}
    reports = list(map(_read, site.pacs.instances_of(study_uid, "SR")))
    assert sum("PredecessorDocumentsSequence" in one for one in reports) == 1


def test_metrics_and_health_tell_of_work_and_not_of_patients(site: Site, tmp_path: Path) -> None:
    study_uid, files = chest_ct(tmp_path, seed=13, PatientID="SECRET-ID", PatientName="Secret^Name")
    push(files, site.node.dimse_port)
    site.wait_for_report(study_uid)
    metrics = httpx.get(f"{site.node.url}/metrics", timeout=10).text
    assert "overread_workitems" in metrics
    assert 'overread_model_observations{model="lung-ct"' in metrics
    assert httpx.get(f"{site.node.url}/health/live", timeout=10).status_code == 200
    for text in (metrics, site.node.log):
        assert "SECRET-ID" not in text
        assert "Secret" not in text
    assert study_uid in site.node.log


def _volumes_ml(seg: pydicom.Dataset) -> list[float]:
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel = float(np.prod([float(v) for v in measures.PixelSpacing])) * float(
        measures.get("SpacingBetweenSlices") or measures.SliceThickness
    )
    frames = np.atleast_3d(seg.pixel_array) if seg.NumberOfFrames > 1 else seg.pixel_array[None]
    numbers = [
        item.SegmentIdentificationSequence[0].ReferencedSegmentNumber for item in seg.PerFrameFunctionalGroupsSequence
    ]
    return [
        sum(float(frame.sum()) for frame, number in zip(frames, numbers, strict=True) if number == wanted)
        * voxel
        / 1000
        for wanted in (1, 2)
    ]
