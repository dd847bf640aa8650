"""A model's server that lies, hangs or floods ends the run with a reason, in bounded time and memory."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pydicom import dcmread
from tritonclient.grpc import service_pb2, service_pb2_grpc

from inference.engine import ImageFile, Job, open_engine
from inference.engines.kserve import KServeModel, open_model
from inference.errors import CardError, EngineFailure
from node.workflow.engines import Engines
from tests.certificates import Authority, Pair, self_signed
from tests.dicom_factory import ct_series, radiograph
from tests.integration.test_kserve import served
from tests.model_factory import classification_card, segmentation_card

FEEDS = {"image": np.full((1, 1, 64, 64), 0.25, np.float32)}
METADATA = {
    "name": "levels",
    "versions": ["3"],
    "platform": "test",
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 64, 64]}],
    "outputs": [{"name": "probability", "datatype": "FP32", "shape": [-1, 1]}],
}
Reply = Callable[[socket.socket, bytes], None]


class Server:
    """An HTTP server that answers what a test says, connection by connection."""

    def __init__(self, infer: Reply, tls: Pair | None = None, **paths: Reply) -> None:
        self._tls = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(tls.certificate, tls.key)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._infer = infer
        self._paths = paths
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                path = stream.readline().split()[1].decode()
                headers = {}
                while (line := stream.readline().strip()) != b"":
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", 0)))
                self.requests.append((path, headers, body))
                if path.endswith("/ready"):
                    self._paths.get("ready", ok({}))(connection, body)
                elif path == "/v2":
                    self._paths.get("server", ok({"name": "test", "version": "1", "extensions": []}))(connection, body)
                elif path.endswith("/infer"):
                    self._infer(connection, body)
                else:
                    self._paths.get("model", ok(METADATA))(connection, body)
        except OSError:
            pass

    def close(self) -> None:
        self._socket.close()


def raw(data: bytes, status: str = "200 OK", **headers: object) -> Reply:
    head = {"Content-Length": len(data)} | {k.replace("_", "-"): v for k, v in headers.items()}
    text = "".join(f"{k}: {v}\r\n" for k, v in head.items())
    return lambda connection, _: connection.sendall(f"HTTP/1.1 {status}\r\n{text}\r\n".encode() + data)


def ok(said: Any) -> Reply:
    return raw(json.dumps(said).encode())


ONE = {"name": "probability", "datatype": "FP32", "shape": [1, 1], "data": [0.25]}


def output(**changes: Any) -> Reply:
    return ok({"model_name": "levels", "model_version": "3", "outputs": [ONE | changes]})


def binary(data: bytes, size: int, **more: Any) -> Reply:
    one = {"name": "probability", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"model_name": "levels", "outputs": [one | more]}).encode()
    return raw(head + data, Inference_Header_Content_Length=len(head))


def in_turn(replies: Iterator[Reply]) -> Reply:
    """The next of the replies to each request; after them, that all is well."""

    def reply(connection: socket.socket, body: bytes) -> None:
        next(replies, ok({}))(connection, body)

    return reply


def dripping(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def dripping_headers(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-A: b\r\n")
        time.sleep(0.05)


def silence(connection: socket.socket, _: bytes) -> None:
    connection.recv(1)


def flood(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")


def half(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"outputs": [')


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Callable[..., KServeModel]]:
    """Give a function that starts a server and opens its model."""
    started: list[Server] = []

    def start(infer: Reply, options: dict[str, Any] | None = None, **paths: Reply) -> KServeModel:
        server = Server(infer, **paths)
        started.append(server)
        chosen = {"timeout_seconds": 0.6, "most_answer_mb": 2, "backoff_seconds": 0.01} | (options or {})
        model = open_model(served(tmp_path, classification_card(), url=server.url, protocol="http", **chosen))
        model.test_server = server  # type: ignore[attr-defined]
        return model

    yield start
    for one in started:
        one.close()


LIES = {
    "another length": (output(data=[0.25, 0.5]), "2 values; its shape"),
    "another shape": (output(shape=[1, 2], data=[0.25, 0.5]), r"shape \[1, 2\]; it declares \[-1, 1\]"),
    "a negative shape": (output(shape=[-1, 1]), "impossible shape"),
    "an enormous shape": (output(shape=[1 << 30, 1 << 30]), "1 values; its shape"),
    "another datatype": (output(datatype="FP64"), "as FP64; it declares FP32"),
    "no such datatype": (output(datatype="OBJECT"), "datatype that is not read"),
    "words for numbers": (output(data=["0.25"]), "no FP32"),
    "nothing for numbers": (output(data=None), "no FP32"),
    "ragged lists": (output(shape=[2, 2], data=[[1, 2], [3]]), "no array of numbers"),
    "not a number": (output(data=[float("nan")]), "no numbers"),
    "infinity": (output(data=[1e999]), "no numbers"),
    "another output": (output(name="score"), "did not answer 'probability'.*score"),
    "no output": (ok({"outputs": []}), "did not answer"),
    "two of one name": (ok({"outputs": [ONE, ONE]}), "twice"),
    "another model": (ok({"model_name": "other", "outputs": [ONE]}), "another model"),
    "another version": (ok({"model_version": "4", "outputs": [ONE]}), "another version"),
    "truncated binary": (binary(b"\0\0", 4), "truncated"),
    "short binary": (binary(b"\0\0", 2), "has 2 bytes"),
    "too much binary": (binary(bytes(9), 4), "belong to no output"),
    "binary that is not a number": (binary(struct.pack("<f", float("nan")), 4), "no numbers"),
    "a header longer than the answer": (raw(b"{}", Inference_Header_Content_Length=99), "shorter than its own header"),
    "no JSON": (raw(b"<html>"), "not JSON"),
    "a list": (raw(b"[]"), "no JSON object"),
    "depth": (raw(b"[" * 100_000), "not JSON"),
    "a redirect": (raw(b"", "302 Found", Location="http://127.0.0.1:9/"), "302: redirects are not followed"),
    "an enormous length": (raw(b"{}", Content_Length=1 << 40), "would have 1099511627776 bytes"),
    "no end": (flood, "no end within"),
    "compression": (raw(b"\x1f\x8b", Content_Encoding="gzip"), "compressed"),
    "an error": (raw(b'{"error": "out of   memory\\nat x"}', "501 No"), "answered 501: out of memory at x"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_cannot_be_is_not_believed(talk: Callable[..., KServeModel], lie: str) -> None:
    reply, told = LIES[lie]
    model = talk(reply, {"binary": "binary" in lie, "timeout_seconds": 5})
    with pytest.raises(EngineFailure, match=told) as caught:
        model.infer(FEEDS)
    assert caught.value.reason == "broke"


@pytest.mark.parametrize("reply", [dripping, dripping_headers, silence], ids=["slow bytes", "slow headers", "silence"])
def test_a_server_that_takes_its_time_is_left_after_the_time_limit(
    talk: Callable[..., KServeModel], reply: Reply
) -> None:
    model = talk(reply)
    began = time.monotonic()
    with pytest.raises(EngineFailure, match=r"no whole answer within 0\.6 s") as caught:
        model.infer(FEEDS)
    assert caught.value.reason == "overran-time"
    # What took its time would do so again: it is not asked a second time.
    assert time.monotonic() - began < 3
    assert sum(path.endswith("/infer") for path, _, _ in model.test_server.requests) == 1  # type: ignore[attr-defined]


def test_a_true_answer_is_believed_and_the_requests_number_is_random(talk: Callable[..., KServeModel]) -> None:
    model = talk(output())
    assert model.infer(FEEDS)["output"].tolist() == [[0.25]]
    model.infer(FEEDS)
    asked = [json.loads(body) for path, _, body in model.test_server.requests if path.endswith("/infer")]  # type: ignore[attr-defined]
    assert len({one["id"] for one in asked}) == 2
    assert [sorted(one) for one in asked] == [["id", "inputs", "outputs"]] * 2


def test_what_may_be_asked_again_is_until_it_works(talk: Callable[..., KServeModel]) -> None:
    replies = iter([raw(b"", "503 Busy"), half, raw(b"", "429 Slow"), output()])
    model = talk(in_turn(replies), {"retries": 3})
    assert model.infer(FEEDS)["output"].tolist() == [[0.25]]


def test_a_server_that_stays_busy_is_given_up(talk: Callable[..., KServeModel]) -> None:
    model = talk(raw(b"", "503 Busy"), {"retries": 2})
    with pytest.raises(EngineFailure, match="answered 503"):
        model.infer(FEEDS)
    assert sum(path.endswith("/infer") for path, _, _ in model.test_server.requests) == 3  # type: ignore[attr-defined]


def test_a_model_that_is_still_being_loaded_is_waited_for(talk: Callable[..., KServeModel]) -> None:
    replies = iter([raw(b"", "400 Bad Request"), raw(b"", "503 Busy")])
    model = talk(output(), {"retries": 3}, ready=in_turn(replies))
    assert model.infer(FEEDS)["output"].tolist() == [[0.25]]


@pytest.mark.parametrize("extensions", [["binary_tensor_data"], []], ids=["says so", "says nothing"])
def test_tensors_are_binary_where_the_server_wants_them_so(
    talk: Callable[..., KServeModel], extensions: list[str]
) -> None:
    """A server that says nothing and refuses JSON is asked once in the other form, which is then kept."""

    def reply(connection: socket.socket, body: bytes) -> None:
        if body.endswith(b"}"):
            raw(b'{"error": "binary only"}', "422 Unprocessable")(connection, body)
        else:
            assert body.endswith(FEEDS["image"].tobytes())
            binary(struct.pack("<f", 0.75), 4)(connection, body)

    model = talk(reply, server=ok({"name": "test", "version": "2", "extensions": extensions}))
    for _ in range(2):
        assert model.infer(FEEDS)["output"].tolist() == [[0.75]]
    asked = sum(path.endswith("/infer") for path, _, _ in model.test_server.requests)  # type: ignore[attr-defined]
    assert asked == (2 if extensions else 3)


def test_first_requests_at_once_each_try_the_other_form_than_their_own(talk: Callable[..., KServeModel]) -> None:
    together = threading.Barrier(2, timeout=10)

    def reply(connection: socket.socket, body: bytes) -> None:
        if body.endswith(b"}"):
            together.wait()
            raw(b'{"error": "binary only"}', "422 Unprocessable")(connection, body)
        else:
            binary(struct.pack("<f", 0.75), 4)(connection, body)

    model = talk(reply, {"timeout_seconds": 20}, server=ok({"name": "test", "version": "2", "extensions": []}))
    with futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(model.infer, (FEEDS, FEEDS)))
    assert [answer["output"].tolist() for answer in answers] == [[[0.75]], [[0.75]]]


def test_a_server_that_is_not_there_is_told_as_unreachable(tmp_path: Path) -> None:
    for protocol in ("http", "grpc"):
        card = served(
            tmp_path, classification_card(), url=f"{protocol}://127.0.0.1:9", protocol=protocol, connect_seconds=2
        )
        with pytest.raises(EngineFailure, match=rf"no connection to the model's server.*{protocol}://127") as caught:
            open_engine(card)
        assert caught.value.reason == "unreachable"


def test_a_server_that_is_not_there_costs_no_try_and_its_model_is_left_alone_for_a_while(tmp_path: Path) -> None:
    card = served(tmp_path, classification_card(), url="http://127.0.0.1:9", protocol="http", connect_seconds=2)
    engines = Engines(tmp_path, cache=tmp_path / "cache", cores=1, memory_mb=4096, idle_seconds=60)
    try:
        with pytest.raises(EngineFailure, match="no connection to the model's server") as caught:
            engines.run(card, Job(card.path, {"radiograph": ()}), lambda: None)
        assert not caught.value.counts
        assert engines.full() == {card.digest}
    finally:
        engines.close()


def test_an_image_that_says_that_text_is_burned_in_is_sent_to_no_server(tmp_path: Path) -> None:
    server = Server(output())
    try:
        image = radiograph(tmp_path / "i", np.arange(5600).reshape(80, 70) % 4000, BurnedInAnnotation="YES")
        for allowed in (False, True):
            card = served(tmp_path, classification_card(), url=server.url, protocol="http", burned_in=allowed)
            findings = open_engine(card).run(Job(card.path, {"radiograph": (ImageFile("one", image),)}))
            assert (findings.not_analysed is None) == allowed
            assert any(path.endswith("/infer") for path, _, _ in server.requests) == allowed
    finally:
        server.close()


def test_a_view_with_text_beside_a_frontal_costs_it_nothing_and_the_gates_own_reason_comes_first(
    tmp_path: Path,
) -> None:
    server = Server(output())
    pixels = np.arange(5600).reshape(80, 70) % 4000
    frontal, lateral, named = (
        radiograph(tmp_path / name, pixels, view=view, BurnedInAnnotation=text)
        for name, view, text in (("f", "PA", "NO"), ("l", "LL", "YES"), ("n", "PA", "YES"))
    )
    try:
        card = served(tmp_path, classification_card(), url=server.url, protocol="http")
        files = tuple(ImageFile(name, path) for name, path in (("f", frontal), ("l", lateral), ("n", named)))
        findings = open_engine(card).run(Job(card.path, {"radiograph": files}))
        assert (findings.not_analysed, findings.images) == (None, ("f",))
        assert [words.rpartition("(")[2] for words in findings.warnings] == ["view).", "burned-in-annotation)."]
        assert sum(path.endswith("/infer") for path, _, _ in server.requests) == 1
        alone = open_engine(card).run(Job(card.path, {"radiograph": files[1:2]})).not_analysed
        assert alone is not None
        assert alone.reason == "view"
    finally:
        server.close()


def test_text_in_a_slice_keeps_a_volume_from_a_server_and_text_in_its_localizer_does_not(tmp_path: Path) -> None:
    shape = [-1, -1, -1]
    tensors = {
        "inputs": [
            {"name": "hu", "datatype": "INT16", "shape": shape},
            {"name": "spacing", "datatype": "FP32", "shape": [3]},
        ],
        "outputs": [{"name": "labels", "datatype": "UINT8", "shape": shape}],
    }
    server = Server(ok({"outputs": []}), model=ok(METADATA | tensors))
    frame = "1.2.826.0.1.3680043.8.498.1"
    slices = ct_series(tmp_path / "ct", np.zeros((3, 8, 8)), frame_of_reference_uid=frame)
    scout = ct_series(
        tmp_path / "scout",
        np.zeros((1, 8, 8)),
        orientation=(1, 0, 0, 0, 0, -1),
        frame_of_reference_uid=frame,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        BurnedInAnnotation="YES",
    )
    given = tuple(ImageFile(path.stem, path) for path in [*scout, *slices])
    card = served(tmp_path, segmentation_card("levels"), url=server.url, protocol="http")
    try:
        # What the server says is no answer; but it was asked.
        with pytest.raises(EngineFailure):
            open_engine(card).run(Job(card.path, {"ct": given}))
        asked = len(server.requests)
        assert any(path.endswith("/infer") for path, _, _ in server.requests)
        dataset = dcmread(slices[1])
        dataset.BurnedInAnnotation = "YES"
        dataset.save_as(slices[1])
        refused = open_engine(card).run(Job(card.path, {"ct": given})).not_analysed
        assert refused is not None
        assert refused.reason == "burned-in-annotation"
        assert not any(path.endswith("/infer") for path, _, _ in server.requests[asked:])
    finally:
        server.close()


def test_the_token_comes_from_the_environment_and_goes_with_every_request(
    talk: Callable[..., KServeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineFailure, match="MODEL_TOKEN is not set"):
        talk(output(), {"token_environment": "MODEL_TOKEN"})
    monkeypatch.setenv("MODEL_TOKEN", "s3cret")
    model = talk(output(), {"token_environment": "MODEL_TOKEN"})
    model.infer(FEEDS)
    assert {headers.get("authorization") for _, headers, _ in model.test_server.requests} == {"Bearer s3cret"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "http://user:pass@host:1"}, "without a password"),
        ({"url": "grpc://host:1"}, "expected http://"),
        ({"url": "http://host:1", "token_environment": "T"}, "TLS only"),
        ({"url": "https://host:1", "token_environment": "OVERREAD_T"}, "begins with OVERREAD"),
        ({"url": "http://host:1", "ca": "ca.pem"}, "no TLS"),
        ({"url": "http://host:1", "version": ""}, "version"),
    ],
)
def test_a_card_with_a_wrong_address_is_refused(tmp_path: Path, options: dict[str, str], told: str) -> None:
    with pytest.raises(CardError, match=told):
        served(tmp_path, classification_card(), **({"protocol": "http"} | options))


def test_over_tls_only_a_server_that_the_authority_vouches_for_is_asked(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    for tls, trusted in ((authority.issue("server"), True), (self_signed(tmp_path, "stranger"), False)):
        plain = Server(output(), tls)
        liar = Liar(lambda context: said())
        server = grpc.server(futures.ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(liar, server)
        keys = [(tls.key.read_bytes(), tls.certificate.read_bytes())]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(keys))
        server.start()
        try:
            for protocol, url in (("http", plain.url), ("grpc", f"grpcs://127.0.0.1:{port}")):
                card = served(
                    tmp_path, classification_card(), url=url, protocol=protocol, ca=str(authority.certificate)
                )
                if trusted:
                    model = open_model(card)
                    assert model.infer(FEEDS)["output"].shape == (1, 1)
                    model.close()
                else:
                    with pytest.raises(EngineFailure, match="no connection"):
                        open_model(card)
        finally:
            server.stop(0).wait()
            plain.close()
        assert bool(plain.requests) == trusted


class Liar(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A gRPC server whose model answers what a test says."""

    def __init__(self, infer: Callable[[Any], Any]) -> None:
        self.infer = infer
        self.asked = 0

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="test", version="1")

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        kind = service_pb2.ModelMetadataResponse.TensorMetadata
        return service_pb2.ModelMetadataResponse(
            name="levels",
            versions=["3"],
            inputs=[kind(name="image", datatype="FP32", shape=[-1, 1, 64, 64])],
            outputs=[kind(name="probability", datatype="FP32", shape=[-1, 1])],
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked += 1
        return self.infer(context)


def said(shape: tuple[int, ...] = (1, 1), data: bytes = struct.pack("<f", 0.5), **changes: Any) -> Any:
    one = {"name": "probability", "datatype": "FP32", "shape": shape} | changes
    kind = service_pb2.ModelInferResponse
    return kind(
        model_name="levels", model_version="3", outputs=[kind.InferOutputTensor(**one)], raw_output_contents=[data]
    )


def stall(context: Any) -> Any:
    while context.is_active():
        time.sleep(0.02)
    return said()


def refuse(context: Any) -> Any:
    context.abort(grpc.StatusCode.INTERNAL, "boom")


@pytest.fixture
def grpc_liar(tmp_path: Path) -> Iterator[tuple[Liar, Callable[..., KServeModel]]]:
    liar = Liar(lambda context: said())
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(liar, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    opened: list[KServeModel] = []

    def start(**options: Any) -> KServeModel:
        chosen = {"timeout_seconds": 0.6, "most_answer_mb": 1, "backoff_seconds": 0.01} | options
        card = served(tmp_path, classification_card(), url=f"grpc://127.0.0.1:{port}", protocol="grpc", **chosen)
        opened.append(open_model(card))
        return opened[-1]

    yield liar, start
    for one in opened:
        one.close()
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("infer", "reason", "told"),
    [
        (lambda context: said((1, 2)), "broke", "has 4 bytes"),
        (lambda context: said((1, 2), bytes(8)), "broke", r"shape \[1, 2\]"),
        (lambda context: said(datatype="INT32"), "broke", "as INT32"),
        (lambda context: said(data=struct.pack("<f", float("inf"))), "broke", "no numbers"),
        (lambda context: said(name="x"), "broke", "did not answer"),
        (lambda context: said((1, 1 << 20), bytes(4 << 20)), "broke", "RESOURCE_EXHAUSTED"),
        (stall, "overran-time", "within 0.6 s"),
        (refuse, "broke", "INTERNAL: boom"),
    ],
    ids=["truncated", "shape", "datatype", "infinity", "name", "flood", "hang", "error"],
)
def test_over_grpc_the_same_lies_are_not_believed(
    grpc_liar: tuple[Liar, Callable[..., KServeModel]], infer: Callable[[Any], Any], reason: str, told: str
) -> None:
    liar, start = grpc_liar
    model = start()
    assert model.infer(FEEDS)["output"].tolist() == [[0.5]]
    liar.infer, liar.asked = infer, 0
    with pytest.raises(EngineFailure, match=told) as caught:
        model.infer(FEEDS)
    assert caught.value.reason == reason
    assert liar.asked == 1
