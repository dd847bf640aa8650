"""What an ONNX file refers to, read without running it and before any runtime opens it.

A tensor of an ONNX file may lie in another file that it names by a path ("external data", onnx/docs/ExternalData.md).
Runtimes refuse paths that leave the folder, but read any file inside it, also one whose SHA-256 no card has
checked. So the places are listed here first, and compared with the card's own list.

Only the protobuf wire format (protobuf.dev, "Encoding") and the field numbers of onnx.proto3 are needed for that. The
library ``onnx`` would read all weights into memory and costs half a second of every engine's start.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inference.errors import EngineFailure

__all__ = ["OnnxContents", "describe", "made_by"]

#: Subgraphs of If, Loop and Scan: as deep as any real model goes, and no deeper than Python's own stack allows.
_DEEPEST = 64

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL = {7: "graph", 25: "function"}
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_FUNCTION = {7: "node", 11: "attribute"}
_NODE = {5: "attribute"}
_ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_SPARSE = {1: "tensor", 2: "tensor"}
_FIELDS = {
    "model": _MODEL,
    "graph": _GRAPH,
    "function": _FUNCTION,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
    "sparse": _SPARSE,
}
_OP_TYPE, _EXTERNAL_DATA = 4, 13
_NODE_INPUT, _NODE_OUTPUT, _TENSOR_NAME, _DATA_TYPE = 1, 2, 8, 2
#: TensorProto's float_data, int32_data and raw_data.
_VALUES = {4, 5, 9}
#: TensorProto.INT8 and TensorProto.INT32.
_SIGNED = {3, 6}
#: TensorProto.FLOAT, FLOAT16 and BFLOAT16.
_FLOATS: dict[int, Literal["fp32", "fp16", "bf16"]] = {1: "fp32", 10: "fp16", 16: "bf16"}
_QDQ = {b"QuantizeLinear", b"DequantizeLinear"}
_INTEGER = {b"QLinearConv", b"QLinearMatMul", b"ConvInteger", b"MatMulInteger", b"DynamicQuantizeLinear"}
#: What changes where values stand or how they are written, and no value.
_JOINING = {b"Concat"}
_MOVING = _JOINING | {
    *(b"Identity", b"Reshape", b"Slice", b"Cast", b"CastLike", b"Squeeze", b"Unsqueeze", b"Flatten", b"Transpose"),
    *(b"Gather", b"Split", b"Expand", b"QuantizeLinear", b"DequantizeLinear"),
}
_LONGEST_NAME = 4096
#: One zero point a channel, of four bytes each, is no longer than this in any real model.
_LOOKED_AT = 1 << 16

_Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class OnnxContents:
    """What was found in an ONNX file.

    ``external`` are the locations of external data, in the order of their first use: relative to the file's folder, or
    anything else that its writer has put there. ``integers`` says whether the graph computes with integers, and how:
    symmetric means that every zero point is an int8 (for a bias, int32) 0; one that cannot be seen here (the graph
    computes it, or it is left out, which ONNX takes as uint8) counts as asymmetric. ``precision`` is the file's own.
    """

    external: tuple[str, ...] = ()
    integers: Literal["symmetric", "asymmetric"] | None = None
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"


def describe(path: Path) -> OnnxContents:
    """Read what an ONNX file refers to and computes with.

    Raises
    ------
    EngineFailure
        ``broke``, if the file is no ONNX file.
    """
    external: dict[str, None] = {}
    wanted: set[bytes] = set()
    zeros: set[bytes] = set()
    bytes_of: Counter[int] = Counter()
    integers, hidden = False, False
    for kind, data, place in _walk(path):
        if kind == "node":
            operator, inputs = _operator(data, place)
            if operator in _QDQ:
                integers = True
                if len(inputs) > 2 and inputs[2]:
                    wanted.add(inputs[2])
                else:
                    hidden = True
            elif operator in _INTEGER:
                integers, hidden = True, True
        else:
            tensor = _tensor(data, place)
            bytes_of[tensor.type] += tensor.size
            if tensor.zero:
                zeros.add(tensor.name)
            if tensor.location is not None:
                external[tensor.location] = None
    if integers:
        form: Literal["symmetric", "asymmetric"] = "asymmetric" if hidden or wanted - zeros else "symmetric"
        return OnnxContents(tuple(external), form, "int8")
    most = max(_FLOATS, key=lambda number: bytes_of[number])
    return OnnxContents(tuple(external), None, _FLOATS[most])


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: bytes
    type: int
    size: int
    zero: bool
    location: str | None


def made_by(path: Path, output: str) -> frozenset[str]:
    """Return which operators make the values of an output, behind those that only move, join or cast them.

    Raises
    ------
    EngineFailure
        ``broke``, if the file is no ONNX file.
    """
    makers: dict[bytes, tuple[bytes, list[bytes]]] = {}
    for kind, data, place in _walk(path):
        if kind == "node":
            operator, inputs = _operator(data, place)
            made = [data[a:b] for n, w, (a, b) in _fields(data, place) if n == _NODE_OUTPUT and w == _BYTES]
            # Of names that subgraphs use again the graph's own counts, which is walked first.
            makers |= {name: (operator, inputs) for name in made if name not in makers}
    found: set[str] = set()
    seen: set[bytes] = set()
    front = [output.encode()]
    while front:
        name = front.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        operator, inputs = makers[name]
        if operator in _MOVING:
            front += inputs if operator in _JOINING else inputs[:1]
        else:
            found.add(operator.decode("utf-8", "replace"))
    return frozenset(found)


def _operator(data: mmap.mmap, place: _Place) -> tuple[bytes, list[bytes]]:
    operator, inputs = b"", []
    for number, wire, (start, end) in _fields(data, place):
        if wire == _BYTES and end - start < _LONGEST_NAME:
            if number == _OP_TYPE:
                operator = data[start:end]
            elif number == _NODE_INPUT:
                inputs.append(data[start:end])
    return operator, inputs


def _tensor(data: mmap.mmap, place: _Place) -> _Tensor:
    name, kind, size, zero, location = b"", 0, 0, True, None
    for number, wire, (start, end) in _fields(data, place):
        if number == _DATA_TYPE and wire == _VARINT:
            kind = _varint(data, start, end)[0]
        elif number == _TENSOR_NAME and wire == _BYTES:
            name = data[start : min(end, start + _LONGEST_NAME)]
        elif number in _VALUES:
            size += end - start
            zero = zero and not any(data[start : min(end, start + _LOOKED_AT)])
        elif number == _EXTERNAL_DATA and wire == _BYTES:
            zero = False
            entry = {n: data[a:b] for n, w, (a, b) in _fields(data, (start, end)) if w == _BYTES}
            if entry.get(1) == b"location":
                location = entry.get(2, b"").decode("utf-8", "replace")
            elif entry.get(1) == b"length" and entry.get(2, b"").isdigit():
                size += int(entry[2])
    return _Tensor(name, kind, size, zero and kind in _SIGNED, location)


def _walk(path: Path) -> Iterator[tuple[str, mmap.mmap, _Place]]:
    """Yield every node and tensor of a file as (kind, the file's bytes, where it lies)."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            pending: list[tuple[str, _Place, int]] = [("model", (0, len(data)), 0)]
            whole = False
            while pending:
                kind, place, depth = pending.pop()
                if kind in ("node", "tensor"):
                    yield kind, data, place
                if kind == "tensor":
                    continue
                if depth > 4 * _DEEPEST:
                    raise ValueError("graphs inside graphs without end")
                inside = [
                    (_FIELDS[kind][number], where, depth + 1)
                    for number, wire, where in _fields(data, place)
                    if wire == _BYTES and number in _FIELDS[kind]
                ]
                whole = whole or any(found == "graph" for found, _, _ in inside)
                pending.extend(reversed(inside))
            if not whole:
                raise ValueError("it holds no graph")
    except (OSError, ValueError) as problem:
        raise EngineFailure(
            "broke",
            f"{path.name} is no ONNX file ({problem}): export the model again, or name another file in the card",
        ) from problem


def _fields(data: mmap.mmap, place: _Place) -> Iterator[tuple[int, int, _Place]]:
    """Yield (field number, wire type, where its bytes lie) of one message; contents of integers are passed over."""
    at, end = place
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, after = _varint(data, at, end)
        elif wire == _FIXED64:
            after = at + 8
        elif wire == _FIXED32:
            after = at + 4
        elif wire == _BYTES:
            length, at = _varint(data, at, end)
            after = at + length
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if number == 0 or after > end:
            raise ValueError(f"a field at byte {at} leaves what holds it")
        yield number, wire, (at, after)
        at = after


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number at byte {at} has no end")
