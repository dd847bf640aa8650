"""How much of a GPU's memory is free, asked of NVIDIA's own library (NVML) without any runtime of a model.

A model that is loaded onto a full GPU fails somewhere in its runtime, or takes what another needs for its next run. So
a card says what it takes (``resources.gpu_memory_mb``), and it is looked before anything is loaded.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from inference.errors import EngineFailure

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["free_bytes", "require_room"]

_LIBRARY = "libnvidia-ml.so.1"


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def free_bytes(library: str = _LIBRARY) -> int | None:
    """Return the free memory of the GPU that this process uses first, in bytes; None where there is none to ask.

    Parameters
    ----------
    library
        NVML; looked for as the system does.
    """
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2():
            return None
        try:
            device, memory = ctypes.c_void_p(), _Memory()
            if _device(nvml, device) or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)):
                return None
            return int(memory.free)
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return None


def require_room(card: Card, library: str = _LIBRARY) -> None:
    """Return if the GPU has room for a model, or if nobody can say.

    Raises
    ------
    EngineFailure
        ``no-room``: it is tried again later, and no try is lost by it.
    """
    wanted = card.resources.gpu_memory_mb
    free = free_bytes(library) if wanted is not None else None
    if wanted is not None and free is not None and free < wanted * 2**20:
        raise EngineFailure(
            "no-room",
            f"{card.name} takes {wanted} MB of the GPU, of which {free // 2**20} MB are free now; it waits for room",
        )


def _device(nvml: ctypes.CDLL, device: ctypes.c_void_p) -> int:
    """Find the first GPU that CUDA may use here: CUDA_VISIBLE_DEVICES names it by its number or its UUID."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdigit():
        return int(nvml.nvmlDeviceGetHandleByIndex_v2(int(first), ctypes.byref(device)))
    return int(nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(device)))
