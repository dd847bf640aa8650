"""KServe V2 over gRPC, by the messages that tritonclient ships; tensors go as raw bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["GrpcPeer"]

#: Where the numbers of a datatype lie that did not come as raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class GrpcPeer:
    """A KServe V2 server over gRPC (:class:`inference.engines.kserve_tensors.Peer`).

    Parameters
    ----------
    target
        ``host:port``.
    roots
        The certificates of the authorities to trust, in PEM; the system's where it is empty, no TLS where it is None.
    """

    def __init__(
        self,
        target: str,
        model: str,
        version: str,
        *,
        seconds: float,
        connect_seconds: float,
        most_bytes: int,
        token: str | None,
        roots: bytes | None,
    ) -> None:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self._grpc, self._messages = grpc, service_pb2
        self._model, self._version = model, version
        self._seconds, self._connect_seconds = seconds, connect_seconds
        options = [
            ("grpc.max_receive_message_length", most_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if roots is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots or None), options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._credentials = (("authorization", f"Bearer {token}"),) if token is not None else ()

    def ready(self) -> None:
        """Ask for the readiness of the server and of the model."""
        server = self._call(self._stub.ServerReady, self._messages.ServerReadyRequest(), self._connect_seconds)
        if not server.ready:
            raise Trouble("unreachable", "the model's server says that it is not ready", again=True)
        asked = self._messages.ModelReadyRequest(name=self._model, version=self._version)
        try:
            model = self._call(self._stub.ModelReady, asked, self._seconds)
        except Trouble as trouble:
            raise Trouble(trouble.reason, trouble.text, again=True) from trouble
        if not model.ready:
            raise Trouble("unreachable", "the server says that the model is not ready", again=True)

    def server(self) -> ServerInfo:
        """Ask for the server's metadata."""
        said = self._call(self._stub.ServerMetadata, self._messages.ServerMetadataRequest(), self._seconds)
        return ServerInfo(name=said.name[:64], version=said.version[:64], extensions=frozenset(said.extensions))

    def model(self) -> ModelInfo:
        """Ask for the model's metadata."""
        asked = self._messages.ModelMetadataRequest(name=self._model, version=self._version)
        said = self._call(self._stub.ModelMetadata, asked, self._seconds)
        return ModelInfo(
            name=said.name,
            versions=tuple(said.versions),
            platform=said.platform[:64],
            inputs={one.name: TensorInfo(one.name, one.datatype, tuple(one.shape)) for one in said.inputs},
            outputs={one.name: TensorInfo(one.name, one.datatype, tuple(one.shape)) for one in said.outputs},
        )

    def infer(
        self, request: str, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], *, binary: bool
    ) -> Answer:
        """Run once; here all tensors are binary."""
        del binary
        kinds = self._messages.ModelInferRequest
        asked = kinds(
            model_name=self._model,
            model_version=self._version,
            id=request,
            inputs=[
                kinds.InferInputTensor(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
                for name, array in feeds.items()
            ],
            outputs=[kinds.InferRequestedOutputTensor(name=name) for name in outputs],
            raw_input_contents=[to_raw(array) for array in feeds.values()],
        )
        said = self._call(self._stub.ModelInfer, asked, self._seconds)
        raw = list(said.raw_output_contents)
        if raw and len(raw) != len(said.outputs):
            raise broke(f"the server answered {len(said.outputs)} outputs and the bytes of {len(raw)}")
        tensors: dict[str, npt.NDArray[Any]] = {}
        for number, one in enumerate(said.outputs):
            if one.name in tensors:
                raise broke(f"the server answered {one.name[:64]!r} twice")
            if raw:
                tensors[one.name] = from_raw(one.name, one.datatype, tuple(one.shape), raw[number])
            else:
                place = _CONTENTS.get(one.datatype)
                numbers = list(getattr(one.contents, place)) if place else None
                tensors[one.name] = from_list(one.name, one.datatype, tuple(one.shape), numbers)
        return Answer(tensors, said.model_name, said.model_version)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], message: Any, seconds: float) -> Any:
        """Make one call within a deadline, which holds for the connection too."""
        code = self._grpc.StatusCode
        try:
            return method(message, timeout=seconds, metadata=self._credentials)
        except self._grpc.RpcError as problem:
            status = problem.code()
            details = " ".join((problem.details() or "").split())[:200]
            if status is code.DEADLINE_EXCEEDED:
                raise Trouble("overran-time", f"the model's server gave no whole answer within {seconds:g} s") from None
            if status is code.UNAVAILABLE:
                raise Trouble("unreachable", "no connection to the model's server (UNAVAILABLE)", again=True) from None
            raise Trouble(
                "broke",
                f"the model's server answered {status.name}: {details}",
                again=status is code.RESOURCE_EXHAUSTED and "larger than max" not in details,
            ) from None
