"""Versions of a model are promoted, tried and turned back while studies flow through a running node."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import ModelProto

from demo.peers import MllpReceiver, wait_until
from inference.card import Card, load_card
from node.settings import load_settings
from node.workflow import arriving, governing
from storage.headers import Header, read_header
from tests.databases import PostgreSQL
from tests.dicom_factory import ct_series
from tests.model_factory import poisoned, segmentation_card, thresholding, write_model
from tests.system import SEG, SR, Node, push

#: So many turns take a second or more, within which a rollback comes.
SLOW = 1_500_000


def blob(folder: Path, **attributes: Any) -> tuple[str, list[Path]]:
    """A small CT with one bright block, 4 mL large."""
    hu = np.full((4, 16, 16), -1000)
    hu[1:3, 4:9, 4:12] = 500
    files = ct_series(folder, hu, spacing=(5.0, 2.0, 2.0), **attributes)
    import pydicom

    return str(pydicom.dcmread(files[0], stop_before_pixels=True).StudyInstanceUID), files


def version_of(folder: Path, version: str, model: ModelProto, **changes: Any) -> Path:
    """A folder with a version of the model, and a sample case of it."""
    path = write_model(folder / version, segmentation_card(version=version, **changes), model)
    blob(path.parent / "case")
    text = path.read_text(encoding="utf-8")
    samples = [{"name": "block", "images": "case", "expect": {"right lung": 1.6}, "tolerance": 0.01}]
    path.write_text(text + "samples: " + json.dumps(samples) + "\n", encoding="utf-8")
    return path.parent


@dataclass
class Ward:
    """A node with one model, a folder that takes its documents, and a receiver of messages."""

    node: Node
    emr: MllpReceiver
    folder: Path
    numbers: int = 0

    def push(self) -> str:
        """Send one more study; returns its UID."""
        self.numbers += 1
        uid, files = blob(self.folder / f"study-{self.numbers}")
        push(files, self.node.dimse_port)
        return uid

    def post(self, path: str, **body: Any) -> list[str]:
        answer = httpx.post(f"{self.node.url}/api/v1/models/{path}", json={"by": "ann", **body}, timeout=30)
        assert answer.status_code == 200, answer.text
        changed: list[str] = answer.json()["changed"]
        return changed

    def bring(self, card: Card) -> None:
        """Add a version from outside the node's processes, as the command does."""
        with closing(self.node.database()) as database:
            arriving.add(load_settings(self.node.config), database, card.directory, by="ann")

    def test(self, version: str) -> bool:
        """Test a version, as the command does."""
        with closing(self.node.database()) as database:
            report = governing.run_test(load_settings(self.node.config), database, f"blobs@{version}", by="ann")
        return bool(report["passed"])

    def promote(self, version: str, stage: str = "live") -> list[str]:
        return self.post(f"blobs/versions/{version}/stage", stage=stage, why="a test")

    def workitems(self, study: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.node.url}/api/v1/studies/{study}/story", timeout=30)
        found: list[dict[str, Any]] = answer.json()["workitems"] if answer.status_code == 200 else []
        return found

    def wait(self, study: str, done: Callable[[list[dict[str, Any]]], bool], what: str) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            found = self.workitems(study)
            return found if found and done(found) else None

        try:
            return wait_until(look, 60, what, interval=0.05)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.workitems(study)}\n{self.node.log[-4000:]}") from None

    def result(self, study: str) -> list[Header]:
        """Wait for the message about a study; returns the documents that have left, of this study alone."""
        wait_until(lambda: self.messages(study), 60, "the message about the study", interval=0.05)
        left = [read_header(one) for one in (self.folder / "out").rglob("*.dcm")]
        return [one for one in left if one.study_instance_uid == study]

    def messages(self, study: str) -> list[str]:
        return [str(one["text"]) for one in self.emr.messages() if study in str(one["text"])]


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Card]:
    """Three versions that lie somewhere: 2.0.0 says less than 1.0.0 may, and 3.0.0 is slow."""
    folder = tmp_path_factory.mktemp("versions")
    made = {
        "1.0.0": version_of(folder, "1.0.0", thresholding()),
        "2.0.0": version_of(folder, "2.0.0", poisoned("waits", 1)),
        "3.0.0": version_of(folder, "3.0.0", poisoned("waits", SLOW), slab={"slices": 64, "overlap": 0}),
    }
    return {version: load_card(place) for version, place in made.items()}


@contextmanager
def ward_in(folder: Path, cards: dict[str, Card], **more: Any) -> Iterator[Ward]:
    """Run a node whose shipped model is version 1.0.0."""
    shipped = folder / "models" / "blobs"
    shipped.parent.mkdir()
    shipped.symlink_to(cards["1.0.0"].directory)
    with ExitStack() as stack:
        emr = MllpReceiver(folder=folder / "emr").start()
        stack.callback(emr.stop)
        route = {"name": "ct", "match": {"Modality": "CT"}, "models": ["blobs"], "deliver": ["out"], "notify": ["emr"]}
        options = {
            "models": str(folder / "models"),
            "routes": [route],
            "destinations": {"out": {"kind": "folder", "path": str(folder / "out")}},
            "completion": {"quiet_seconds": 0.4},
            **more,
        }
        node = Node(folder=folder / "node", emr=emr, options=options)
        stack.callback(node.stop)
        yield Ward(node.start(), emr, folder)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory, cards: dict[str, Card]) -> Iterator[Ward]:
    """Give one on the embedded database."""
    with ward_in(tmp_path_factory.mktemp("ward"), cards) as made:
        yield made


