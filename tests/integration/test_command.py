"""A program with a folder in and a folder out is a model: what it finds comes back on the images that were received."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless, generate_uid

from inference.card import Card, load_card
from inference.deidentify import Pseudonyms, write_copy
from inference.engine import ImageFile, Job, open_engine
from inference.errors import CardError, EngineFailure, InputRefused
from inference.findings import Findings
from inference.host import EngineHost
from inference.marking import Marking
from tests.dicom_factory import ct_series, radiograph
from tests.evidence_factory import content
from tests.faults.test_engine_faults import alive, wait_for
from tests.faults.test_programs import NAMESPACES
from tests.model_factory import classification_card, code, segmentation_card
from tests.peers import wait_until
from tests.system import Node, push

HU = np.full((6, 24, 20), -1000)
HU[2:5, 5:15, 4:9] = 500
HU[3:4, 6:9, 5:8] = 1500
EXPECTED = (HU > 200).astype(np.uint8) + (HU > 1200)

ALWAYS = {"network": not NAMESPACES}


def program(folder: Path, card: dict[str, Any], code: str, **options: Any) -> Card:
    """Write a card whose model is a Python program beside it, and load it."""
    place = folder / card["name"]
    place.mkdir(parents=True, exist_ok=True)
    (place / "run.py").write_text(code)
    content = card | {"engine": "command"}
    for key in ("tensors", "slab", "preprocess", "postprocess"):
        content.pop(key, None)
    content["files"] = {"run.py": {"sha256": hashlib.sha256(code.encode()).hexdigest()}}
    content["command"] = (
        ALWAYS | {"argv": ["{python}", "{card}/run.py", "{input}", "{output}"], "output": "json"} | options
    )
    path = place / "card.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_card(path)


def mask_card(**changes: Any) -> dict[str, Any]:
    return segmentation_card(not_analysed={}, **changes)


def finding_card(**changes: Any) -> dict[str, Any]:
    return classification_card(not_analysed={"no-lung": {"meaning": "no lung in the image", "code": None}}, **changes)


def files_of(paths: list[Path]) -> tuple[ImageFile, ...]:
    return tuple(ImageFile(path.stem, path) for path in paths)


def run(card: Card, *images: Path) -> Findings:
    return open_engine(card).run(Job(card.path, {card.inputs[0].role: files_of(list(images))}))


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A coronal series, out of order: its planes are not those of a canonical volume."""
    paths = ct_series(
        tmp_path_factory.mktemp("ct"),
        HU,
        orientation=(1, 0, 0, 0, 0, -1),
        spacing=(2.5, 0.8, 0.7),
        PatientName="Quixote",
    )
    return [paths[place] for place in (3, 0, 5, 1, 4, 2)]


def expected(findings: Findings, ct: list[Path]) -> np.ndarray:
    """The mask that has to come back, plane by plane in the order of the findings."""
    assert findings.segmentation is not None
    order = {ct[place].stem: plane for place, plane in enumerate((3, 0, 5, 1, 4, 2))}
    return np.stack([EXPECTED[order[key]] for key in findings.segmentation.images])


NIFTI = """
import sys, os, nibabel, numpy as np
image = nibabel.load(os.path.join(sys.argv[1], "ct.nii.gz"))
assert os.listdir(sys.argv[1]) == ["ct.nii.gz"] and os.environ["MERCURE_IN_DIR"] == sys.argv[1]
mask = (np.asarray(image.dataobj) > 200).astype(np.uint8) + (np.asarray(image.dataobj) > 1200)
turned = nibabel.Nifti1Image(mask.astype(np.float32), image.affine).as_reoriented([[1, -1], [2, 1], [0, -1]])
nibabel.save(turned, os.path.join(os.environ["HOLOSCAN_OUTPUT_PATH"], "any.nii.gz"))
"""


