"""MONAI bundles: brought in by the command, run in an engine's process, their masks on the source images' points."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from inference.bring.bundle import describe_bundle
from inference.bring.codes import open_names, suggest
from inference.card import Card, load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import CardError, EngineFailure
from inference.extras import lacking
from inference.findings import Findings
from inference.grid import Grid
from inference.host import EngineHost
from inference.marking import Marking
from node.cli.bringing import refusal
from node.cli.models import at_work
from node.errors import ModelRefused
from node.workflow.models import Models, installed, store_of
from storage.errors import AlreadyThere
from tests.dicom_factory import ct_series
from tests.model_factory import segmentation_card, thresholding, write_model

pytest.importorskip("monai", reason="MONAI is not installed (pip install -e '.[torch]')")

from tests.bundle_factory import build_bundle, inference_config, metadata

#: A stack of coronal planes, turned by ten degrees about the feet-head axis and given from the front to the back.
TURN = np.radians(10)
ROW = (float(np.cos(TURN)), float(np.sin(TURN)), 0.0)
COLUMN = (0.0, 0.0, -1.0)
BALL = np.array([12.0, -7.0, 30.0])
RADIUS = 11.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bundle(tmp_path_factory.mktemp("bundles") / "ball")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node's folder, whose database is made once."""
    return tmp_path_factory.mktemp("home")


def _config(folder: Path) -> Path:
    values = {
        "data_dir": str(folder / "var"),
        "dimse": {"port": 11112},
        "models": str(folder / "models"),
        "routes": [],
        "destinations": {},
    }
    path = folder / "node.yaml"
    (folder / "models").mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def _add(folder: Path, source: Path, *options: str) -> Any:
    return _overread(folder, "add", "bundle", str(source), *options)


def test_what_is_no_bundle_and_what_cannot_run_here_are_told_by_what_was_typed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "README.md").write_text("x")
    text = str(_add(tmp_path, wrong).exception)
    assert text.startswith(f"{wrong}: no configs/metadata.json")
    card = load_card(write_model(tmp_path / "gone", segmentation_card(), thresholding()))
    absent = lacking(ModuleNotFoundError(name="torch.nn"))
    told = refusal(card, wrong, f"{card.path}: engine: monai-bundle {absent}")
    assert told.startswith(
        f"{wrong}: blobs 1.0.0 cannot be loaded, and was not added: engine: monai-bundle needs torch"
    )
    assert "pip install -e '.[torch]' (--no-check" in told
    assert "gone" not in told


def _overread(folder: Path, *arguments: str) -> Any:
    from node.cli import app

    return CliRunner().invoke(app, ["models", *arguments, "--config", str(_config(folder))])


def _series(folder: Path, order: int = 1, lean: float = 0.0) -> tuple[tuple[ImageFile, ...], np.ndarray, np.ndarray]:
    """Images of a bright ball in an odd orientation, the ball itself, and each voxel's place (LPS, mm).

    Each plane lies ``lean`` mm further along its columns than the one before, as of a tilted gantry.
    """
    rng = np.random.default_rng(2)
    slices, rows, columns = 26, 40, 44
    spacing = (2.5, 1.8, 1.6)
    normal = np.cross(ROW, COLUMN)
    step = normal * spacing[0] + np.array(COLUMN) * lean
    origin = BALL - np.array(ROW) * 30 - np.array(COLUMN) * (41 + 11 * lean) - normal * 28
    places = (
        origin
        + np.arange(slices)[:, None, None, None] * step
        + np.arange(rows)[None, :, None, None] * np.array(COLUMN) * spacing[1]
        + np.arange(columns)[None, None, :, None] * np.array(ROW) * spacing[2]
    )
    ball = ((places - BALL) ** 2).sum(-1) < RADIUS**2
    hu = np.where(ball, 600, -600) + rng.normal(0, 60, ball.shape)
    paths = ct_series(folder, hu.round(), spacing=spacing, orientation=(*ROW, *COLUMN), origin=tuple(origin), step=step)
    images = tuple(ImageFile(path.stem, path) for path in paths)[::order]
    return images, ball[::order], places[::order]


