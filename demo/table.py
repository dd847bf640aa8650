"""Judges and prints the demonstration's table; its rows come from the PACS and the receiver's log alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from demo.results import Holding, Message, Pacs, Reading
from demo.studies import Study

__all__ = ["Row", "build_table", "judge"]

VOLUME_TOLERANCE = 0.10


@dataclass(frozen=True, kw_only=True)
class Row:
    """A study's outcome as the outside sees it; ``complaints`` is empty when everything expected is there, once."""

    study: Study
    reading: Reading | None
    message: Message | None
    holding: Holding
    seconds: float | None
    complaints: tuple[str, ...]


def judge(study: Study, messages: Sequence[Message], pacs: Pacs, sent_at: float) -> list[Row]:
    """Return one row for every result of a study, or one that says what is missing.

    ``sent_at`` is when its last image left, in seconds since the epoch. The seconds of a row end with the arrival of
    the message, which comes when the documents that it cites are in the PACS.
    """
    about = [message for message in messages if message.study_uid == study.uid]
    holding = pacs.holding(study.uid)
    complaints = _complaints_of_study(study, about, holding)
    readings = [(message, reading) for message in about for reading in message.readings]
    if not readings:
        return [Row(study=study, reading=None, message=None, holding=holding, seconds=None, complaints=complaints)]
    return [
        Row(
            study=study,
            reading=reading,
            message=message,
            holding=holding,
            seconds=message.received_at.timestamp() - sent_at,
            complaints=(*complaints, *_complaints_of_reading(study, reading, pacs)),
        )
        for message, reading in readings
    ]


def _complaints_of_study(study: Study, messages: Sequence[Message], holding: Holding) -> tuple[str, ...]:
    said = []
    for message in messages:
        if not message.identical:
            said.append(f"message {message.control_id} came again with other bytes")
        if message.acknowledgement != "AA":
            said.append(f"message {message.control_id} was answered {message.acknowledgement}")
        said += [
            f"{kind} of the message is not in the PACS"
            for reading in message.readings
            for uid, kind in reading.documents.items()
            if holding.documents.get(uid) != kind
        ]
    if study.model is not None:
        if len(messages) != 1:
            said.append(f"{len(messages)} messages instead of one")
        models = Counter(reading.model for message in messages for reading in message.readings)
        if models != Counter([study.model]):
            said.append(f"results of {dict(models) or 'no model'} instead of one of {study.model}")
        kinds = Counter(holding.documents.values())
        if kinds != Counter(study.documents):
            said.append(f"the PACS holds {dict(kinds) or 'no document'} instead of {' and '.join(study.documents)}")
    if holding.images < study.images - len(holding.documents):
        said.append(f"the PACS holds {holding.images} of {study.images} images")
    return tuple(said)


def _complaints_of_reading(study: Study, reading: Reading, pacs: Pacs) -> tuple[str, ...]:
    said = []
    if reading.parked:
        said.append(f"parked: {reading.refusal}")
    if study.model is not None and bool(reading.refusal) != study.refused:
        said.append("not analysed" if reading.refusal else "analysed, though there is nothing to analyse")
    for name, truth in study.volumes_ml.items():
        measured = reading.volumes_ml.get(name)
        if measured is None or abs(measured - truth) > VOLUME_TOLERANCE * truth:
            said.append(f"{name}: {measured} mL, in truth {truth:.0f}")
    said += [
        f"{name}: {'absent' if truth else 'present'}, in truth not so"
        for name, truth in study.findings.items()
        if reading.present.get(name) is not truth
    ]
    # What the message says has to be what the report in the PACS says.
    for uid, kind in reading.documents.items():
        if kind == "SR" and reading.volumes_ml:
            stated = pacs.volumes_in_report(study.uid, uid)
            said += [
                f"{name}: the message says {volume:g} mL, the SR {stated}"
                for name, volume in reading.volumes_ml.items()
                if not any(abs(volume - each) <= max(0.1, 0.001 * volume) for each in stated)
            ]
    return tuple(said)


def build_table(rows: Sequence[Row], title: str) -> Table:
    """Lay the rows out for the terminal."""
    table = Table(title=title, show_lines=True, title_justify="left")
    for heading in ("Study", "Route, and why", "Model", "Finding", "In the PACS", "HL7", "Seconds"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        reading = row.reading
        mark = "[green]✓[/]" if not row.complaints else "[red]✗ " + escape("; ".join(row.complaints)) + "[/]"
        kinds = Counter(row.holding.documents.values())
        held = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no document"
        table.add_row(
            f"{escape(row.study.title)}\n{mark}",
            f"{escape(reading.route)}\n[dim]{escape(reading.route_reason)}[/]"
            if reading
            else "[dim]nothing was said about it[/]",
            _model(reading),
            _finding(row.study, reading),
            f"{row.holding.images} image{'s' if row.holding.images != 1 else ''}\n{held}",
            f"{row.message.acknowledgement}\n[dim]{row.message.control_id}[/]" if row.message else "-",
            _seconds(row.seconds),
        )
    return table


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    # Of several studies in one folder the first may be done before the last is sent.
    return f"{seconds:.1f}" if seconds >= 0 else "while sending"


def _model(reading: Reading | None) -> str:
    if reading is None:
        return "-"
    demonstration = "\n[yellow]demonstration, synthetic images[/]" if reading.demonstration else ""
    return f"{reading.model} {reading.version}{demonstration}"


def _finding(study: Study, reading: Reading | None) -> str:
    if reading is None:
        return "-"
    if reading.refusal:
        return f"{'parked' if reading.parked else 'not analysed'}: {escape(reading.refusal)}"
    lines = []
    for name, volume in reading.volumes_ml.items():
        truth = study.volumes_ml.get(name)
        error = f" [dim](truth {truth:.0f}, {100 * (volume / truth - 1):+.1f} %)[/]" if truth else ""
        lines.append(f"{name} {volume:.0f} mL{error}")
    absent = []
    for name, present in reading.present.items():
        # No break between a number and its unit, however narrow the column.
        probability = f"\u00a0{100 * reading.probabilities[name]:.0f}\u00a0%" if name in reading.probabilities else ""
        if present:
            lines.append(f"[bold]{escape(name)} present[/]{probability}")
        else:
            absent.append(f"{escape(name)}{probability}")
    if absent:
        lines.append(f"[dim]absent: {', '.join(absent)}[/]")
    return "\n".join(lines) or "-"
