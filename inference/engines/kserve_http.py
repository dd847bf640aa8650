"""KServe V2 over HTTP: JSON, and the binary tensor data extension where the server has it.

No connection outlives a request, no redirect is followed, no proxy of the environment is used, and nothing that is
compressed is taken: what comes back is bounded in bytes and in time whatever the server does.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from inference.engines.kserve_tensors import (
    DATATYPES,
    Answer,
    ModelInfo,
    ServerInfo,
    TensorInfo,
    Trouble,
    broke,
    from_list,
    from_raw,
    to_raw,
)
from inference.hangup import HangUp

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["HttpPeer"]

#: Answers that are no tensors are small.
_MOST_WORDS = 4 << 20
_LENGTH = "Inference-Header-Content-Length"
_NO_ANSWER = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)


class HttpPeer:
    """A KServe V2 server over HTTP (:class:`inference.engines.kserve_tensors.Peer`).

    Parameters
    ----------
    url
        The server's root, above ``/v2``.
    seconds, connect_seconds
        For a whole request, and for its connection.
    most_bytes
        Of an answer.
    """

    def __init__(
        self,
        url: str,
        model: str,
        version: str,
        *,
        seconds: float,
        connect_seconds: float,
        most_bytes: int,
        token: str | None,
        context: ssl.SSLContext | None,
    ) -> None:
        self._root = url.rstrip("/") + "/v2"
        self._path = f"/models/{quote(model, safe='')}/versions/{quote(version, safe='')}"
        self._seconds = seconds
        self._timeout = httpx.Timeout(seconds, connect=connect_seconds)
        self._most = most_bytes
        self._verify: ssl.SSLContext | bool = context if context is not None else url.startswith("https:")
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "overread"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def ready(self) -> None:
        """Ask for the readiness of the server and of the model."""
        for path in ("/health/ready", f"{self._path}/ready"):
            try:
                self._ask("GET", path)
            except Trouble as trouble:
                if "answered 4" in trouble.text and not trouble.again:
                    # Servers say "not ready" and "not yet there" with 400 and 404 too.
                    raise Trouble(trouble.reason, trouble.text, again=True) from trouble
                raise

    def server(self) -> ServerInfo:
        """Ask ``/v2``."""
        said = self._object("")
        extensions = said.get("extensions")
        return ServerInfo(
            name=str(said.get("name", ""))[:64],
            version=str(said.get("version", ""))[:64],
            extensions=frozenset(str(one) for one in extensions) if isinstance(extensions, list) else frozenset(),
        )

    def model(self) -> ModelInfo:
        """Ask for the model's metadata."""
        said = self._object(self._path)
        versions = said.get("versions")
        return ModelInfo(
            name=str(said.get("name", "")),
            versions=tuple(str(one) for one in versions) if isinstance(versions, list) else (),
            platform=str(said.get("platform", ""))[:64],
            inputs=_tensors(said.get("inputs")),
            outputs=_tensors(said.get("outputs")),
        )

    def infer(
        self, request: str, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], *, binary: bool
    ) -> Answer:
        """Run once."""
        inputs: list[dict[str, Any]] = []
        raw: list[bytes] = []
        for name, array in feeds.items():
            entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype]}
            if binary:
                raw.append(to_raw(array))
                entry["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                entry["data"] = array.ravel().tolist()
            inputs.append(entry)
        asked: list[dict[str, Any]] = [
            {"name": name, "parameters": {"binary_data": True}} if binary else {"name": name} for name in outputs
        ]
        head = json.dumps({"id": request, "inputs": inputs, "outputs": asked}, allow_nan=False).encode()
        headers = {"Content-Type": "application/octet-stream" if binary else "application/json"}
        if binary:
            headers[_LENGTH] = str(len(head))
        response, body = self._ask("POST", f"{self._path}/infer", content=b"".join((head, *raw)), headers=headers)
        return _answer(response.headers.get(_LENGTH), body)

    def close(self) -> None:
        """Nothing is held between requests."""

    def _object(self, path: str) -> dict[str, Any]:
        _, body = self._ask("GET", path)
        return _json(body)

    def _ask(
        self, method: str, path: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[httpx.Response, bytes]:
        """Send one request; return its answer (200) with the whole of its body."""
        most = self._most if method == "POST" else _MOST_WORDS
        body = bytearray()
        hang_up = HangUp(self._seconds)
        try:
            with (
                hang_up,
                httpx.Client(timeout=self._timeout, verify=self._verify, trust_env=False) as client,
                client.stream(
                    method,
                    self._root + path,
                    content=content,
                    headers={**self._headers, **(headers or {})},
                    extensions={"trace": hang_up.trace},
                ) as response,
            ):
                length = response.headers.get("Content-Length", "0")
                if not length.isdigit() or int(length) > most:
                    raise Trouble("broke", f"the server's answer would have {length[:20]} bytes; {most} are read")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise Trouble("broke", "the server's answer is compressed, which was not asked for")
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > most:
                        raise Trouble("broke", f"the server's answer has no end within {most} bytes")
        except (httpx.ConnectError, httpx.ConnectTimeout) as problem:
            # Nothing was sent: the same request may go out again.
            raise Trouble("unreachable", f"no connection to the model's server: {_kind(problem)}", again=True) from None
        except _NO_ANSWER as problem:
            if hang_up.expired or isinstance(problem, httpx.TimeoutException):
                raise self._late() from None
            # Reading changes nothing on the server, and what it computes twice is the same twice.
            raise Trouble("broke", f"the model's server broke off: {type(problem).__name__}", again=True) from None
        if hang_up.expired:
            raise self._late()
        self._judge(response, bytes(body))
        return response, bytes(body)

    def _late(self) -> Trouble:
        return Trouble("overran-time", f"the model's server gave no whole answer within {self._seconds:g} s")

    @staticmethod
    def _judge(response: httpx.Response, body: bytes) -> None:
        code = response.status_code
        if code == 200:
            return
        if 300 <= code < 400:
            raise Trouble("broke", f"the model's server answered {code}: redirects are not followed")
        said = ""
        try:
            error = json.loads(body).get("error")
            said = f": {' '.join(str(error).split())[:200]}" if error else ""
        except (ValueError, AttributeError, RecursionError):
            pass
        raise Trouble(
            "broke",
            f"the model's server answered {code}{said}",
            again=code in (408, 425, 429, 502, 503, 504),
            other_form=code in (400, 415, 422, 500),
        )


def _kind(problem: Exception) -> str:
    text = str(problem)
    return "its certificate is not accepted" if "CERTIFICATE" in text.upper() else type(problem).__name__


def _json(body: bytes | memoryview) -> dict[str, Any]:
    try:
        said = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise Trouble("broke", "the server's answer is not JSON") from None
    if not isinstance(said, dict):
        raise Trouble("broke", "the server's answer is no JSON object")
    return said


def _tensors(listed: object) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for one in listed if isinstance(listed, list) else []:
        try:
            shape = tuple(int(size) for size in one["shape"])
            info = TensorInfo(str(one["name"]), str(one["datatype"]).removeprefix("TYPE_"), shape)
        except (KeyError, TypeError, ValueError):
            raise Trouble("broke", "the server's description of the model makes no sense") from None
        tensors[info.name] = info
    return tensors


def _answer(header_length: str | None, body: bytes) -> Answer:
    view = memoryview(body)
    end = len(body)
    if header_length is not None:
        if not header_length.isdigit() or int(header_length) > len(body):
            raise Trouble("broke", "the server's answer is shorter than its own header says")
        end = int(header_length)
    said = _json(view[:end])
    raw = view[end:]
    tensors: dict[str, npt.NDArray[Any]] = {}
    listed = said.get("outputs")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise broke("the server's answer holds an output without a name")
        name = one["name"]
        if name in tensors:
            raise broke(f"the server answered {name[:64]!r} twice")
        parameters = one.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            tensors[name] = from_list(name, one.get("datatype"), one.get("shape"), one.get("data"))
            continue
        if not isinstance(size, int) or not 0 <= size <= len(raw):
            raise broke(f"the server's {name!r} is truncated")
        tensors[name] = from_raw(name, one.get("datatype"), one.get("shape"), raw[:size])
        raw = raw[size:]
    if len(raw):
        raise broke(f"the server's answer has {len(raw)} bytes that belong to no output")
    return Answer(tensors, str(said.get("model_name") or ""), str(said.get("model_version") or ""))
