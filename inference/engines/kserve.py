"""Runs a model that lies on a KServe V2 server: Triton, OpenVINO Model Server, MLServer and others, by HTTP or gRPC.

Only tensors leave the node: a request holds the card's tensors by their names, their shapes and a random number, and
nothing that names a patient, a study or an image. What comes back is believed only after it was checked.
"""

from __future__ import annotations

import os
import random
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from inference.engines.kserve_tensors import ModelInfo, Peer, ServerInfo, TensorInfo, Trouble, checked, fits, prepared
from inference.errors import EngineFailure

if TYPE_CHECKING:
    import numpy.typing as npt

    from inference.card import Card
    from inference.options import KServe

__all__ = ["KServeModel", "open_model"]

T = TypeVar("T")

#: The roles under a card's ``tensors`` that the model answers; all others are fed.
_ANSWERED = frozenset({"output", "features", "boxes", "scores", "classes"})
_MOST_PAUSE_SECONDS = 10.0


class KServeModel:
    """One model on one server (:class:`inference.engine.Model`); who serves it was checked when it opened.

    Attributes
    ----------
    provider
        How it is reached, and what the server says of itself and of the model: ``kserve-http mlserver 1.7.1: chest 3``.
    precision
        The datatype of the model's first output.
    """

    def __init__(self, card: Card, options: KServe, peer: Peer) -> None:
        self._options, self._peer = options, peer
        self._outputs = {role: name for role, name in card.tensors.items() if role in _ANSWERED}
        self._where = f"{card.path}: kserve"
        self._retry(peer.ready)
        self._server: ServerInfo = self._retry(peer.server)
        self._model: ModelInfo = self._retry(peer.model)
        self._check(card)
        binary = (
            options.binary
            if isinstance(options.binary, bool)
            # The kserve package's own server reads binary tensors and says nothing of it.
            else "binary_tensor_data" in self._server.extensions or self._server.name == "kserve"
        )
        # Whether tensors go as binary, and whether that is known to be right. Jobs of several threads read and set both
        # at once, each going by the form that it has sent itself.
        self._form = (binary, options.binary != "auto")
        server = " ".join(one for one in (self._server.name, self._server.version) if one) or "unnamed"
        platform = f" ({self._model.platform})" if self._model.platform else ""
        self.provider = f"kserve-{options.protocol} {server}: {self._model.name[:64]} {options.version}{platform}"
        first = self._model.outputs.get(next(iter(self._outputs.values())))
        self.precision = first.datatype.lower() if first else "unknown"

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run once; see :class:`inference.engine.Model`.

        Raises
        ------
        EngineFailure
            ``unreachable``, ``overran-time`` or ``broke``.
        """
        ready = {name: prepared(array, self._model.inputs.get(name), name) for name, array in feeds.items()}
        names = list(self._outputs.values())
        binary, known = self._form

        def ask() -> Any:
            return self._peer.infer(uuid.uuid4().hex, ready, names, binary=binary)

        try:
            answer = self._retry(ask, may_change_form=not known)
        except _Disliked as disliked:
            # Asked once, in the other form; whichever works is kept.
            binary = not binary
            try:
                answer = self._retry(ask)
            except EngineFailure:
                raise disliked from None
        self._form = (binary, True)
        if answer.model and answer.model != self._options.model:
            raise EngineFailure("broke", f"another model answered than {self._options.model!r}")
        if answer.version and answer.version != self._options.version:
            raise EngineFailure("broke", f"another version answered than {self._options.version!r}")
        return {
            role: checked(answer.tensors, name, self._model.outputs.get(name)) for role, name in self._outputs.items()
        }

    def close(self) -> None:
        """Let go of the server."""
        self._peer.close()

    def _retry(self, ask: Callable[[], T], *, may_change_form: bool = False) -> T:
        """Ask, and ask again after growing pauses while that is safe."""
        pause = self._options.backoff_seconds
        for left in range(self._options.retries, -1, -1):
            try:
                return ask()
            except Trouble as trouble:
                if trouble.other_form and may_change_form:
                    raise _Disliked(trouble.reason, trouble.text) from trouble
                if not trouble.again or not left:
                    where = f" ({self._options.url})" if trouble.reason == "unreachable" else ""
                    raise EngineFailure(trouble.reason, trouble.text + where) from trouble
            # Many nodes whose server came back must not all ask in the same moment.
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(2 * pause, _MOST_PAUSE_SECONDS)
        raise AssertionError("unreachable")

    def _check(self, card: Card) -> None:
        """Compare what the server says of its model with the card.

        Raises
        ------
        EngineFailure
            ``broke``, naming the key of the card and what the server has.
        """
        model, options = self._model, self._options
        if model.name != options.model:
            raise EngineFailure("broke", f"{self._where}.model: the server calls it {model.name[:64]!r}")
        if model.versions and options.version not in model.versions:
            there = ", ".join(model.versions[:5])
            raise EngineFailure("broke", f"{self._where}.version: the server has {there[:200]}")
        for role, name in card.tensors.items():
            kind, there_ = ("output", model.outputs) if role in _ANSWERED else ("input", model.inputs)
            if there_ and name not in there_:
                raise EngineFailure(
                    "broke",
                    f"{card.path}: tensors.{role}: the server's model has no {kind} {name!r} "
                    f"(its {kind}s: {', '.join(there_)[:200]})",
                )
        unfed = [name for name in model.inputs if name not in card.tensors.values()]
        if unfed:
            raise EngineFailure(
                "broke", f"{card.path}: tensors: the server's model wants an input {unfed[0]!r} that no key names"
            )
        for name, wanted in options.expect.items():
            found: TensorInfo | None = model.inputs.get(name) or model.outputs.get(name)
            if found is None:
                raise EngineFailure("broke", f"{self._where}.expect.{name}: the server declares no such tensor")
            if found.datatype != wanted.datatype or not fits(found.shape, wanted.shape):
                raise EngineFailure(
                    "broke",
                    f"{self._where}.expect.{name}: expected {wanted.datatype} {list(wanted.shape)}, the server has "
                    f"{found.datatype} {list(found.shape)}",
                )


class _Disliked(EngineFailure):
    """The server refused a request for what may be its form."""


def open_model(card: Card) -> KServeModel:
    """Find the card's model on its server, and check that it is what the card means.

    Raises
    ------
    EngineFailure
        ``unreachable``, ``overran-time`` or ``broke``.
    """
    options = card.kserve
    assert options is not None
    token = None
    if options.token_environment is not None:
        token = os.environ.get(options.token_environment)
        if not token:
            raise EngineFailure(
                "broke", f"{card.path}: kserve.token_environment: {options.token_environment} is not set"
            )
    peer = _http(card, options, token) if options.protocol == "http" else _grpc(card, options, token)
    try:
        return KServeModel(card, options, peer)
    except BaseException:
        peer.close()
        raise


def _http(card: Card, options: KServe, token: str | None) -> Peer:
    from inference.engines.kserve_http import HttpPeer

    context = None
    if options.url.startswith("https:"):
        try:
            context = ssl.create_default_context(cafile=str(_ca(card, options)) if options.ca else None)
        except (OSError, ssl.SSLError) as problem:
            raise EngineFailure("broke", f"{card.path}: kserve.ca: {type(problem).__name__}") from problem
    return HttpPeer(
        options.url,
        options.model,
        options.version,
        seconds=options.timeout_seconds,
        connect_seconds=options.connect_seconds,
        most_bytes=options.most_answer_mb << 20,
        token=token,
        context=context,
    )


def _grpc(card: Card, options: KServe, token: str | None) -> Peer:
    from inference.engines.kserve_grpc import GrpcPeer

    roots = None
    if options.url.startswith("grpcs:"):
        try:
            roots = _ca(card, options).read_bytes() if options.ca else b""
        except OSError as problem:
            raise EngineFailure("broke", f"{card.path}: kserve.ca: {type(problem).__name__}") from problem
    return GrpcPeer(
        urlsplit(options.url).netloc,
        options.model,
        options.version,
        seconds=options.timeout_seconds,
        connect_seconds=options.connect_seconds,
        most_bytes=options.most_answer_mb << 20,
        token=token,
        roots=roots,
    )


def _ca(card: Card, options: KServe) -> Path:
    return card.directory / str(options.ca)
