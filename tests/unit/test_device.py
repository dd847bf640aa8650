"""A model that a GPU has no room for waits, with the reason; where there is no GPU nothing is asked."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.card import load_card
from inference.engines.device import free_bytes, require_room
from inference.errors import EngineFailure
from tests.model_factory import classification_card, mean_brightness, write_model
from tests.peers import need

NVML = """
struct memory { unsigned long long total, free, used; };
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = (void *)(long)(index + 1); return index > 1; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = (void *)2; return uuid[0] != 'G'; }
int nvmlDeviceGetMemoryInfo(void *device, struct memory *m) {
    m->total = 1000ULL << 20; m->free = (long)device * (300ULL << 20); m->used = m->total - m->free; return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library with NVML's interface: two GPUs, of which 300 and 600 MB are free."""
    compiler = shutil.which("cc")
    need(compiler is not None, "there is no C compiler (Debian package gcc)")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    made = folder / "libnvml.so"
    subprocess.run([str(compiler), "-shared", "-fPIC", "-o", made, folder / "nvml.c"], check=True)
    return str(made)


@pytest.fixture
def needing(tmp_path: Path) -> Callable[[int], object]:
    def make(megabytes: int) -> object:
        resources = {"seconds": 30, "memory_mb": 2048, "gpu_memory_mb": megabytes}
        return load_card(write_model(tmp_path, classification_card(resources=resources), mean_brightness()))

    return make


@pytest.mark.parametrize(("visible", "free"), [(None, 300), ("1,0", 600), ("GPU-abc", 600), ("7", None), ("", None)])
def test_the_gpu_that_is_used_first_is_asked(
    library: str, monkeypatch: pytest.MonkeyPatch, visible: str | None, free: int | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert free_bytes(library) == (free * 2**20 if free is not None else None)


def test_a_model_that_does_not_fit_waits_and_loses_no_try(library: str, needing: Callable[[int], object]) -> None:
    require_room(needing(300), library)  # type: ignore[arg-type]
    with pytest.raises(EngineFailure, match="301 MB of the GPU, of which 300 MB are free") as failure:
        require_room(needing(301), library)  # type: ignore[arg-type]
    assert failure.value.reason == "no-room"
    assert not failure.value.counts


def test_without_a_gpu_nothing_is_asked(needing: Callable[[int], object]) -> None:
    assert free_bytes("libof-no-gpu.so.1") is None
    require_room(needing(10**6), "libof-no-gpu.so.1")  # type: ignore[arg-type]
