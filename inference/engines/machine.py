"""What this machine is to an engine: what its processor can do, and where it may keep what it has made of models."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

from inference.sizing import allotted

__all__ = ["CACHE_VARIABLE", "cache_folder", "computes_bf16", "signature"]

#: Names the folder for compiled models and measured choices; without it nothing is kept.
CACHE_VARIABLE = "ENGINE_CACHE"


def cache_folder() -> Path | None:
    """Return the folder for what is made from models here, or None if nothing may be kept.

    Compiled models are code: a folder of somebody else's, or one that others may write to, is not used.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if not named:
        return None
    folder = Path(named)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = folder.stat()
    except OSError:
        return None
    own = about.st_uid == os.geteuid() and not about.st_mode & 0o022
    return folder if own and os.access(folder, os.W_OK) else None


@functools.cache
def computes_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; without that, bf16 is slower than fp32."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & _flags())


def signature(given: int | None = None) -> str:
    """Return what a measured choice holds for: processor, its abilities, cores and the runtimes' versions, hashed.

    Parameters
    ----------
    given
        How many cores the engine's process gets; by default what this process was given.
    """
    return _signature(given or allotted())


@functools.cache
def _signature(count: int) -> str:
    parts = [platform.machine(), *sorted(_about("model name")), *sorted(_flags()), str(count)]
    for name in ("onnxruntime", "openvino"):
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{name} absent")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _flags() -> frozenset[str]:
    return _about("flags") or _about("Features")


@functools.cache
def _about(wanted: str) -> frozenset[str]:
    """Return the words that Linux says of the first processor under one key; none elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return frozenset(value.split())
    return frozenset()
