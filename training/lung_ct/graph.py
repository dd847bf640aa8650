"""Write ONNX graphs node by node: a thin builder over onnx.helper."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class Builder:
    """Collects nodes; every method returns the name of the value that it made.

    A builder made with `outer` is the body of a Scan: it may use the outer graph's values by name.
    """

    def __init__(self, name: str, outer: Builder | None = None) -> None:
        self.name = name
        self.outer = outer
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._count = 0

    def _new(self, hint: str) -> str:
        self._count += 1
        return f"{self.name}_{hint}_{self._count}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        out = self._new(kind.lower())
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant."""
        name = self._new("const")
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def ints(self, value: Any) -> str:
        """Add an int64 constant."""
        return self.const(value, np.int64)

    def input(self, name: str, dtype: int, shape: list[Any] | None) -> str:
        """Declare a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, dtype: int, shape: list[Any] | None, name: str | None = None) -> None:
        """Declare a graph output."""
        out = name or self._new("out")
        self.nodes.append(helper.make_node("Identity", [value], [out]))
        self.outputs.append(helper.make_tensor_value_info(out, dtype, shape))

    def graph(self) -> onnx.GraphProto:
        """Return the graph."""
        return helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.constants)

    def scan(self, body: Builder, *sequences: str) -> str:
        """Run `body` once for each element of the sequences' first axis and stack its one output."""
        out = self._new("scan")
        self.nodes.append(
            helper.make_node("Scan", list(sequences), [out], body=body.graph(), num_scan_inputs=len(sequences))
        )
        return out

    # Arithmetic in words, so that the formulas stay readable.
    def add(self, a: str, b: str) -> str:
        """Return a + b."""
        return self.op("Add", a, b)

    def sub(self, a: str, b: str) -> str:
        """Return a - b."""
        return self.op("Sub", a, b)

    def mul(self, a: str, b: str) -> str:
        """Return a * b."""
        return self.op("Mul", a, b)

    def div(self, a: str, b: str) -> str:
        """Return a / b."""
        return self.op("Div", a, b)

    def clip(self, a: str, low: float, high: float) -> str:
        """Return a limited to low..high."""
        return self.op("Clip", a, self.const(low), self.const(high))

    def integer(self, a: str) -> str:
        """Cast to int64."""
        return self.op("Cast", a, to=TensorProto.INT64)

    def real(self, a: str) -> str:
        """Cast to float32."""
        return self.op("Cast", a, to=TensorProto.FLOAT)

    def dimension(self, shape: str, axis: int) -> str:
        """Return one entry of a shape as an int64 scalar."""
        return self.op("Gather", shape, self.ints(axis), axis=0)

    def arange(self, n: str) -> str:
        """Return 0 .. n-1 as int64."""
        return self.op("Range", self.ints(0), n, self.ints(1))

    def vector(self, *scalars: str) -> str:
        """Return a 1-D tensor of int64 scalars (a shape)."""
        return self.op("Concat", *(self.op("Unsqueeze", s, self.ints([0])) for s in scalars), axis=0)

    def resampler(self, source: str, target: str, step: str) -> str:
        """Return the matrix [target, source] that resamples one axis.

        Both axes share their centre; `step` is the distance between target samples in source samples (float
        scalar). Where the target is coarser, every sample is the mean over its own extent; else it is linear.
        """
        one, half = self.const(1.0), self.const(0.5)
        n, m = self.real(source), self.real(target)
        middle_out = self.mul(self.sub(m, one), half)
        middle_in = self.mul(self.sub(n, one), half)
        at = self.add(self.mul(self.sub(self.real(self.arange(target)), middle_out), step), middle_in)
        at = self.op("Min", self.op("Max", at, self.const(0.0)), self.sub(n, one))
        distance = self.op(
            "Abs",
            self.sub(
                self.op("Unsqueeze", at, self.ints([1])),
                self.op("Unsqueeze", self.real(self.arange(source)), self.ints([0])),
            ),
        )
        reach = self.mul(self.add(self.op("Max", step, one), one), half)
        weights = self.clip(self.sub(reach, distance), 0.0, 1.0)
        return self.div(weights, self.op("ReduceSum", weights, self.ints([1]), keepdims=1))
