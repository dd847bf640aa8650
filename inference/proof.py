"""Whether a model in a lower precision has been shown to answer as the exact one does: its report, beside its card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from inference.engines.onnxfile import describe
from inference.errors import EngineFailure

if TYPE_CHECKING:
    from inference.card import Card

__all__ = ["REPORT", "unproven"]

#: Written by ``overread models quantise``; any tool may write one: ``passed``, ``summary``, and ``files`` with SHA-256.
REPORT = "report.json"


def unproven(card: Card) -> str:
    """Return why a card's report keeps it from being promoted; "" where nothing does.

    A report that is there has to have passed, for the files that the card has now. A card that declares int8, fp16 or
    bf16, or whose ONNX file computes with integers whatever it declares, has to have one.
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
    about = report.get("files", {})
    changed = [name for name, entry in card.files.items() if about and about.get(name, entry.sha256) != entry.sha256]
    return f"{file} is about another {changed[0]}" if changed else ""


def _lowered(card: Card) -> str:
    section = card.onnx or card.openvino
    if section is not None and section.precision in ("int8", "fp16", "bf16"):
        return f"declares {section.precision}"
    for name in card.files:
        if name.endswith(".onnx"):
            try:
                if describe(card.directory / name).integers:
                    return f"has {name}, which computes with integers"
            except EngineFailure:
                return ""
    return ""
