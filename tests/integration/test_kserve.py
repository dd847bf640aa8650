"""A model on a real MLServer is run over HTTP and gRPC like one of our own, and nothing of the patient goes there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from inference.card import Card, load_card
from inference.engine import ImageFile, Job, open_engine
from inference.errors import EngineFailure
from inference.host import EngineHost
from tests.dicom_factory import ct_series, radiograph
from tests.mlserver import MlServer
from tests.model_factory import classification_card, mean_brightness, segmentation_card, write_model

PROTOCOLS = pytest.mark.parametrize("protocol", ["http", "grpc"])


def served(folder: Path, card: dict[str, Any], **options: Any) -> Card:
    """Write a card whose model is on a server, and load it."""
    place = folder / card["name"]
    place.mkdir(parents=True, exist_ok=True)
    wanted = {"model": card["name"], "version": "3", "retries": 0, "timeout_seconds": 20} | options
    path = place / "card.yaml"
    path.write_text(yaml.safe_dump(card | {"engine": "kserve", "kserve": wanted}), encoding="utf-8")
    return load_card(path)


def on(server: MlServer, protocol: str) -> dict[str, str]:
    return {"url": server.address(protocol), "protocol": protocol}


@PROTOCOLS
def test_a_classifier_answers_from_the_server_as_from_a_file(tmp_path: Path, mlserver: MlServer, protocol: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 4096, (80, 70))
    image = radiograph(tmp_path / "image", pixels)
    files = {"radiograph": (ImageFile("one", image),)}
    here = load_card(write_model(tmp_path / "here", classification_card(), mean_brightness()))
    there = served(tmp_path / "there", classification_card(), **on(mlserver, protocol))
    findings = open_engine(there).run(Job(there.path, files))
    wanted = open_engine(here).run(Job(here.path, files))
    assert findings.classifications[0].probability == pytest.approx(wanted.classifications[0].probability, abs=1e-6)
    assert findings.provider.startswith(f"kserve-{protocol} mlserver 1.")
    assert findings.precision == "fp32"


@PROTOCOLS
def test_a_volume_comes_back_as_labels_also_through_the_supervised_process(
    tmp_path: Path, mlserver: MlServer, protocol: str
) -> None:
    hu = np.full((12, 24, 20), -1000)
    hu[3:9, 5:15, 4:12] = 500
    hu[4:6, 6:9, 5:8] = 1500
    paths = ct_series(tmp_path / "ct", hu)
    card = served(tmp_path / "models", segmentation_card(), **on(mlserver, protocol))
    job = Job(card.path, {"ct": tuple(ImageFile(p.stem, p) for p in paths)})
    if protocol == "http":
        findings = open_engine(card).run(job)
    else:
        with EngineHost(card, folder=tmp_path) as host:
            findings = host.run(job)
    assert findings.segmentation is not None
    np.testing.assert_array_equal(findings.segmentation.labels, (hu > 200).astype(int) + (hu > 1200))


def test_the_digest_changes_with_what_is_asked_of_the_server(tmp_path: Path) -> None:
    digests = {
        served(tmp_path, classification_card(), url=url, protocol="http", version=version).digest
        for url in ("http://a:1", "http://b:1")
        for version in ("3", "4")
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({}, {"model": "nobody"}, "nobody|not found"),
        ({}, {"version": "9"}, "version|9"),
        ({"tensors": {"image": "pixels", "output": "probability"}}, {}, "no input 'pixels'.*image"),
        ({"tensors": {"image": "image", "output": "score"}}, {}, "no output 'score'.*probability"),
        (
            {},
            {"expect": {"image": {"datatype": "FP16", "shape": [-1, 1, 64, 64]}}},
            "expected FP16.*has FP32",
        ),
        (
            {},
            {"expect": {"image": {"datatype": "FP32", "shape": [1, 3, 64, 64]}}},
            "expected FP32.*has FP32",
        ),
    ],
    ids=["model", "version", "input", "output", "datatype", "shape"],
)
@PROTOCOLS
def test_a_card_that_means_another_model_than_the_server_has_is_refused_with_the_key(
    tmp_path: Path, mlserver: MlServer, protocol: str, changes: Any, options: Any, told: str
) -> None:
    card = served(tmp_path, classification_card(**changes), **on(mlserver, protocol), **options)
    with pytest.raises(EngineFailure, match=told):
        open_engine(card)


@PROTOCOLS
def test_an_image_of_another_size_than_the_server_declares_is_not_sent(
    tmp_path: Path, mlserver: MlServer, protocol: str
) -> None:
    card = served(
        tmp_path / "c", classification_card(preprocess=[{"radiograph_input": {"size": 32}}]), **on(mlserver, protocol)
    )
    image = radiograph(tmp_path, np.arange(4096).reshape(64, 64))
    with pytest.raises(EngineFailure, match=r"\[-1, 1, 64, 64\]; the card feeds \[1, 1, 32, 32\]"):
        open_engine(card).run(Job(card.path, {"radiograph": (ImageFile("one", image),)}))


class Relay:
    """Passes bytes on to a port, and keeps all that the client has sent."""

    def __init__(self, port: int) -> None:
        self.sent = bytearray()
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            peer = socket.create_connection(("127.0.0.1", self._to))
            self._open += [client, peer]
            threading.Thread(target=self._pass, args=(client, peer, self.sent), daemon=True).start()
            threading.Thread(target=self._pass, args=(peer, client, bytearray()), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, to: socket.socket, kept: bytearray) -> None:
        try:
            while chunk := source.recv(65536):
                kept += chunk
                to.sendall(chunk)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._server.close()
        for one in self._open:
            one.close()


@pytest.fixture
def relay(mlserver: MlServer, request: pytest.FixtureRequest) -> Iterator[Relay]:
    port = mlserver.http_port if request.getfixturevalue("protocol") == "http" else mlserver.grpc_port
    passing = Relay(port)
    yield passing
    passing.close()


@PROTOCOLS
def test_what_goes_over_the_wire_names_neither_patient_nor_study_nor_image(
    tmp_path: Path, relay: Relay, protocol: str
) -> None:
    private = {
        "PatientName": "Quixote^Alonso",
        "PatientID": "MRN-7712345",
        "PatientBirthDate": "19470509",
        "AccessionNumber": "ACC88123",
        "InstitutionName": "La Mancha General",
        "StudyDate": "20260317",
        "ReferringPhysicianName": "Panza^Sancho",
        "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.771",
    }
    image = radiograph(tmp_path / "Quixote", np.arange(4096).reshape(64, 64), **private)
    scheme = {"http": "http", "grpc": "grpc"}[protocol]
    card = served(tmp_path / "m", classification_card(), url=f"{scheme}://127.0.0.1:{relay.port}", protocol=protocol)
    engine = open_engine(card)
    key = "1.2.826.0.1.3680043.8.498.772"
    job = Job(card.path, {"radiograph": (ImageFile(key, image),)})
    assert replace(engine.run(job), seconds=0) == replace(engine.run(job), seconds=0)
    engine.close()
    sent = bytes(relay.sent)
    assert len(sent) > 2 * 64 * 64 * 4
    words = [key, image.stem, "Quixote", "radiograph", str(tmp_path), "Mean brightness", "nodule"]
    for value in [*private.values(), *words]:
        for part in str(value).replace("^", " ").split():
            assert part.encode() not in sent, part
            assert part.encode("utf-16-le") not in sent, part
