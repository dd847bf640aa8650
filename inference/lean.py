"""Imports pydicom without ``requests``: imported first by a process that should start quickly.

pydicom imports it for fetching files of its own tests, which an engine never does: a seventh of all that the engine's
process imports. What really needs it later gets it.
"""

from __future__ import annotations

import sys

_MISSING = object()

_known = sys.modules.get("requests", _MISSING)
if _known is _MISSING:
    sys.modules["requests"] = None  # type: ignore[assignment]
    try:
        import pydicom  # noqa: F401
    finally:
        del sys.modules["requests"]