def test_a_mask_in_nifti_of_another_orientation_comes_back_on_the_received_pixels(
    tmp_path: Path, ct: list[Path]
) -> None:
    findings = run(program(tmp_path, mask_card(), NIFTI, input="nifti", output="nifti"), *ct)
    assert findings.not_analysed is None
    np.testing.assert_array_equal(findings.segmentation.labels, expected(findings, ct))
    voxel = 2.5 * 0.8 * 0.7 / 1000
    volumes = [round(one.volume_ml / voxel) for one in findings.segmentation.segments]
    assert volumes == [int((EXPECTED == 1).sum()), int((EXPECTED == 2).sum())]
    assert findings.provider.startswith("command:python")


SEG = """
import sys, os, numpy as np, highdicom as hd
from pathlib import Path
from pydicom import dcmread
from pydicom.sr.codedict import codes
images = [dcmread(one) for one in sorted(Path(sys.argv[1]).glob("*.dcm"))]
assert all(str(one.PatientName) == "ANONYMOUS^" for one in images)
hu = np.stack([one.pixel_array.astype(int) * one.RescaleSlope + one.RescaleIntercept for one in images])
mask = np.stack([hu > 200, hu > 1200], axis=-1)
def segment(number, name, value):
    return hd.seg.SegmentDescription(number, name, codes.SCT.Organ, hd.sr.CodedConcept(value, "SCT", name), "AUTOMATIC",
        hd.AlgorithmIdentificationSequence("test", codes.DCM.ArtificialIntelligence, "1"))
seg = hd.seg.Segmentation(images, mask, "BINARY",
    [segment(1, "a", "3341006"), segment(2, "b", "44029006")], hd.UID(), 1, hd.UID(), 1, "Maker", "M", "1", "1")
seg.save_as(Path(sys.argv[2]) / "result.dcm")
"""


def test_a_dicom_seg_whose_segments_overlap_comes_back_through_the_supervised_process(
    tmp_path: Path, ct: list[Path]
) -> None:
    card = program(tmp_path, mask_card(), SEG, output="seg", overlap="keep")
    with EngineHost(card, folder=tmp_path) as host:
        findings = host.run(Job(card.path, {"ct": files_of(ct)}))
        assert list(tmp_path.rglob("command-*")) == []
    assert findings.segmentation is not None
    marking = Marking((1, 2), together=findings.segmentation.together)
    inner, outer = expected(findings, ct) == 2, expected(findings, ct) > 0
    for label, where in ((1, outer), (2, inner)):
        np.testing.assert_array_equal(marking.of(findings.segmentation.labels, label), where)
        volume = findings.segmentation.segments[label - 1].volume_ml
        assert volume == pytest.approx(where.sum() * 2.5 * 0.8 * 0.7 / 1000)


JSON = """
import json, sys
from pathlib import Path
from pydicom import dcmread
said = []
for path in sorted(Path(sys.argv[1]).glob("*")):
    image = dcmread(path)
    level = round(float(image.pixel_array.mean() / 4095), 3)
    said.append({"name": "nodule", "probability": level, "image": image.SOPInstanceUID})
Path(sys.argv[2], "result.json").write_text(json.dumps({"classifications": said}))
"""


def test_probabilities_in_json_come_back_for_the_very_image(tmp_path: Path) -> None:
    images = [radiograph(tmp_path / "i", np.full((8, 9), level)) for level in (4095, 0, 819)]
    findings = run(program(tmp_path, finding_card(), JSON), *images)
    assert [(one.image, one.probability) for one in findings.classifications] == [
        (image.stem, level) for image, level in zip(images, (1.0, 0.0, 0.2), strict=True)
    ]
    assert [one.present for one in findings.classifications] == [True, False, False]


def test_a_program_gets_the_frontal_view_of_a_series_and_the_lateral_beside_it_is_named(tmp_path: Path) -> None:
    frontal, lateral = (radiograph(tmp_path / "i", np.full((8, 9), 4095), view=view) for view in ("PA", "LL"))
    card = program(tmp_path, finding_card(), JSON)
    findings = run(card, lateral, frontal)
    assert findings.not_analysed is None
    assert [(one.image, one.present) for one in findings.classifications] == [(frontal.stem, True)]
    assert findings.images == (frontal.stem,)
    assert findings.warnings == ("Not analysed, 1 of 2 images: the view (LL) is none that this model reads (view).",)
    assert findings.statistics["observations"][0]["view"] == "PA"
    alone = run(card, lateral).not_analysed
    assert alone is not None
    assert alone.reason == "view"


