"""What a receiver is told about a revision, built from the rows: who, what was found, what was not and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from inference.findings import Code
from inference.registry import parted
from node.notify.report import DocumentReference, Report, Result, ResultState
from node.workflow.models import View
from storage import lifecycle, outbox, studies, worklist
from storage.attributes import attribute_value
from storage.records import Document, Revision, Study, Workitem

__all__ = ["build_report", "receivers_of", "says"]


def receivers_of(connection: Connection, revision: Revision) -> tuple[str, ...]:
    """Return who is to be told of a revision, in the order that the routes name them."""
    names: dict[str, None] = {}
    for use, _ in worklist.current_workitems(connection, revision.id):
        names.update(dict.fromkeys(use.notify))
    for decision in studies.decisions(connection, revision.id):
        if decision["not_analysed"]:
            names.update(dict.fromkeys(decision["notify"]))
    return tuple(names)


def build_report(
    connection: Connection,
    study: Study,
    revision: Revision,
    receiver: str,
    models: View,
    *,
    message_number: int,
    produced_at: datetime,
) -> Report:
    """Gather what one receiver is told; see :class:`node.notify.report.Report`."""
    code = _first(study.attributes, "00081032")
    return Report(
        study_uid=study.study_instance_uid,
        accession_number=study.accession_number,
        placer_order_number=str(attribute_value(study.attributes, "PlacerOrderNumberImagingServiceRequest") or ""),
        patient_id=study.patient_id,
        issuer=str(attribute_value(study.attributes, "IssuerOfPatientID") or ""),
        patient_name=study.patient_name,
        birth_date=study.patient_birth_date,
        sex=study.patient_sex,
        study_date=study.study_date,
        study_time=study.study_time,
        study_description=study.study_description,
        requested_procedure=_procedure(code),
        revision=revision.number,
        message_number=message_number,
        produced_at=produced_at,
        results=_results(connection, revision, receiver, models),
        timezone_offset=str(attribute_value(study.attributes, "TimezoneOffsetFromUTC") or ""),
        cautions=tuple(str(one) for one in revision.verdict.get("flags", ())),
    )


def says(report: Report) -> bytes:
    """Return what a report says of results and to whom they belong: what is equal need not be said twice.

    When, in which message and why this series was chosen are left out: a worse reconstruction that comes later
    changes the choice's wording and nothing else.
    """
    content = asdict(report)
    for key in ("revision", "message_number", "produced_at"):
        del content[key]
    for result in content["results"]:
        del result["route_reason"]
    return json.dumps(content, sort_keys=True, default=str).encode()


def _results(connection: Connection, revision: Revision, receiver: str, models: View) -> tuple[Result, ...]:
    results: dict[int, Result] = {}
    for use, workitem in worklist.current_workitems(connection, revision.id):
        if receiver not in use.notify:
            continue
        if workitem.id in results:
            known = results[workitem.id]
            results[workitem.id] = _result(
                connection, workitem, models, f"{known.route}, {use.route}", known.route_reason
            )
        else:
            results[workitem.id] = _result(connection, workitem, models, use.route, use.reason)
    unread = [
        Result(
            model_name=parted(decision["model"])[0],
            model_version=card.version if card else "",
            model_title=card.title if card else decision["model"],
            demonstration=card is not None and card.demonstration,
            state="not-analysed",
            reason=decision["not_analysed"]["text"],
            findings=None,
            documents=(),
            started_at=None,
            ended_at=None,
            route=decision["route"],
            route_reason="matched; nothing in it that the model can read",
        )
        for decision in studies.decisions(connection, revision.id)
        if decision["not_analysed"] and receiver in decision["notify"]
        for card in (models.named(decision["model"]),)
    ]
    return (*results.values(), *unread)


def _result(connection: Connection, workitem: Workitem, models: View, route: str, route_reason: str) -> Result:
    state: ResultState = "analysed"
    reason = None
    findings: Any = workitem.findings
    card = models.of_digest(workitem.model_digest) or models.named(workitem.model)
    if workitem.state == lifecycle.CANCELED:
        state, reason = "parked", workitem.outcome
    elif findings and findings.get("not_analysed"):
        state, reason = "not-analysed", str(findings["not_analysed"]["text"])
    return Result(
        model_name=workitem.model,
        model_version=workitem.model_version,
        model_title=card.title if card else workitem.model,
        demonstration=card is not None and card.demonstration,
        state=state,
        reason=reason,
        findings=dict(findings) if findings else None,
        documents=tuple(_reference(connection, one) for one in worklist.documents(connection, workitem.id)),
        started_at=workitem.started_at,
        ended_at=workitem.ended_at,
        route=route,
        route_reason=route_reason,
    )


def _reference(connection: Connection, document: Document) -> DocumentReference:
    deliveries = outbox.deliveries_of(connection, document.id)
    notes = [
        f"delivered to {one.destination}"
        if one.state == lifecycle.DELIVERED
        else f"not delivered to {one.destination}: {one.answer}"
        for one in deliveries
    ]
    return DocumentReference(
        kind=document.kind,
        sop_class_uid=document.sop_class_uid,
        sop_instance_uid=document.sop_instance_uid,
        delivered=bool(deliveries) and all(one.state == lifecycle.DELIVERED for one in deliveries),
        note="; ".join(notes) or "kept in this node's archive",
    )


def _procedure(item: Any) -> Code | None:
    if not isinstance(item, Mapping):
        return None
    value = attribute_value(item, "CodeValue")
    scheme = attribute_value(item, "CodingSchemeDesignator")
    meaning = attribute_value(item, "CodeMeaning")
    return Code(value=str(value), scheme=str(scheme), meaning=str(meaning)) if value and scheme and meaning else None


def _first(attributes: Any, tag: str) -> Any:
    values = attributes.get(tag, {}).get("Value", [])
    return values[0] if values else None
