"""Starts a real MLServer, from an environment of its own, with two small models: the tests' KServe V2 peer."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.peers import free_port, need, wait_until

PROGRAM = Path(__file__).resolve().parents[1] / ".venv-mlserver" / "bin" / "mlserver"

RUNTIME = '''
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Levels(MLModel):
    """The mean of each image: the twin of the tests' ONNX model."""

    async def load(self):
        return True

    async def predict(self, payload):
        image = NumpyCodec.decode_input(payload.inputs[0])
        return self.answer(payload, "probability", image.mean(axis=(1, 2, 3), dtype=np.float32)[:, None])

    def answer(self, payload, name, array):
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, np.ascontiguousarray(array))],
        )


class Blobs(Levels):
    """Above 200 HU is 1, above 1200 HU is 2."""

    async def predict(self, payload):
        feeds = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        assert feeds["spacing"].shape == (3,)
        hu = feeds["hu"]
        return self.answer(payload, "labels", (hu > 200).astype(np.uint8) + (hu > 1200).astype(np.uint8))
'''

MODELS = {
    "levels": {
        "implementation": "runtime.Levels",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 64, 64]}],
        "outputs": [{"name": "probability", "datatype": "FP32", "shape": [-1, 1]}],
    },
    "blobs": {
        "implementation": "runtime.Blobs",
        "inputs": [
            {"name": "hu", "datatype": "INT16", "shape": [-1, -1, -1]},
            {"name": "spacing", "datatype": "FP32", "shape": [3]},
        ],
        "outputs": [{"name": "labels", "datatype": "UINT8", "shape": [-1, -1, -1]}],
    },
}


@dataclass(frozen=True)
class MlServer:
    """A running MLServer."""

    http_port: int
    grpc_port: int

    def address(self, protocol: str) -> str:
        return f"http://127.0.0.1:{self.http_port}" if protocol == "http" else f"grpc://127.0.0.1:{self.grpc_port}"


@pytest.fixture(scope="session")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlServer]:
    """Give a running MLServer that serves ``levels`` and ``blobs``, version ``3``."""
    program = str(PROGRAM) if PROGRAM.exists() else shutil.which("mlserver")
    need(program, "MLServer is not installed (make test puts it into .venv-mlserver)")
    assert program is not None
    folder = tmp_path_factory.mktemp("mlserver")
    server = MlServer(free_port(), free_port())
    (folder / "settings.json").write_text(
        json.dumps(
            {
                "host": "127.0.0.1",
                "http_port": server.http_port,
                "grpc_port": server.grpc_port,
                "metrics_port": free_port(),
                "parallel_workers": 0,
            }
        )
    )
    for name, model in MODELS.items():
        place = folder / name
        place.mkdir()
        (place / "runtime.py").write_text(RUNTIME)
        settings = {"name": name, "parameters": {"version": "3"}} | model
        (place / "model-settings.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "start", str(folder)], cwd=folder, stdout=log, stderr=log)
    try:
        root = f"http://127.0.0.1:{server.http_port}/v2/models"
        wait_until(
            lambda: all(
                httpx.get(f"{root}/{name}/versions/3/ready", trust_env=False).status_code == 200 for name in MODELS
            ),
            60,
            "MLServer to have loaded its models",
        )
        yield server
    finally:
        process.kill()
        process.wait()