def test_an_image_of_which_nothing_was_said_was_not_read_and_an_output_that_lacks_is_no_negative(
    tmp_path: Path,
) -> None:
    """The answer to the first image alone; then without one of two outputs."""
    images = [radiograph(tmp_path / "i", np.full((8, 9), 7)) for _ in range(3)]
    first = JSON.replace('glob("*"))', 'glob("*"))[:1]')
    findings = run(program(tmp_path, finding_card(), first), *images)
    assert findings.images == (images[0].stem,)
    assert findings.warnings == ("Not analysed, 2 of 3 images: the program said nothing of them.",)
    more = [
        *finding_card()["outputs"],
        {"index": 1, "name": "gas", "code": code("GAS", "Gas", "99T"), "threshold": 0.5},
    ]
    with pytest.raises(EngineFailure, match="answered gas not at all"):
        run(program(tmp_path / "two", finding_card(outputs=more), first), *images)


SR = """
import sys
from pathlib import Path
from highdicom import UID
from highdicom.sr import *
from pydicom import dcmread
from pydicom.sr.codedict import codes
image = dcmread(next(Path(sys.argv[1]).glob("*")))
code = CodedConcept("27925004", "SCT", "Nodule")
group = MeasurementsAndQualitativeEvaluations(
    tracking_identifier=TrackingIdentifier(uid=UID(), identifier="x"),
    measurements=[
        Measurement(CodedConcept("122157", "DCM", "Probability"), 0.75, CodedConcept("1", "UCUM", "no units"))],
    qualitative_evaluations=[QualitativeEvaluation(code, CodedConcept("52101004", "SCT", "Present"))],
    source_images=[SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)])
report = MeasurementReport(
    ObserverContext(codes.DCM.Device, DeviceObserverIdentifyingAttributes(uid=UID())),
    codes.LN.ChestXRayReport if hasattr(codes.LN, "ChestXRayReport") else CodedConcept("43468-8", "LN", "XR"),
    imaging_measurements=[group])
for keyword in ("PatientBirthDate", "PatientSex", "StudyTime", "StudyDate"):
    setattr(image, keyword, image.get(keyword) or "")
ComprehensiveSR([image], report, UID(), 1, UID(), 1, "Maker").save_as(Path(sys.argv[2]) / "sr.dcm")
"""


def test_an_sr_comes_back_as_a_finding_of_the_received_image(tmp_path: Path) -> None:
    image = radiograph(tmp_path / "i", np.arange(72).reshape(8, 9))
    findings = run(program(tmp_path, finding_card(), SR, output="sr"), image)
    (one,) = findings.classifications
    assert (one.name, one.probability, one.present, one.image) == ("nodule", 0.75, True, image.stem)


def say(text: str) -> str:
    return f"import sys, os\nopen(os.path.join(sys.argv[2], 'result.json'), 'w').write({text!r})"


def nodule(probability: str, more: str = "", kind: str = "classifications") -> str:
    return say(f'{{"{kind}": [{{"name": "nodule", "probability": {probability}{more}}}]}}')


