"""What a card says, as lines for whoever decides whether its model may read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["card_facts"]

#: What somebody asks first.
_FIRST = ("title", "task", "engine", "intended_use", "limits", "performance", "training_data", "licence", "made_by")


def card_facts(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, text) of what counts before a promotion: a line for each role, output, file and sample.

    Parameters
    ----------
    card
        As JSON, with the values that are not the defaults.
    """
    facts = [(key, _text(card[key])) for key in _FIRST if key in card]
    facts += [("input", "; ".join(_role(role))) for role in card["inputs"]]
    facts += [("output", "; ".join(_output(output))) for output in card["outputs"]]
    facts += [("file", f"{name} (sha256 {entry['sha256'][:12]})") for name, entry in card.get("files", {}).items()]
    facts += [("sample", _sample(sample)) for sample in card.get("samples", ())]
    facts += [] if card.get("samples") else [("samples", "none")]
    resources = card.get("resources", {})
    return [*facts, ("resources", ", ".join(f"{key} {value}" for key, value in resources.items()) or "as by default")]


def _role(role: Mapping[str, Any]) -> Iterator[str]:
    yield f"{role['role']}: {role['kind']}" + (", optional" if role.get("optional") else "")
    yield f"match {json.dumps(role['match'])}" if role.get("match") else "no match"
    kept = {key: role[key] for key in ("minimum_instances", "slice_spacing_mm") if key in role} | role.get("limits", {})
    yield f"limits {json.dumps(kept)}" if kept else "no limits"


def _output(output: Mapping[str, Any]) -> Iterator[str]:
    code = output["code"]
    yield f"{output['name']}: {code['value']}, {code['scheme']}, {code['meaning']}"
    for key in ("label", "index", "threshold"):
        if key in output:
            yield f"{key} {output[key]:g}"
    if "unit" in output:
        yield f"unit {output['unit']['value']}"
    if output.get("limits"):
        yield f"limits {json.dumps(output['limits'])}"


def _sample(sample: Mapping[str, Any]) -> str:
    wanted = [f"{name} {value:g}" for name, value in sample.get("expect", {}).items()]
    wanted += [f"mask, Dice {sample.get('dice', 0.95):g}"] if sample.get("mask") else []
    wanted += [f"not analysed: {sample['not_analysed']}"] if sample.get("not_analysed") else []
    return f"{sample['name']}: {', '.join(wanted) or 'nothing expected'}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)