def _run(card: Card, images: tuple[ImageFile, ...]) -> Findings:
    with EngineHost(card) as host:
        return host.run(Job(card.path, {"ct": images}))


def test_a_bundle_is_added_by_one_command_and_marks_the_right_points_of_the_patient(
    home: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = _add(home, bundle, "--no-check", "--code", "ball=52988006,SCT,Lesion")
    assert added.exit_code == 0, added.output
    card = load_card(home / "var" / "models" / "bright-ball" / "0.2.1")
    assert (card.version, card.engine, open_names(card)) == ("0.2.1", "monai-bundle", ())
    assert card.inputs[0].prefer == ("axial", "original", "thinnest", "most_slices")
    assert "next  limits and prefer of its inputs" in added.output
    assert card.outputs[0].code.meaning == "Lesion"
    assert card.outputs[0].category is not None
    assert card.outputs[0].category.meaning == "Morphologically Abnormal Structure"
    assert card.outputs[0].limits.volume_ml == (0, 20000)
    assert card.intended_use == "This is an example, not to be used for diagnostic purposes"
    assert "Apache License" in card.licence
    assert set(card.files) == {
        "bundle/LICENSE",
        "bundle/configs/inference.json",
        "bundle/configs/metadata.json",
        "bundle/docs/README.md",
        "bundle/models/model.pt",
        "bundle/scripts/__init__.py",
        "bundle/scripts/probe.py",
    }
    # From the last plane to the first: nothing may follow the order of the files.
    images, ball, places = _series(tmp_path / "ct", order=-1)
    # The bundle's own module, which looks whether it is alone in its process, would have ended the run.
    monkeypatch.setenv("OVERREAD__HTTP__PORT", "8080")
    findings = _run(card, images)
    assert findings.not_analysed is None
    assert findings.segmentation is not None
    mask = findings.segmentation.labels == 1
    assert findings.segmentation.images == tuple(image.key for image in images)
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.85
    assert np.linalg.norm(places[mask].mean(axis=0) - BALL) < 1.0
    assert findings.segmentation.segments[0].volume_ml == pytest.approx(mask.sum() * 2.5 * 1.8 * 1.6 / 1000)
    assert findings.provider.startswith("torch:")
    assert findings.statistics
    # Nothing was written beside the bundle, and no file of it was changed.
    assert load_card(card.path).digest == card.digest
    assert {str(p.relative_to(card.directory)) for p in card.directory.rglob("*") if p.is_file()} == {
        *card.files,
        "card.yaml",
    }


@pytest.mark.parametrize("weights", ["lightning", "ts"])
def test_weights_may_be_a_lightning_checkpoint_or_torchscript(tmp_path: Path, bundle: Path, weights: str) -> None:
    import nibabel

    from inference.engines.bundle_workflow import Bundle

    other = build_bundle(tmp_path / "other", weights=weights)
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.normal(0, 400, (26, 25, 24)).astype("i2"), np.diag([-2.0, -2.0, 2.0, 1.0]))
    nibabel.save(image, tmp_path / "image.nii")
    expected, place = Bundle(bundle, config="configs/inference.json", weights="models/model.pt").predict(
        [tmp_path / "image.nii"]
    )
    part = {"script": "models/model.ts"} if weights == "ts" else {"weights": "models/model.pt"}
    loaded = Bundle(other, config="configs/inference.json", **part)
    found, _ = loaded.predict([tmp_path / "image.nii"])
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(place, image.affine)
    assert loaded.unused == (("loss.w",) if weights == "lightning" else ())