def device_uids(documents: list[Header]) -> set[str]:
    return {uid for one in documents for uid in one.device_uids}


def test_a_shadow_runs_beside_the_live_version_and_nothing_of_it_leaves(ward: Ward, cards: dict[str, Card]) -> None:
    ward.node.run("models", "add", str(cards["2.0.0"].directory), "--by", "ann")
    ward.promote("2.0.0", "shadow")
    study = ward.push()
    done = ward.wait(study, lambda found: [one["state"] for one in found] == ["COMPLETED"] * 2, "both versions to run")
    by_version = {one["model_version"]: one for one in done}
    documents = ward.result(study)
    assert {one.sop_class_uid for one in documents} == {SR, SEG}
    assert cards["1.0.0"].device_uid in device_uids(documents)
    assert cards["2.0.0"].device_uid not in device_uids(documents)
    shadow = by_version["2.0.0"]
    assert (shadow["shadow"], shadow["documents"], by_version["1.0.0"]["shadow"]) == (True, [], False)
    assert [(use["deliver"], use["notify"]) for use in shadow["uses"]] == [([], [])]
    assert shadow["outcome"] == "right lung 2 mL, left lung 0 mL"
    assert [text for text in ward.messages(study) if "2.0.0" in text] == []
    told = json.loads(ward.node.run("models", "compare", "blobs@1.0.0", "blobs@2.0.0", "--json").stdout)
    assert (told["input_sets"], told["both_analysed"]) == (1, 1)
    # One mask came out of the SEG that was sent, the other was kept beside the archive.
    assert [(one["output"], one["mean_dice"], one["mean_difference"]) for one in told["outputs"]] == [
        ("left lung", None, 0.0),
        ("right lung", 1.0, 0.0),
    ]


def test_retiring_a_shadow_removes_its_masks(ward: Ward) -> None:
    assert len(list((ward.node.data_dir / "shadows").iterdir())) == 1
    ward.post("blobs/versions/2.0.0/retire")
    assert list((ward.node.data_dir / "shadows").iterdir()) == []
    ward.promote("2.0.0", "candidate")


def test_studies_carry_the_version_that_was_live_when_they_were_judged(ward: Ward, cards: dict[str, Card]) -> None:
    assert ward.test("2.0.0")
    assert ward.promote("2.0.0") == ["blobs@2.0.0: candidate -> live", "blobs@1.0.0: live -> candidate"]
    after = ward.result(ward.push())
    assert ward.post("blobs/rollback") == ["blobs@2.0.0 is turned back, and candidate", "blobs@1.0.0 is live"]
    ward.node.kill()
    ward.node.start()
    again = ward.result(ward.push())
    for documents, version, other in ((after, "2.0.0", "1.0.0"), (again, "1.0.0", "2.0.0")):
        assert len(documents) == 2
        assert cards[version].device_uid in device_uids(documents)
        assert cards[other].device_uid not in device_uids(documents)
    metrics = httpx.get(f"{ward.node.url}/metrics", timeout=30).text.splitlines()
    assert [one for one in metrics if one.startswith("overread_model_version{")] == [
        'overread_model_version{model="blobs",stage="live",version="1.0.0"} 1.0'
    ]


def test_what_is_scheduled_for_a_version_that_is_retired_is_canceled_with_the_reason(
    ward: Ward, cards: dict[str, Card]
) -> None:
    ward.bring(cards["3.0.0"])
    assert ward.test("3.0.0")
    ward.promote("3.0.0")
    study = ward.push()
    ward.wait(study, lambda found: found[0]["state"] == "IN PROGRESS", "the slow version to be at it")
    ward.post("blobs/rollback", retire=True, why="it is too slow")
    (canceled,) = ward.workitems(study)
    assert (canceled["state"], canceled["outcome"]) == (
        "CANCELED",
        "blobs@3.0.0 was retired by ann: it is too slow",
    )
    assert ward.result(study) == []
    assert "it is too slow" in ward.messages(study)[0]
    # The engine's work on it is dropped, and whoever comes next is read by what is live.
    assert [one["model_version"] for one in ward.wait(ward.push(), bool, "the next")] == ["1.0.0"]


def test_on_postgresql_what_runs_while_a_model_is_turned_back_ends_with_its_version_and_its_engine_goes(
    tmp_path: Path, cards: dict[str, Card], postgresql: PostgreSQL
) -> None:
    with ward_in(tmp_path, cards, database={"url": postgresql.new_database()}) as ward:
        process = ward.node.process.pid
        ward.bring(cards["3.0.0"])
        assert ward.test("3.0.0")
        assert ward.promote("3.0.0") == ["blobs@3.0.0: candidate -> live", "blobs@1.0.0: live -> candidate"]
        study = ward.push()
        ward.wait(study, lambda found: found[0]["state"] == "IN PROGRESS", "the slow version to be at it")
        assert ward.post("blobs/rollback") == ["blobs@3.0.0 is turned back, and candidate", "blobs@1.0.0 is live"]
        assert ward.workitems(study)[0]["state"] == "IN PROGRESS"
        assert cards["3.0.0"].device_uid in device_uids(ward.result(study))
        assert cards["1.0.0"].device_uid in device_uids(ward.result(ward.push()))

        def engines() -> list[str]:
            return [one for one in ward.node.members() if one.startswith("engine-")]

        wait_until(lambda: len(engines()) == 1, 20, f"one engine to be left of {engines()}")
        with closing(ward.node.database()) as database:
            assert database.url.startswith("postgresql")
        assert (ward.node.process.pid, ward.node.process.running) == (process, True)
