"""Which versions of models there are, what each reads, and whether inputs and answers are still what they were.

As pages for people, and what is measured as JSON for tools too (the versions are in :mod:`node.web.api`).

The pages are plain HTML with drawings in SVG: no script, nothing from elsewhere, so that they work where a browser may
load nothing but this node.
"""

from __future__ import annotations

from html import escape
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from node.ops.stability import MODERATE, MUCH, Feature, Stability, Weighing
from node.settings import Settings
from node.workflow import overview
from node.workflow.overview import VersionShown
from storage.database import Database
from storage.errors import Unknown

__all__ = ["router"]

ModelName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_WORDS: Final = {
    "steady": "as it was",
    "moderate": "changed somewhat",
    "much": "changed much",
    "unknown": "too few to tell",
}
_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1c2733}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}a{color:#14548c}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;border-bottom:1px solid #d7dee5;text-align:left}
td.number{text-align:right;font-variant-numeric:tabular-nums}
.steady{color:#2b6b3f}.moderate{color:#8a5a00}.much{color:#a11d1d;font-weight:600}.unknown{color:#5d6b79}
svg text{font:9px system-ui,sans-serif;fill:#5d6b79}.then{fill:#b9c6d3}.now{fill:#14548c}
p.note{color:#5d6b79}
"""


class FeatureShown(BaseModel):
    """One feature of what a model reads or says: its histograms and the index between them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(examples=["median", "probability nodule"])]
    psi: Annotated[float | None, Field(description="Population stability index; null where too few were counted")]
    chance: Annotated[float, Field(description="What the index reaches once in a thousand times without any change")]
    level: Annotated[str, Field(description="steady, moderate, much or unknown")]
    bins: list[str]
    then: Annotated[list[float], Field(description="Shares of the reference, bin by bin")]
    now: Annotated[list[float], Field(description="Shares of the window, bin by bin")]
    then_count: Annotated[int, Field(description="0 where the model's card declares the reference")]
    now_count: int


class StabilityShown(BaseModel):
    """Whether what a version of a model reads and says is still what it was."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: str
    digest: str
    observations: int
    reference: Annotated[str, Field(description="card, or first inputs")]
    level: str
    features: list[FeatureShown]


def router(settings: Settings, database: Database, weighing: Weighing) -> APIRouter:
    """Return the pages under ``/models`` and their JSON under ``/api/v1``."""
    api = APIRouter()

    def found(model: str | None = None) -> list[Stability]:
        with database.read() as connection:
            return [one for one in weighing.weigh(connection) if model in (None, one.model)]

    def read(model: str) -> list[Stability]:
        there = found(model)
        if not there:
            raise Unknown(f"no model {model} has read anything here yet")
        return there

    @api.get("/api/v1/stability", tags=["operators"], summary="Drift of every model's inputs and answers")
    def every() -> list[StabilityShown]:
        return [_shown(one) for one in found()]

    @api.get("/api/v1/models/{model}/stability", tags=["operators"], summary="Drift of one model's inputs and answers")
    def one_model(model: ModelName) -> list[StabilityShown]:
        return [_shown(one) for one in read(model)]

    @api.get("/models", include_in_schema=False)
    def models_page() -> HTMLResponse:
        return _page("Models", _overview(overview.versions(settings, database), found()))

    @api.get("/models/{model}", include_in_schema=False)
    def model_page(model: ModelName) -> HTMLResponse:
        known = [one for one in overview.versions(settings, database) if one.name == model]
        there = found(model) if known else read(model)
        facts = _facts(known) if known else ""
        return _page(model, facts + "".join(_version(one) for one in there))

    return api


def _shown(one: Stability) -> StabilityShown:
    return StabilityShown(
        model=one.model,
        version=one.version,
        digest=one.digest,
        observations=one.observations,
        reference=one.reference,
        level=one.level,
        features=[
            FeatureShown(
                name=feature.name,
                psi=feature.psi,
                chance=feature.chance,
                level=feature.level,
                bins=list(feature.bins),
                then=list(feature.then),
                now=list(feature.now),
                then_count=feature.then_count,
                now_count=feature.now_count,
            )
            for feature in one.features
        ],
    )


def _page(title: str, body: str) -> HTMLResponse:
    html = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)} - Overread</title><style>{_STYLE}</style><h1>{escape(title)}</h1>{body}"
        f"<p class=note>Population stability index: below {MODERATE:g} as it was, from {MUCH:g} on changed much; and "
        "only where chance alone reaches it less than once in a thousand times. Research use only.</p></html>"
    )
    return HTMLResponse(html, headers={"Content-Security-Policy": _POLICY})


def _overview(versions: list[VersionShown], there: list[Stability]) -> str:
    """Show every version that is registered, and below what each has read, with those that no row is left of."""
    if not versions and not there:
        return "<p>No model is registered. No model has read anything here yet.</p>"
    observed = {(one.model, one.version): one for one in there}
    shown = {(one.name, one.version): one for one in versions}
    rows = []
    for name, version in sorted({*observed, *shown}):
        one, read = shown.get((name, version)), observed.get((name, version))
        link = f"<a href='models/{escape(name)}'>{escape(name)}</a>"
        facts = _cells(one) if one is not None else "<td class=unknown>no more registered<td><td><td>"
        rows.append(f"<tr><td>{link}<td>{escape(version)}{facts}{_drift(read)}")
    names = ("model", "version", "stage", "reads", "tested", "runs by", "inputs", "inputs and answers", "most changed")
    head = "<tr>" + "".join(f"<th>{each}" for each in names)
    note = "" if there else "<p class=note>No model has read anything here yet.</p>"
    return f"<table>{head}{''.join(rows)}</table>{note}"


def _drift(read: Stability | None) -> str:
    if read is None:
        return "<td class=number>0<td class=unknown>nothing read yet<td>"
    worst = read.features[0] if read.features else None
    most = "" if worst is None or worst.psi is None else f"{escape(worst.name)} {worst.psi:.2f}"
    return f"<td class=number>{read.observations}<td class={read.level}>{_WORDS[read.level]}<td>{most}"


def _cells(one: VersionShown) -> str:
    """Say of a version its stage, what it reads or why nothing, its test, and what runs it here."""
    share = f" {100 * one.share:g} %" if one.share else ""
    reads = f"<span class=unknown>nothing: {escape(one.idle)}</span>" if one.idle else escape(", ".join(one.routes))
    if one.test_passed is None:
        tested = "<span class=moderate>no</span>"
    else:
        when = f"{one.tested_at:%Y-%m-%d}" if one.tested_at else ""
        tested = f"passed {when}" if one.test_passed else f"<span class=much>failed {when}</span>"
    todo = f"<br><code>{escape(one.todo)}</code>" if one.todo else ""
    return f"<td>{escape(one.stage)}{share}<td>{reads}<td>{tested}<td>{escape(one.way) or 'as its card says'}{todo}"


def _facts(versions: list[VersionShown]) -> str:
    rows = "".join(f"<tr><td>{escape(one.version)}<td>{escape(one.title)}{_cells(one)}" for one in versions)
    head = "<tr><th>version<th>what it is<th>stage<th>reads<th>tested<th>runs by"
    return f"<table>{head}{rows}</table><p class=note>overread models show {escape(versions[0].name)} tells more.</p>"


def _version(one: Stability) -> str:
    source = "its card's histograms" if one.reference == "card" else "its first inputs here"
    rows = "".join(_row(feature) for feature in one.features)
    return (
        f"<h2>Version {escape(one.version)} <span class={one.level}>{_WORDS[one.level]}</span></h2>"
        f"<p>{one.observations} inputs; held against {source}. Grey then, blue now.</p>"
        f"<table><tr><th>feature<th>index<th>then and now<th>inputs{rows}</table>"
    )


def _row(feature: Feature) -> str:
    psi = "" if feature.psi is None else f"{feature.psi:.3f}"
    return (
        f"<tr><td>{escape(feature.name)}<br><span class={feature.level}>{_WORDS[feature.level]}</span>"
        f"<td class=number>{psi}<td>{_drawing(feature)}<td class=number>{feature.now_count}"
    )


def _drawing(feature: Feature) -> str:
    """Draw two histograms side by side, bin by bin; a bin's name shows where one points at it."""
    wide, high, bins = 420, 62, len(feature.bins)
    step = wide / max(bins, 1)
    tallest = max(*feature.then, *feature.now, 1e-6)
    parts: list[Any] = []
    for place, (name, then, now) in enumerate(zip(feature.bins, feature.then, feature.now, strict=True)):
        told = ", ".join(
            f"{100 * share:.1f} % {when}" if there else f"none {when}"
            for share, there, when in ((then, any(feature.then), "then"), (now, feature.now_count, "now"))
        )
        parts.append(f"<g><title>{escape(name)}: {told}</title>")
        for offset, kind, share in ((0.08, "then", then), (0.5, "now", now)):
            tall = max(share / tallest * high, 0.5)
            left = (place + offset) * step
            parts.append(
                f"<rect class={kind} x='{left:.1f}' y='{high - tall:.1f}' width='{0.4 * step:.1f}' "
                f"height='{tall:.1f}'/>"
            )
        parts.append("</g>")
    ends = (
        f"<text x='0' y='{high + 11}'>{escape(feature.bins[0])}</text>"
        f"<text x='{wide}' y='{high + 11}' text-anchor='end'>{escape(feature.bins[-1])}</text>"
    )
    return f"<svg viewBox='0 0 {wide} {high + 14}' width='{wide}' role=img>{''.join(parts)}{ends}</svg>"
