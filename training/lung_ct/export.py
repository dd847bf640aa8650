"""Write the whole lung model as one ONNX file: resampling, network, upsampling, HU criterion and closing.

Every size is worked out inside the graph from the shape and the spacing of the volume. Slices pass one at a time
through Scan, so memory does not grow with their number beyond the coarse volume and the labels themselves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from training.lung_ct.data import PIXEL_MM, SLICE_MM
from training.lung_ct.graph import OPSET, Builder
from training.lung_ct.net import HU_HIGH, HU_LOW, HU_MIDDLE, HU_SCALE, OFFSETS, WIDTHS

State = dict[str, npt.NDArray[np.float32]]

AIR_HU = -400.0  # half way between aerated lung and soft tissue
FINE_MM = 1.5  # grid of the closing
CLOSING = 3  # its radius in steps of that grid: vessels up to about 9 mm count as lung


def _conv(g: Builder, x: str, state: State, conv: str, norm: str) -> str:
    """Add convolution, folded batch normalisation and ReLU."""
    scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
    weight = state[f"{conv}.weight"] * scale[:, None, None, None]
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return g.op("Relu", g.op("Conv", x, g.const(weight), g.const(bias), kernel_shape=[3, 3], pads=[1, 1, 1, 1]))


def _network(g: Builder, x: str, state: State) -> str:
    """Add the U-Net; return class probabilities [1, class, row, column]."""
    kept: list[str] = []
    levels = len(WIDTHS)
    for level in range(levels):
        if level:
            x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        for k in range(1 if level == 0 else 2):
            x = _conv(g, x, state, f"down.{level}.convs.{k}", f"down.{level}.norms.{k}")
        kept.append(x)
    double = g.const([1.0, 1.0, 2.0, 2.0])
    for level in range(levels - 2, -1, -1):
        x = g.op(
            "Resize", x, "", double, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
        x = g.op("Concat", kept[level], x, axis=1)
        for k in range(1 if level == 0 else 2):
            x = _conv(g, x, state, f"up.{level}.convs.{k}", f"up.{level}.norms.{k}")
    x = g.op("Conv", x, g.const(state["head.weight"]), g.const(state["head.bias"]), kernel_shape=[1, 1])
    return g.op("Softmax", x, axis=1)


def _coarse_size(g: Builder, n: str, mm: str) -> str:
    """Return the number of coarse pixels over n pixels of mm: a multiple of 16, of about `PIXEL_MM` each."""
    sixteenths = g.op("Round", g.div(g.mul(g.real(n), mm), g.const(16 * PIXEL_MM)))
    return g.integer(g.mul(g.clip(sixteenths, 2.0, 20.0), g.const(16.0)))


def build(state: State) -> onnx.ModelProto:
    """Return the model.

    Parameters
    ----------
    state
        Weights of `LungNet`, as NumPy arrays.

    Returns
    -------
    onnx.ModelProto
        Inputs `hu` int16 [S, H, W] and `spacing` float32 [3] (slice, row, column; mm); output `labels` uint8
        [S, H, W].
    """
    g = Builder("lung")
    hu = g.input("hu", TensorProto.INT16, ["S", "H", "W"])
    given = g.input("spacing", TensorProto.FLOAT, [3])
    mm = g.op("Max", g.op("Abs", given), g.const(0.1))
    shape = g.op("Shape", hu)
    s, h, w = (g.dimension(shape, k) for k in range(3))
    dz, dy, dx = (g.op("Gather", mm, g.ints(k), axis=0) for k in range(3))

    # 1. To the coarse grid, slice by slice in plane, then along the slices.
    hc, wc = _coarse_size(g, h, dy), _coarse_size(g, w, dx)
    step_y, step_x = g.div(g.real(h), g.real(hc)), g.div(g.real(w), g.real(wc))
    rows = g.resampler(h, hc, step_y)
    columns = g.op("Transpose", g.resampler(w, wc, step_x), perm=[1, 0])
    body = Builder("shrink", g)
    x = body.clip(body.real(body.input("shrink_in", TensorProto.INT16, None)), HU_LOW, 1500.0)
    x = body.op("MatMul", body.op("MatMul", rows, x), columns)
    body.output(x, TensorProto.FLOAT, None)
    small = g.scan(body, hu)

    sc = g.integer(g.clip(g.op("Ceil", g.div(g.mul(g.real(s), dz), g.const(SLICE_MM))), 1.0, 1000.0))
    step_z = g.div(g.const(SLICE_MM), dz)
    along = g.resampler(s, sc, step_z)
    flat = g.op("Reshape", small, g.vector(s, g.ints(-1)))
    coarse = g.op("Reshape", g.op("MatMul", along, flat), g.vector(sc, hc, wc))
    coarse = g.div(g.sub(g.clip(coarse, HU_LOW, HU_HIGH), g.const(HU_MIDDLE)), g.const(HU_SCALE))

    # 2. The network, one coarse slice with its neighbours at a time. Kept of it: lung against other air, lung, and
    #    right against left; all three are linear in the probabilities, so they can be interpolated.
    order = g.op("Unsqueeze", g.arange(sc), g.ints([1]))
    near = g.add(order, g.ints([list(OFFSETS)]))
    near = g.op("Min", g.op("Max", near, g.ints(0)), g.sub(sc, g.ints(1)))
    body = Builder("net", g)
    index = body.input("net_in", TensorProto.INT64, None)
    x = body.op("Unsqueeze", body.op("Gather", coarse, index, axis=0), body.ints([0]))
    p = body.op("Squeeze", _network(body, x, state), body.ints([0]))
    mix = np.array([[0, 1, 1, -1], [0, 1, 1, 0], [0, 1, -1, 0]])
    maps = body.op("MatMul", body.const(mix), body.op("Reshape", p, body.ints([4, -1])))
    body.output(maps, TensorProto.FLOAT, None)
    maps = g.scan(body, near)

    # 3. Back to the source grid, slice by slice.
    back_y = g.resampler(hc, h, g.div(g.const(1.0), step_y))
    back_x = g.op("Transpose", g.resampler(wc, w, g.div(g.const(1.0), step_x)), perm=[1, 0])
    fine_h, fine_w = (
        g.integer(g.clip(g.op("Ceil", g.div(g.mul(g.real(n), size), g.const(FINE_MM))), 8.0, 640.0))
        for n, size in ((h, dy), (w, dx))
    )
    fy, fx = g.div(g.real(h), g.real(fine_h)), g.div(g.real(w), g.real(fine_w))
    fine_rows = g.resampler(h, fine_h, fy)
    fine_columns = g.op("Transpose", g.resampler(w, fine_w, fx), perm=[1, 0])
    full_rows = g.resampler(fine_h, h, g.div(g.const(1.0), fy))
    full_columns = g.op("Transpose", g.resampler(fine_w, w, g.div(g.const(1.0), fx)), perm=[1, 0])
    # Smoothing against noise, less where the pixels are large already.
    smooth = g.clip(g.div(g.sub(g.const(1.3), dx), g.const(0.5)), 0.0, 1.0)
    small_shape = g.vector(g.ints(3), hc, wc)

    # The coarse slices that a source slice lies between, and the share of the upper one.
    top = g.real(g.sub(sc, g.ints(1)))
    at = g.sub(g.real(g.arange(s)), g.mul(g.real(g.sub(s, g.ints(1))), g.const(0.5)))
    at = g.add(g.mul(at, g.div(dz, g.const(SLICE_MM))), g.mul(top, g.const(0.5)))
    at = g.op("Min", g.op("Max", at, g.const(0.0)), top)
    low = g.op("Floor", at)
    share = g.sub(at, low)
    high = g.integer(g.op("Min", g.add(low, g.const(1.0)), top))
    low = g.integer(low)

    body = Builder("label", g)
    x = body.clip(body.real(body.input("label_hu", TensorProto.INT16, None)), HU_LOW, 600.0)
    low_in = body.input("label_low", TensorProto.INT64, None)
    high_in = body.input("label_high", TensorProto.INT64, None)
    share_in = body.input("label_share", TensorProto.FLOAT, None)
    below = body.op("Gather", maps, low_in, axis=0)
    above = body.op("Gather", maps, high_in, axis=0)
    here = body.add(below, body.mul(body.sub(above, below), share_in))
    here = body.op("MatMul", body.op("MatMul", back_y, body.op("Reshape", here, small_shape)), back_x)
    versus_air, lung, side = (body.op("Gather", here, body.ints(k), axis=0) for k in range(3))
    x4 = body.op("Unsqueeze", x, body.ints([0, 1]))
    mean = body.op("AveragePool", x4, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)
    x4 = body.add(x4, body.mul(body.sub(mean, x4), smooth))
    x = body.op("Squeeze", x4, body.ints([0, 1]))
    aired = body.op("And", body.op("Less", x, body.const(AIR_HU)), body.op("Greater", versus_air, body.const(0.0)))
    fine = body.op("MatMul", body.op("MatMul", fine_rows, body.real(aired)), fine_columns)
    fine = body.op("Unsqueeze", fine, body.ints([0, 1]))
    size = 2 * CLOSING + 1
    pool = {"kernel_shape": [size, size], "pads": [CLOSING] * 4}
    fine = body.op("Neg", body.op("MaxPool", body.op("Neg", body.op("MaxPool", fine, **pool)), **pool))
    closed = body.op("MatMul", body.op("MatMul", full_rows, body.op("Squeeze", fine, body.ints([0, 1]))), full_columns)
    filled = body.op("And", body.op("Greater", closed, body.const(0.5)), body.op("Greater", lung, body.const(0.5)))
    inside = body.op("Or", aired, filled)
    label = body.op("Where", body.op("Greater", side, body.const(0.0)), body.const(1.0), body.const(2.0))
    label = body.mul(label, body.real(inside))
    body.output(body.op("Cast", label, to=TensorProto.UINT8), TensorProto.UINT8, None)
    labels = g.scan(body, hu, low, high, share)
    g.output(labels, TensorProto.UINT8, ["S", "H", "W"], name="labels")

    model = helper.make_model(g.graph(), opset_imports=[helper.make_opsetid("", OPSET)], producer_name="overread")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def export(state: State, path: Path) -> str:
    """Write the model to `path` and return its SHA-256."""
    data = build(state).SerializeToString()
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
