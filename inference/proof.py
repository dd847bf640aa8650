"""Whether a model in a lower precision has been shown to answer as the exact one does: its report, beside its card."""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING

from inference.engines.onnxfile import describe
from inference.errors import EngineFailure

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["REPORT", "few", "little_compared", "unproven"]

#: Written by ``overread models quantise``; any tool may write one: ``passed``, ``summary``, and ``files`` with SHA-256.
REPORT = "report.json"

#: Fewer cases than this show that a version runs, and hardly that it answers as the exact one does.
_ENOUGH = 20

#: Layers of a quantised or compressed IR, and constants (``data`` with a size in the .bin; inputs have none) of it: of
#: a hundred bytes or more, since a few numbers in bytes are in exact models too.
_QUANTISED = re.compile(
    rb"""type=["']Fake(?:Quantize|Convert)["']"""
    rb"""|<data\b(?=[^>]*\bsize=["']\d{3})[^>]*\belement_type=["'](?:[iu][248]|nf4|f4e2m1|f8e4m3|f8e5m2|f8e8m0)["']"""
)


def unproven(card: Card) -> str:
    """Return why a card's report keeps it from being promoted; "" where nothing does.

    A report that is there has to have passed, and to name every file that the card has now with its SHA-256. A card
    that declares int8, fp16 or bf16, or whose ONNX file or OpenVINO IR was quantised or (ONNX) holds its weights in
    halves whatever it declares, has to have one.
    """
    file = card.directory / REPORT
    if not file.exists():
        lowered = _lowered(card)
        return lowered and f"{card.path} {lowered}, and no {REPORT} shows that it answers as the exact model does"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{file}: cannot be read"
    if not isinstance(report, dict) or report.get("passed") is not True:
        why = report.get("summary") or report.get("reason") or "" if isinstance(report, dict) else ""
        return f"{file} says that it has not passed{f': {why}' if why else ''}"
    about = report.get("files")
    about = about if isinstance(about, dict) else {}
    for name, entry in card.files.items():
        if name not in about:
            return f"{file} does not name {name} with its SHA-256 under files, so it may be about other files"
        if about[name] != entry.sha256:
            return f"{file} is about another {name}"
    return ""


def little_compared(card: Card) -> str:
    """Return on how few cases a card's report compares it with the exact model; "" where they suffice or none says."""
    file = card.directory / REPORT
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        cases = int(report["agreement"]["cases"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return few(cases)


def few(cases: int) -> str:
    """Return what to think of a comparison on so many cases; "" where they are enough."""
    if cases >= _ENOUGH:
        return ""
    many = "1 case" if cases == 1 else f"{cases} cases"
    return f"compared with the exact model on {many} only: take {_ENOUGH} or more, with and without findings"


def _lowered(card: Card) -> str:
    section = card.onnx or card.openvino
    if section is not None and section.precision in ("int8", "fp16", "bf16"):
        return f"declares {section.precision}"
    for name in card.files:
        path = card.directory / name
        if name.endswith(".onnx"):
            try:
                contents = describe(path)
            except EngineFailure:
                continue
            if contents.integers:
                return f"has {name}, which computes with integers"
            if contents.precision != "fp32":
                return f"has {name}, which holds its weights in {contents.precision}"
        elif name.endswith(".xml") and _is_quantised_ir(path):
            return f"has {name}, which computes with integers"
    return ""


def _is_quantised_ir(path: Path) -> bool:
    """Whether an OpenVINO IR fakes quantisation or holds constants in the low types that quantisers write.

    Halves do not count: OpenVINO's converters write fp32 models so unless told otherwise.
    """
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file
            return False
        with content:
            return _QUANTISED.search(content) is not None