LEAVES = {
    "nothing": ("", "left no result"),
    "a status": (
        "import sys; print('weights are missing'); sys.exit(2)",
        "status 2; it said last: weights are missing",
    ),
    "a link": ("import sys, os; os.symlink('/etc/passwd', sys.argv[2] + '/result.json')", "left a link"),
    "a pipe": ("import sys, os; os.mkfifo(sys.argv[2] + '/result.json')", "left a link or a device"),
    "two answers": (say("{}") + "\nopen(os.path.join(sys.argv[2], 'other.json'), 'w')", "left 2 files"),
    "no JSON": (say("<html>"), "not what is expected"),
    "another key": (say('{"findings": []}'), "findings: Extra inputs"),
    "no finding": (say("{}"), "answered no classification"),
    "another name": (
        say('{"classifications": [{"name": "x", "probability": 0.5}]}'),
        "answered 'x', which its card does not name; it has",
    ),
    "no probability": (nodule("1.5"), "less than or equal to 1"),
    "not a number": (nodule("NaN"), "probability"),
    "another image": (
        nodule("0.5", ', "image": "1.2.3"'),
        "not given",
    ),
    "a box": (
        nodule("0.5", ', "box": [0, 0, 1, 1]', "detections"),
        "answered a detection",
    ),
    "two answers about one image": (
        say('{"classifications": [{"name": "nodule", "probability": 0.9}, {"name": "nodule", "probability": 0.1}]}'),
        "answered nodule 2 times",
    ),
    "a key twice": (nodule("0.9", ', "probability": 0.1'), "a key stands twice"),
    "a number in text": (nodule('"0.9"'), "probability: .* number"),
    "a truth": (nodule("true"), "probability: .* number"),
    "findings and none": (
        say('{"classifications": [{"name": "nodule", "probability": 0.9}], "not_analysed": {"reason": "no-lung"}}'),
        "and what it found beside that",
    ),
    "a reason": (say('{"not_analysed": {"reason": "Mr Quixote moved"}}'), "does not stand under not_analysed"),
}


@pytest.mark.parametrize("lie", LEAVES)
def test_a_program_that_fails_or_lies_makes_no_finding(tmp_path: Path, lie: str) -> None:
    text, told = LEAVES[lie]
    card = program(tmp_path, finding_card(), text)
    with pytest.raises(EngineFailure, match=told) as caught:
        run(card, radiograph(tmp_path / "i", np.full((8, 9), 7)))
    assert "Quixote" not in caught.value.text


