"""Tensors of the KServe V2 protocol: its datatypes, and what a server's answer has to be before it is believed.

Source: the Open Inference Protocol (V2), "Tensor Data Types" and "Inference Response", with the binary tensor data
extension of Triton. Raw data are in row-major order and little endian.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from inference.errors import EngineFailure

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "DATATYPES",
    "Answer",
    "ModelInfo",
    "Peer",
    "ServerInfo",
    "TensorInfo",
    "Trouble",
    "broke",
    "checked",
    "from_list",
    "from_raw",
    "prepared",
    "to_raw",
]

_NUMPY = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = {dtype: name for name, dtype in _NUMPY.items()}
_FLOATS = frozenset({"FP16", "FP32", "FP64"})


class Trouble(Exception):
    """A request that got no usable answer.

    Parameters
    ----------
    reason, text
        As of :class:`inference.errors.EngineFailure`.
    again
        Whether the same request may be sent once more: it never reached the model, or the server asked for patience.
    other_form
        Whether the server may only have disliked how the tensors were written (binary or JSON).
    """

    def __init__(self, reason: str, text: str, *, again: bool = False, other_form: bool = False) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.again = again
        self.other_form = other_form


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as a server declares it; -1 is a dimension of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    name: str = ""
    version: str = ""
    extensions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server says of a model; no tensors where it declares none."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: Mapping[str, TensorInfo] = field(default_factory=dict)
    outputs: Mapping[str, TensorInfo] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run gave, and which model says so; empty where the server does not say."""

    tensors: dict[str, npt.NDArray[Any]]
    model: str = ""
    version: str = ""


class Peer(Protocol):
    """A server of one model, over one of the two protocols. Every call may raise :class:`Trouble`."""

    def ready(self) -> None:
        """Return when server and model say that they are ready."""
        ...

    def server(self) -> ServerInfo:
        """Return what the server says of itself."""
        ...

    def model(self) -> ModelInfo:
        """Return what the server says of the model."""
        ...

    def infer(
        self, request: str, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], *, binary: bool
    ) -> Answer:
        """Run once; return at least the outputs that were asked for."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def broke(text: str) -> EngineFailure:
    """Return the failure of a server that answered what cannot be believed."""
    return EngineFailure("broke", text)


def prepared(array: npt.NDArray[Any], declared: TensorInfo | None, name: str) -> npt.NDArray[Any]:
    """Return an input as the server declares it: floats are converted among each other, everything else has to fit.

    Raises
    ------
    EngineFailure
        ``broke``, if shape or datatype are not what the server declares.
    """
    array = np.asarray(array)
    if declared is not None:
        if not fits(array.shape, declared.shape):
            raise broke(f"the server's {name!r} has shape {list(declared.shape)}; the card feeds {list(array.shape)}")
        found = DATATYPES.get(array.dtype.newbyteorder("<"))
        if found != declared.datatype:
            if declared.datatype not in _FLOATS or found not in _FLOATS:
                raise broke(f"the server's {name!r} is {declared.datatype}; the card feeds {found or array.dtype}")
            array = array.astype(_NUMPY[declared.datatype])
    if array.dtype.newbyteorder("<") not in DATATYPES:
        raise broke(f"{name!r} is {array.dtype}, for which the protocol has no datatype")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def fits(shape: Sequence[int], declared: Sequence[int]) -> bool:
    """Whether a shape is one that a declaration with free dimensions (-1) means."""
    return len(shape) == len(declared) and all(
        wanted in (-1, there) for there, wanted in zip(shape, declared, strict=True)
    )


def to_raw(array: npt.NDArray[Any]) -> bytes:
    """Return a prepared tensor's bytes."""
    return array.tobytes()


def from_raw(name: str, datatype: object, shape: object, data: bytes | memoryview) -> npt.NDArray[Any]:
    """Return a tensor from its bytes.

    Raises
    ------
    EngineFailure
        ``broke``, if datatype, shape and length do not belong together.
    """
    sizes = _shape(name, shape)
    if datatype == "BF16":
        if len(data) != 2 * prod(sizes):
            raise broke(f"the server's {name!r} has {len(data)} bytes; BF16 of {list(sizes)} has {2 * prod(sizes)}")
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(sizes)
    dtype = _dtype(name, datatype)
    if len(data) != dtype.itemsize * prod(sizes):
        raise broke(
            f"the server's {name!r} has {len(data)} bytes; {datatype} of {list(sizes)} has "
            f"{dtype.itemsize * prod(sizes)}"
        )
    return np.frombuffer(data, dtype).reshape(sizes)


def from_list(name: str, datatype: object, shape: object, data: object) -> npt.NDArray[Any]:
    """Return a tensor from numbers in a list, flat or nested.

    Raises
    ------
    EngineFailure
        ``broke``, if datatype, shape and numbers do not belong together.
    """
    sizes, dtype = _shape(name, shape), _dtype(name, datatype)
    try:
        # Never an array of objects: a ragged or worded list raises.
        values = np.asarray(data if isinstance(data, (list, np.ndarray)) else [None])
    except (TypeError, ValueError, OverflowError, RecursionError) as problem:
        raise broke(f"the server's {name!r} is no array of numbers") from problem
    if values.size == 0:
        values = values.astype(dtype)
    kinds = {"b": "biu", "u": "iu", "i": "iu"}.get(dtype.kind, "fiu")
    if values.dtype.kind not in kinds:
        raise broke(f"the server's {name!r} holds values that are no {datatype}")
    if dtype.kind in "ui" and values.size:
        limits = np.iinfo(dtype)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise broke(f"the server's {name!r} holds values that are no {datatype}")
    if values.size != prod(sizes):
        raise broke(f"the server's {name!r} has {values.size} values; its shape {list(sizes)} has {prod(sizes)}")
    return values.astype(dtype).reshape(sizes)


def checked(answer: Mapping[str, npt.NDArray[Any]], name: str, declared: TensorInfo | None) -> npt.NDArray[Any]:
    """Return one output after it was found to be there, as declared, and finite.

    Raises
    ------
    EngineFailure
        ``broke``, saying which of these does not hold.
    """
    if name not in answer:
        there = ", ".join(sorted(answer)[:5]) or "none"
        raise broke(f"the server did not answer {name!r} (its outputs: {there[:200]})")
    array = answer[name]
    if declared is not None:
        found = DATATYPES.get(array.dtype)
        if declared.datatype not in (found, "BF16"):
            raise broke(f"the server answered {name!r} as {found}; it declares {declared.datatype}")
        if not fits(array.shape, declared.shape):
            raise broke(
                f"the server answered {name!r} in shape {list(array.shape)}; it declares {list(declared.shape)}"
            )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise broke(f"the server answered {name!r} with values that are no numbers")
    return array


def _dtype(name: str, datatype: object) -> np.dtype[Any]:
    dtype = _NUMPY.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise broke(f"the server's {name!r} has a datatype that is not read")
    return dtype


def _shape(name: str, shape: object) -> tuple[int, ...]:
    try:
        sizes: tuple[Any, ...] = tuple(shape)  # type: ignore[arg-type]
    except TypeError as problem:
        raise broke(f"the server's {name!r} has no shape") from problem
    if any(not isinstance(one, int) or isinstance(one, bool) or not 0 <= one < 2**31 for one in sizes):
        raise broke(f"the server's {name!r} has an impossible shape")
    return sizes