def test_a_bundle_comes_as_an_archive_and_stays_open_until_its_codes_are_said(
    home: Path, tmp_path: Path, bundle: Path
) -> None:
    archive = tmp_path / "ball.zip"
    with zipfile.ZipFile(archive, "w") as into:
        for file in sorted(bundle.rglob("*")):
            into.write(file, Path("ball") / file.relative_to(bundle))
    added = _add(home, archive, "--no-check", "--name", "balls")
    assert added.exit_code == 0, added.output
    assert '--code "ball=VALUE,SCHEME,MEANING"' in added.output
    assert "runs on no patient" in added.output
    assert open_names(load_card(home / "var" / "models" / "balls" / "0.2.1")) == ("ball",)
    answered = ("--untested", "--why", "a test answers for it")
    refused = _overread(home, "promote", "balls@0.2.1", *answered)
    assert isinstance(refused.exception, ModelRefused)
    assert "the codes of ball" in str(refused.exception)
    with at_work(home / "node.yaml") as (settings, database), database.read() as connection:
        view = Models(installed(settings), store_of(settings)).view(connection)
    assert "still open" in view.problems["balls", "0.2.1"]
    coded = ("--no-check", "--name", "balls", "--code", "ball=52988006,SCT,Lesion")
    assert isinstance(_add(home, archive, *coded).exception, AlreadyThere)
    assert _add(home, archive, *coded, "--version", "0.2.1-coded").exit_code == 0
    promoted = _overread(home, "promote", "balls@0.2.1-coded", *answered)
    assert promoted.exit_code == 0, promoted.output
    assert "candidate -> live" in promoted.output


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda b: (b / "configs" / "metadata.json").unlink(), (), "no configs/metadata.json"),
        (lambda b: (b / "configs" / "metadata.json").write_text("{"), (), "cannot be read"),
        (lambda b: (b / "configs" / "inference.json").unlink(), (), "can infer"),
        (lambda b: (b / "models" / "model.pt").unlink(), (), "no weights"),
        (lambda b: (b / "models" / "extra").symlink_to("/etc/hostname"), (), "leads out of the folder"),
        (lambda b: _about(b, "outputs", format="classification"), (), "bundles that segment volumes"),
        (lambda b: _about(b, "inputs", spatial_shape=[96, 96]), (), "2-D images"),
        (lambda b: _about(b, "inputs", modality="n/a"), (), "--modality"),
        (lambda b: _about(b, "outputs", channel_def={"0": "background", "2": "x"}), (), "does not number"),
        (lambda b: None, ("--code", "liver=10200004,SCT,Liver"), "has no label 'liver'"),
        (lambda b: None, ("--code", "ball=52988006"), "expected label=VALUE"),
        (lambda b: (b / "models" / "model.pt").write_bytes(b"PK"), ("--check",), "cannot be read as weights alone"),
    ],
)
def test_what_cannot_run_is_refused_with_what_to_do_and_nothing_of_it_stays(
    tmp_path: Path, bundle: Path, change: Any, options: tuple[str, ...], said: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(bundle, source)
    change(source)
    added = _add(tmp_path, source, *(options if "--check" in options else ("--no-check", *options)))
    assert isinstance(added.exception, CardError)
    with pytest.raises(CardError, match=said):
        raise added.exception
    assert list((tmp_path / "var").glob("models/*/*")) == []


def test_a_bundle_runs_only_in_an_engines_process_and_only_with_the_files_that_its_card_names(
    home: Path, bundle: Path, tmp_path: Path
) -> None:
    assert _add(home, bundle, "--no-check", "--name", "alone").exit_code == 0
    card = load_card(home / "var" / "models" / "alone" / "0.2.1")
    with pytest.raises(EngineFailure, match="own process only"):
        open_engine(card)
    job = Job(card.path, {"ct": _series(tmp_path)[0]})
    config = card.directory / "bundle" / "configs" / "inference.json"
    with EngineHost(card) as host:
        host.load()
        # What is replaced once it is loaded does not run either.
        config.write_bytes(config.read_bytes() + b" ")
        with pytest.raises(EngineFailure, match=r"changed since the model was loaded: .*inference\.json"):
            host.run(job)
    config.write_bytes(config.read_bytes()[:-1])
    (card.directory / "bundle" / "monai.py").write_text("raise SystemExit")
    with EngineHost(card) as host, pytest.raises(EngineFailure, match=r"bundle/monai\.py lies in the bundle"):
        host.load()


def test_what_breaks_in_a_bundle_is_told_by_its_kind_and_place_and_names_no_patient(tmp_path: Path) -> None:
    from inference.engines.bundle_workflow import Bundle

    config = inference_config(initialize=["$open('/nowhere/Name^Of^Patient')"])
    source = build_bundle(tmp_path / "breaking", config=config)
    with pytest.raises(EngineFailure, match="cannot be set up: FileNotFoundError at") as failure:
        Bundle(source, config="configs/inference.json")
    assert "Patient" not in failure.value.text


@pytest.mark.parametrize(
    ("label", "code", "category"),
    [
        ("spleen", "78961009", "91723000"),
        ("Cerebral-White-Matter", "68523003", "91723000"),
        ("Grey Matter", "389081007", "91723000"),
        ("Brain-Stem", "119238007", "91723000"),
        ("necrosis", "6574001", "49755003"),
    ],
)
def test_a_label_that_is_a_concept_of_the_standard_gets_its_code(label: str, code: str, category: str) -> None:
    found = suggest(label)
    assert found is not None
    assert (found[0].value, found[0].scheme, found[1].value) == (code, "SCT", category)


def test_a_label_that_is_none_gets_no_code() -> None:
    assert suggest("ball") is None
    assert suggest("VentralDC") is None


def test_several_channels_become_labels_by_what_the_card_says(home: Path, tmp_path: Path) -> None:
    about = metadata()
    about["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "necrosis", "1": "edema"}
    source = build_bundle(tmp_path / "two", about=about)
    assert _add(home, source, "--no-check", "--name", "two-labels").exit_code == 0
    card = load_card(home / "var" / "models" / "two-labels" / "0.2.1")
    assert [(output.label, output.name) for output in card.outputs] == [(1, "necrosis"), (2, "edema")]
    assert card.monai_bundle is not None
    assert card.monai_bundle.overlap == "keep", "channels without a background are structures for themselves"
    from inference.engines.monai_bundle import labels_of, marking_of

    def made(scores: np.ndarray, overlap: str) -> tuple[list[int], dict[int, tuple[int, ...]]]:
        assert card.monai_bundle is not None
        options = card.monai_bundle.model_copy(update={"overlap": overlap})
        marking = marking_of(card, options)
        return labels_of(scores, card, options, marking).ravel().tolist(), marking.together

    apart = np.zeros((2, 1, 1, 4), np.float32)
    apart[0, ..., 1] = apart[1, ..., 2] = 1
    assert made(apart, "refuse") == ([0, 1, 2, 0], {})
    both = apart.copy()
    both[:, ..., 3] = 1
    with pytest.raises(EngineFailure, match=r"monai_bundle\.overlap: keep"):
        made(both, "refuse")
    assert made(both, "last") == ([0, 1, 2, 2], {})
    assert made(both, "keep") == ([0, 1, 2, 3], {3: (1, 2)})
    with pytest.raises(EngineFailure, match="not numbers"):
        made(apart * np.nan, "last")
    with pytest.raises(EngineFailure, match="scores without a background"):
        made(apart * 0.5, "last")
    with pytest.raises(EngineFailure, match="does not name"):
        made(np.full((1, 1, 1, 2), 3, np.float32), "last")


@pytest.mark.parametrize(("activation", "overlap"), [("softmax", None), ("sigmoid", "keep")])
def test_channels_of_a_sigmoid_are_kept_over_one_another_though_one_is_the_background(
    tmp_path: Path, activation: str, overlap: str | None
) -> None:
    config = inference_config()
    config["postprocessing"]["transforms"][0] = {"_target_": "Activationsd", "keys": "pred", activation: True}
    source = build_bundle(tmp_path / "ball", config=config)
    files = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    described = describe_bundle(source, files, folder="bundle", name=None, codes=(), modality=None)
    assert described.values["monai_bundle"]["background"]
    assert described.values["monai_bundle"].get("overlap") == overlap


def test_structures_that_a_bundle_lays_over_one_another_come_back_whole_on_the_received_images(
    home: Path, tmp_path: Path
) -> None:
    from inference.engines.monai_bundle import BundleEngine

    about, config = metadata(), inference_config()
    about["network_data_format"]["outputs"]["pred"]["channel_def"] = {"0": "edema", "1": "necrosis"}
    after = config["postprocessing"]["transforms"]
    after[0] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    # The first channel is nearly everything but the ball, the second the ball: so low, they share its rim.
    after[2] = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.02}
    source = build_bundle(tmp_path / "rims", about=about, config=config)
    assert _add(home, source, "--no-check", "--name", "rims").exit_code == 0
    card = load_card(home / "var" / "models" / "rims" / "0.2.1")
    # Of a tilted gantry: what is marked where nothing was scanned is not counted.
    images, ball, _ = _series(tmp_path / "ct", order=-1, lean=0.9)
    assert card.monai_bundle is not None
    findings = BundleEngine(card, card.monai_bundle, card.directory / card.monai_bundle.root).run(
        Job(card.path, {"ct": images})
    )
    made = findings.segmentation
    assert made is not None
    assert made.images == tuple(image.key for image in images)
    around, inside = (Marking(together=made.together).of(made.labels, label) for label in (1, 2))
    assert (inside & ball).sum() > 0.95 * ball.sum()
    assert (around & inside).sum() > 100
    for one, where in zip(made.segments, (around, inside), strict=True):
        assert one.volume_ml == pytest.approx(where.sum() * 2.5 * 1.8 * 1.6 / 1000)


def test_a_mask_that_has_lost_its_place_is_a_failure_and_not_an_empty_mask() -> None:
    from inference.engines.monai_bundle import on_source as placed

    def on_source(labels: np.ndarray, affine: np.ndarray, grid: Grid) -> np.ndarray:
        return placed(labels, affine, grid, Marking((1,)))

    place = np.diag([2.0, 2.0, 3.0, 1.0])
    place[:3, 3] = (-400.0, -350.0, 120.0)
    source = Grid((20, 24, 22), np.diag([-1.0, -1.0, 1.0, 1.0]) @ place)
    labels = np.zeros(source.shape, np.uint8)
    labels[6:14, 8:16, 5:15] = 1
    assert (on_source(labels, place, source) == labels).all()
    # Cropped to a part, padded beyond the series: both lie where they say.
    shifted = place.copy()
    shifted[:3, 3] = (place @ [4, 4, 4, 1])[:3]
    assert (on_source(labels[4:16, 4:18, 4:18], shifted, source) == labels).all()
    shifted[:3, 3] = (place @ [0, 0, -30, 1])[:3]
    padded = np.pad(labels, ((0, 0), (0, 0), (30, 30)))
    assert (on_source(padded, shifted, source) == labels).all()
    with pytest.raises(EngineFailure, match="the identity"):
        on_source(labels, np.eye(4), source)
    near = Grid(source.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([1.2, 1.2, 1.2, 1.0]))
    with pytest.raises(EngineFailure, match="the identity"):
        on_source(labels, np.eye(4), near)
    with pytest.raises(EngineFailure, match=r"label 1, of which 0\.0 mL"):
        on_source(np.roll(padded, 30, axis=2), shifted, source)


def test_a_bundle_of_several_channels_gets_a_role_for_each(home: Path, tmp_path: Path) -> None:
    about = metadata()
    about["network_data_format"]["inputs"]["image"] |= {"num_channels": 2, "channel_def": {"0": "T1", "1": "FLAIR"}}
    source = build_bundle(tmp_path / "two", about=about)
    added = _add(home, source, "--no-check", "--name", "two-series")
    assert "check the rule" in added.output
    card = load_card(home / "var" / "models" / "two-series" / "0.2.1")
    assert [(role.role, role.match["SeriesDescription"]) for role in card.inputs] == [
        ("t1", "*T1*"),
        ("flair", "*FLAIR*"),
    ]


def _about(folder: Path, side: str, **changes: Any) -> None:
    about = json.loads((folder / "configs" / "metadata.json").read_text())
    next(iter(about["network_data_format"][side].values())).update(changes)
    (folder / "configs" / "metadata.json").write_text(json.dumps(about))