def test_a_program_that_is_replaced_under_a_running_node_does_not_run(tmp_path: Path) -> None:
    card = program(tmp_path, finding_card(), nodule("0.1"))
    image = radiograph(tmp_path / "i", np.full((8, 9), 7))
    engine, job = open_engine(card), Job(card.path, {"radiograph": files_of([image])})
    assert engine.run(job).classifications[0].probability == 0.1
    file = card.directory / "run.py"
    was, times = file.read_text(), file.stat()
    # As long, and as old by what its owner may set.
    file.write_text(was.replace("0.1", "0.9"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(EngineFailure, match=r"changed since the model was loaded: .*files\.run\.py"):
        engine.run(job)
    file.write_text(was)
    assert engine.run(job).classifications[0].probability == 0.1


def test_a_program_may_say_that_it_did_not_analyse_in_the_words_of_its_card(tmp_path: Path) -> None:
    card = program(tmp_path, finding_card(), say('{"not_analysed": {"reason": "no-lung"}}'))
    findings = run(card, radiograph(tmp_path / "i", np.full((8, 9), 7)))
    assert findings.not_analysed is not None
    assert findings.not_analysed.text == "no lung in the image"
    assert findings.classifications == ()


def test_a_role_that_may_lack_is_not_missed_and_drift_is_told_by_the_first_image_that_was_read(tmp_path: Path) -> None:
    roles = [{"role": "prior", "kind": "volume", "optional": True}, {"role": "ct", "kind": "volume"}]
    card = program(tmp_path, finding_card(inputs=roles), say('{"not_analysed": {"reason": "no-lung"}}'))
    frame = "2.25.7"
    scout = ct_series(tmp_path / "scout", HU[:1, :12], orientation=(1, 0, 0, 0, 0, -1), frame_of_reference_uid=frame)
    change(scout[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    images = ct_series(tmp_path / "ct", HU, spacing=(2.5, 0.8, 0.7), frame_of_reference_uid=frame)
    job = Job(card.path, {"ct": files_of([*scout, *images])})
    findings = open_engine(card).run(job)
    assert findings.not_analysed is not None
    assert findings.not_analysed.reason == "no-lung"
    (observed,) = findings.statistics["observations"]
    assert (observed["rows"], observed["columns"], observed["pixel_spacing_mm"]) == (24, 20, 0.8)


def change(path: Path, **values: Any) -> None:
    dataset = dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def test_boxes_and_values_are_checked_against_image_and_card(tmp_path: Path) -> None:
    image = radiograph(tmp_path / "i", np.full((8, 9), 7))
    found = say(
        '{"detections": [{"name": "nodule", "probability": 0.9, "box": [1, 2, 8, 9]},'
        ' {"name": "nodule", "probability": 0.4, "box": [0, 0, 1, 1]}]}'
    )
    (one,) = run(program(tmp_path, finding_card(task="detection"), found), image).detections
    assert (one.box, one.image) == ((1, 2, 8, 9), image.stem)
    assert run(program(tmp_path, finding_card(task="detection"), say('{"detections": []}')), image).detections == ()
    with pytest.raises(EngineFailure, match="answered no detection"):
        run(program(tmp_path, finding_card(task="detection"), say("{}")), image)
    beyond = say('{"detections": [{"name": "nodule", "probability": 0.9, "box": [1, 2, 8, 10]}]}')
    with pytest.raises(EngineFailure, match="does not lie in its image of 8 x 9"):
        run(program(tmp_path, finding_card(task="detection"), beyond), image)
    ratio = {
        "index": 0,
        "name": "ratio",
        "code": code("RATIO", "Ratio", "99TEST"),
        "unit": code("1", "no units", "UCUM"),
    }
    measured = say('{"measurements": [{"name": "ratio", "value": 0.52}]}')
    (value,) = run(program(tmp_path, finding_card(task="measurement", outputs=[ratio]), measured), image).measurements
    assert (value.value, value.unit.value, value.image) == (0.52, "1", image.stem)


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({}, {"output": "seg"}, "no answer of a classification"),
        ({}, {"input": "nifti"}, "roles of kind volume"),
        ({}, {"argv": ["no-such-program"]}, "no program here"),
        ({}, {"argv": ["sh", "-c", "{nowhere}"]}, "stands for nothing"),
        ({}, {"pass_environment": ["OVERREAD__HTTP__TOKEN"]}, "OVERREAD"),
        ({}, {"keep": ["PatientName"]}, "keep"),
        ({}, {"result": "../x.json"}, "plain name"),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(CardError, match=told):
        open_engine(program(tmp_path, finding_card(**changes), "", **options))


def test_no_shell_reads_the_arguments(tmp_path: Path) -> None:
    text = "import sys, json, os\nassert sys.argv[3] == '$(id); `id` > x', sys.argv\n" + say(
        '{"classifications": [{"name": "nodule", "probability": 0.5}]}'
    )
    argv = [sys.executable, "{card}/run.py", "{input}", "{output}", "$(id); `id` > x"]
    card = program(tmp_path, finding_card(), text, argv=argv)
    assert run(card, radiograph(tmp_path / "i", np.full((8, 9), 7))).classifications


PRIVATE = {
    "PatientName": "Quixote^Alonso",
    "PatientID": "MRN7712345",
    "PatientBirthDate": "19470509",
    "PatientAge": "078Y",
    "AccessionNumber": "ACC88123",
    "InstitutionName": "La Mancha General",
    "StudyDate": "20260317",
    "StudyDescription": "for Mr Quixote",
    "ReferringPhysicianName": "Panza^Sancho",
    "ProtocolName": "Dulcinea",
    "ImageComments": "Rocinante",
    "DeviceSerialNumber": "SN424242",
}


def dirty(folder: Path) -> Path:
    path = radiograph(folder, np.arange(72).reshape(8, 9), **PRIVATE)
    dataset = dcmread(path)
    dataset.private_block(0x0011, "Quixote Systems", create=True).add_new(1, "LO", "Rocinante")
    item = Dataset()
    item.PatientID, item.ReferencedSOPInstanceUID = "MRN7712345", "1.2.840.99999.7"
    dataset.OtherPatientIDsSequence = [item]
    dataset.ReferencedImageSequence = [item]
    dataset.add_new((0x6000, 0x4000), "LT", "Rocinante")
    dataset.FrameOfReferenceUID = "1.2.840.99999.8"
    dataset.save_as(path)
    return path


def test_copies_hold_pixels_and_geometry_and_nothing_of_the_patient(tmp_path: Path) -> None:
    path = dirty(tmp_path / "Quixote")
    source = dcmread(path)
    ours = Pseudonyms()
    copy = write_copy(ImageFile("k", path), tmp_path / "copy.dcm", ours)
    written = (tmp_path / "copy.dcm").read_bytes()
    secrets = [part for value in PRIVATE.values() for part in value.replace("^", " ").split() if len(part) > 3]
    for secret in [*secrets, "Rocinante", "1.2.840.99999", source.SOPInstanceUID, source.StudyInstanceUID]:
        assert secret.encode() not in written, secret
    read = dcmread(tmp_path / "copy.dcm")
    np.testing.assert_array_equal(read.pixel_array, source.pixel_array)
    assert read.ImagerPixelSpacing == source.ImagerPixelSpacing
    assert ours.true(copy.SOPInstanceUID) == source.SOPInstanceUID
    kept = write_copy(ImageFile("k", path), tmp_path / "kept.dcm", ours, keep=["PatientAge"])
    assert kept.PatientAge == "078Y"
    assert kept.StudyInstanceUID == copy.StudyInstanceUID
    assert Pseudonyms().patient != ours.patient


def test_what_lies_behind_the_pixels_or_looks_like_the_standards_own_stays_behind(tmp_path: Path) -> None:
    values = np.arange(72, dtype="<u2").reshape(8, 9)
    path = radiograph(tmp_path / "i", values)
    source = dcmread(path)
    source.PixelData += b"QUIXOTE^ALONSO"
    source.StudyInstanceUID = "1.2.840.10008.19700101.4711"
    source.SeriesInstanceUID = "1.2.840.10008.1.1"
    source.BodyPartExamined, source.ScanOptions = "QUIXOTE ALONSO", ["HELIX", "AXIAL"]
    source.add_new("FilterType", "CS", "Quixote")
    dcmwrite(path, source)
    ours = Pseudonyms()
    copy = write_copy(ImageFile("k", path), tmp_path / "copy.dcm", ours)
    written = (tmp_path / "copy.dcm").read_bytes()
    for secret in (b"QUIXOTE", b"Quixote", b"19700101", b"10008.1.1\0"):
        assert secret not in written, secret
    assert ours.true(copy.StudyInstanceUID) == source.StudyInstanceUID
    np.testing.assert_array_equal(dcmread(tmp_path / "copy.dcm").pixel_array, values)
    assert list(copy.ScanOptions) == ["HELIX", "AXIAL"]
    assert copy.SOPClassUID == source.SOPClassUID
    source.BodyPartExamined = "CHEST"
    dcmwrite(path, source)
    assert write_copy(ImageFile("k", path), tmp_path / "copy.dcm", ours).BodyPartExamined == "CHEST"


def test_a_kind_of_image_that_nobody_here_knows_stays_one_and_an_image_without_pixels_is_told(tmp_path: Path) -> None:
    path = radiograph(tmp_path / "i", np.arange(72).reshape(8, 9))
    source = dcmread(path)
    for kind in ("1.2.840.10008.5.1.4.1.1.99.7", "1.3.12.2.1107.5.9.1"):
        source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID = kind
        dcmwrite(path, source)
        write_copy(ImageFile("k", path), tmp_path / "copy.dcm", Pseudonyms())
        copy = dcmread(tmp_path / "copy.dcm")
        assert copy.SOPClassUID == copy.file_meta.MediaStorageSOPClassUID == kind
    source.PixelData = None
    dcmwrite(path, source)
    with pytest.raises(InputRefused, match="no Pixel Data") as caught:
        write_copy(ImageFile("k", path), tmp_path / "copy.dcm", Pseudonyms())
    assert caught.value.reason == "no-pixels"


def test_real_files_lose_their_identifiers_and_keep_their_pixels(tmp_path: Path, shared_data: Path) -> None:
    names = [*sorted((shared_data / "transfer_syntax").rglob("*.dcm"))[:12]]
    assert names
    done = 0
    for name in names:
        source = dcmread(name, force=True)
        try:
            pixels = source.pixel_array
            write_copy(ImageFile("k", name), tmp_path / "copy.dcm", Pseudonyms())
        except (InputRefused, NotImplementedError, RuntimeError, AttributeError, ValueError):
            continue
        done += 1
        written = (tmp_path / "copy.dcm").read_bytes()
        for keyword in ("PatientID", "PatientName", "SOPInstanceUID", "StudyInstanceUID", "AccessionNumber"):
            value = str(source.get(keyword, ""))
            assert len(value) < 5 or value.encode() not in written, (name, keyword)
        np.testing.assert_array_equal(dcmread(tmp_path / "copy.dcm").pixel_array, pixels)
    assert done >= 3


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
@pytest.mark.parametrize("signed", [False, True])
def test_what_old_images_draw_into_the_bits_above_the_pixels_stays_behind(
    tmp_path: Path, syntax: str, signed: bool
) -> None:
    values = np.arange(72, dtype="<u2").reshape(8, 9) * 50
    drawn = values | 0x9000
    path = radiograph(tmp_path / "i", drawn, bits_stored=16)
    source = dcmread(path)
    if syntax == RLELossless:
        source.compress(RLELossless, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        source.decode()
        source.PixelData = drawn.astype(">u2").tobytes()
        source.file_meta.TransferSyntaxUID = syntax
    source.BitsStored, source.HighBit, source.PixelRepresentation = 12, 11, int(signed)
    dcmwrite(path, source, enforce_file_format=True)
    write_copy(ImageFile("k", path), tmp_path / "copy.dcm", Pseudonyms())
    copy = dcmread(tmp_path / "copy.dcm")
    written = np.frombuffer(copy.PixelData, ">u2" if syntax == ExplicitVRBigEndian else "<u2").reshape(8, 9)
    np.testing.assert_array_equal(written, np.where(values & 0x800, 0xF000, 0) | values if signed else values)
    np.testing.assert_array_equal(copy.pixel_array, dcmread(path).pixel_array)


def test_an_image_that_says_that_text_is_burned_in_is_not_handed_out(tmp_path: Path) -> None:
    card = program(tmp_path, finding_card(), say('{"classifications": [{"name": "nodule", "probability": 0.5}]}'))
    for number, words in enumerate(("YES", "Y", "true", ["NO", "YES"], "no ", "")):
        image = radiograph(tmp_path / str(number), np.full((8, 9), 7))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            change(image, BurnedInAnnotation=words)
        refused = run(card, image).not_analysed
        assert (refused and refused.reason) == (None if words in ("no ", "") else "burned-in-annotation"), words
    series = ct_series(tmp_path / "ct", HU, BurnedInAnnotation="YES")
    for name, options, reason in (("a", {}, "burned-in-annotation"), ("b", {"burned_in": True}, None)):
        volumes = program(tmp_path / name, mask_card(), NIFTI, input="nifti", output="nifti", **options)
        refused = run(volumes, *series).not_analysed
        assert (refused and refused.reason) == reason


def test_text_in_a_lateral_view_or_in_a_localizer_stays_behind_alone(tmp_path: Path) -> None:
    frontal, lateral = (radiograph(tmp_path / "i", np.full((8, 9), 4095), view=view) for view in ("PA", "LL"))
    change(lateral, BurnedInAnnotation="YES")
    findings = run(program(tmp_path, finding_card(), JSON), lateral, frontal)
    assert (findings.not_analysed, findings.images) == (None, (frontal.stem,))
    frame = generate_uid()
    slices = ct_series(tmp_path / "ct", HU, frame_of_reference_uid=frame)
    scouts = ct_series(tmp_path / "s", HU[:2], orientation=(1, 0, 0, 0, 0, -1), frame_of_reference_uid=frame)
    for scout, text in zip(scouts, ("YES", "NO"), strict=True):
        change(scout, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], BurnedInAnnotation=text)
    counting = (
        "import json, os, sys\n"
        "assert len(os.listdir(sys.argv[1])) == 7\n"
        "said = {'not_analysed': {'reason': 'no-lung'}}\n"
        "json.dump(said, open(os.path.join(sys.argv[2], 'a.json'), 'w'))\n"
    )
    inputs = [{"role": "ct", "kind": "volume", "match": {"Modality": "CT"}}]
    counted = run(program(tmp_path / "v", finding_card(inputs=inputs), counting), *scouts, *slices)
    assert counted.not_analysed is not None
    assert counted.not_analysed.reason == "no-lung"
    (told,) = counted.warnings
    assert told.startswith("Not analysed, 1 of 8 images: ")
    assert told.endswith("(burned-in-annotation).")


HANGS = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        held = bytearray(80 << 20); open(sys.argv[3], "w").write("here"); time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["memory", "time", "closed"])
def test_a_program_under_supervision_ends_with_all_that_it_started(tmp_path: Path, how: str) -> None:
    flag = tmp_path / f"here-{os.getpid()}"
    limits = {"memory": {"seconds": 60, "memory_mb": 64}, "time": {"seconds": 3, "memory_mb": 1024}}.get(
        how, {"seconds": 60, "memory_mb": 1024}
    )
    card = program(
        tmp_path / "m",
        finding_card(resources=limits),
        HANGS,
        argv=[sys.executable, "{card}/run.py", "{input}", "{output}", str(flag)],
        writable=[str(tmp_path)],
    )
    job = Job(card.path, {"radiograph": files_of([radiograph(tmp_path / "i", np.full((8, 9), 7))])})
    host = EngineHost(card, folder=tmp_path)

    def beat() -> None:
        if how == "closed" and flag.exists():
            raise InterruptedError

    with pytest.raises((EngineFailure, InterruptedError)) as caught:
        host.run(job, heartbeat=beat)
    host.close()
    if how != "closed":
        assert isinstance(caught.value, EngineFailure)
        assert caught.value.reason == f"overran-{how}"
    wait_for(lambda: not any(str(flag) in text for text in running()), 5, "all of the program has ended")
    assert list(tmp_path.rglob("command-*")) == []


def running() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and alive(int(entry.name)):
            try:
                found.append((entry / "cmdline").read_text(errors="replace"))
            except OSError:
                continue
    return found


def test_uids_stand_for_the_same_thing_all_through_a_run() -> None:
    ours = Pseudonyms()
    uid = generate_uid()
    assert ours.of(uid) == ours.of(uid) != uid
    assert ours.true(ours.of(uid)) == uid
    assert ours.of("1.2.840.10008.5.1.4.1.1.2") == "1.2.840.10008.5.1.4.1.1.2"
    assert ours.true("1.2.3") is None


FINDS = """
import json, sys
from pathlib import Path
from pydicom import dcmread
(path,) = Path(sys.argv[1]).glob("*")
rows, columns = dcmread(path).pixel_array.nonzero()
box = [int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1]
Path(sys.argv[2], "result.json").write_text(
    json.dumps({"detections": [{"name": "nodule", "probability": 0.9, "box": box}]}))
"""


def test_a_study_that_is_received_is_read_by_a_program_and_its_box_leaves_in_an_sr(
    tmp_path: Path, start_node: Callable[..., Node]
) -> None:
    program(tmp_path / "models", finding_card(task="detection"), FINDS)
    out = tmp_path / "out"
    route = {"name": "films", "match": {"Modality": "CR"}, "models": ["levels"], "deliver": ["disk"]}
    node = start_node(
        options={
            "models": str(tmp_path / "models"),
            "routes": [route],
            "destinations": {"disk": {"kind": "folder", "path": str(out)}},
        }
    )
    pixels = np.zeros((60, 50))
    pixels[20:31, 10:16] = 900
    image = radiograph(tmp_path / "i", pixels, PatientName="Quixote^Alonso")
    push([image], node.dimse_port)
    (path,) = wait_until(lambda: [one for one in out.rglob("*") if one.is_file()] if out.exists() else [], 60, "an SR")
    report = dcmread(path)
    (region,) = content(report, "Image Region")
    assert list(region.GraphicData) == [10, 20, 16, 20, 16, 31, 10, 31, 10, 20]
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == image.stem
    assert report.PatientName == "Quixote^Alonso"
