"""The rows of studies and series: found or made, and described by what their instances say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Text, bindparam, cast, insert, select, update

from storage import lifecycle, schema
from storage.attributes import SERIES_KEYWORDS, STUDY_KEYWORDS, attribute_value
from storage.headers import Header
from storage.matching import folded
from storage.prepared import Prepared

__all__ = ["describe_anew", "series_row", "study_row", "text_of"]

#: What a searchable column keeps of a value: PostgreSQL refuses to index much more. The whole stands in attributes.
_COLUMN_CHARACTERS = 512

_STUDY_KEYWORDS, _SERIES_KEYWORDS = tuple(STUDY_KEYWORDS), tuple(SERIES_KEYWORDS)
_STUDY = Prepared(
    select(schema.study.c.id, schema.study.c.state, cast(schema.study.c.attributes, Text))
    .where(schema.study.c.study_instance_uid == bindparam("uid"))
    .with_for_update()
)
_GROWN = Prepared(
    update(schema.study)
    .where(schema.study.c.id == bindparam("study"))
    .values(last_received_at=bindparam("at"), quiet_from=bindparam("at"))
)
_SERIES = Prepared(
    select(schema.series.c.id, cast(schema.series.c.attributes, Text)).where(
        schema.series.c.study_id == bindparam("study"), schema.series.c.series_instance_uid == bindparam("uid")
    )
)


def study_row(connection: Connection, headers: Sequence[Header], evidence: Sequence[Header], at: datetime) -> int:
    """Find or make the study of these instances; only evidence starts its quiet period anew or opens it again.

    The row stays locked to the end of the transaction, so that no verdict on the study comes in between, and the
    ids of its instances follow each other as their commits do.

    Parameters
    ----------
    headers
        At least one, all of the same study.
    evidence
        Those of them that count.
    at
        The database's time.
    """
    s = schema.study.c
    row = _STUDY.first(connection, uid=headers[0].study_instance_uid)
    if row is None:
        first = evidence[0] if evidence else headers[0]
        state = lifecycle.RECEIVING if evidence else lifecycle.COMPLETE
        attributes = _added(first.study, evidence[1:], _STUDY_KEYWORDS)
        key = connection.execute(
            insert(schema.study).values(
                study_instance_uid=first.study_instance_uid,
                state=state,
                **_study_columns(attributes),
                first_received_at=at,
                last_received_at=at,
                quiet_from=at,
                receiving_from=at,
            )
        ).inserted_primary_key
        assert key is not None
        lifecycle.record_creation(connection, "study", int(key[0]), state, study_id=int(key[0]))
        return int(key[0])
    study_id, state, text = row
    if evidence:
        _GROWN.run(connection, study=study_id, at=at)
        known, silent = _described(text, _STUDY_KEYWORDS)
        attributes = _grown(known, silent, evidence, _STUDY_KEYWORDS)
        if attributes is not known:
            connection.execute(update(schema.study).where(s.id == study_id).values(_study_columns(attributes)))
        if state == lifecycle.COMPLETE:
            lifecycle.transition(
                connection,
                "study",
                study_id,
                lifecycle.RECEIVING,
                study_id=study_id,
                reason="a further instance came",
                receiving_from=at,
            )
    return int(study_id)


def series_row(connection: Connection, headers: Sequence[Header], study_id: int) -> int:
    """Find or make the series of these instances: at least one, all of the same series."""
    row = _SERIES.first(connection, study=study_id, uid=headers[0].series_instance_uid)
    if row is not None:
        series_id, text = row
        known, silent = _described(text, _SERIES_KEYWORDS)
        attributes = _grown(known, silent, headers, _SERIES_KEYWORDS)
        if attributes is not known:
            s = schema.series.c
            connection.execute(update(schema.series).where(s.id == series_id).values(_series_columns(attributes)))
        return int(series_id)
    key = connection.execute(
        insert(schema.series).values(
            study_id=study_id,
            series_instance_uid=headers[0].series_instance_uid,
            **_series_columns(_added(headers[0].series, headers[1:], _SERIES_KEYWORDS)),
        )
    ).inserted_primary_key
    assert key is not None
    return int(key[0])


def describe_anew(connection: Connection, study_id: int, headers: Sequence[Header]) -> None:
    """Let a study and its series be described by these instances alone, in the order given.

    For when an operator has changed what counts: what was taken out must not name the patient or steer a route.
    """
    attributes: dict[str, Any] = {}
    of_series: dict[str, dict[str, Any]] = {}
    for header in headers:
        attributes = _added(attributes, [header], _STUDY_KEYWORDS)
        uid = header.series_instance_uid
        of_series[uid] = _added(of_series.get(uid, {}), [header], _SERIES_KEYWORDS)
    s = schema.series.c
    if headers:
        connection.execute(update(schema.study).where(schema.study.c.id == study_id).values(_study_columns(attributes)))
    for uid, known in of_series.items():
        connection.execute(
            update(schema.series)
            .where(s.study_id == study_id, s.series_instance_uid == uid)
            .values(_series_columns(known))
        )


def _added(known: dict[str, Any], headers: Sequence[Header], keywords: tuple[str, ...]) -> dict[str, Any]:
    return _grown(known, _silent(known, keywords), headers, keywords)


def _grown(
    known: dict[str, Any], silent: tuple[str, ...], headers: Sequence[Header], keywords: tuple[str, ...]
) -> dict[str, Any]:
    """Add what instances say that none before them has said; ``known`` itself where that is nothing."""
    for header in headers:
        if silent and (added := header.elements(silent)):
            known = {**known, **added}
            silent = _silent(known, keywords)
    return known


def _silent(known: dict[str, Any], keywords: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(keyword for keyword in keywords if attribute_value(known, keyword) is None)


@lru_cache(maxsize=256)
def _described(text: str, keywords: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a row's attributes and which are not said: the same for instance after instance of a series."""
    known: dict[str, Any] = json.loads(text)
    return known, _silent(known, keywords)


def _study_columns(attributes: dict[str, Any]) -> dict[str, Any]:
    name = _name(attributes)
    return {
        "patient_id": text_of(attributes, "PatientID"),
        "patient_name": name,
        "patient_name_folded": folded(name)[:_COLUMN_CHARACTERS],
        "patient_birth_date": text_of(attributes, "PatientBirthDate"),
        "patient_sex": text_of(attributes, "PatientSex"),
        "accession_number": text_of(attributes, "AccessionNumber"),
        "study_date": text_of(attributes, "StudyDate"),
        "study_time": text_of(attributes, "StudyTime"),
        "study_description": text_of(attributes, "StudyDescription"),
        "attributes": attributes,
    }


def _series_columns(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        "modality": text_of(attributes, "Modality"),
        "series_number": text_of(attributes, "SeriesNumber"),
        "series_description": text_of(attributes, "SeriesDescription"),
        "attributes": attributes,
    }


def text_of(attributes: Any, keyword: str) -> str:
    """Return an attribute of DICOM JSON as a searchable column keeps it."""
    value = attribute_value(attributes, keyword)
    if value is None:
        return ""
    text = "\\".join(str(one) for one in value) if isinstance(value, list) else str(value)
    return text[:_COLUMN_CHARACTERS]


def _name(attributes: Any) -> str:
    """Return the patient's name with all its groups, joined as PS3.5 6.2.1 joins them."""
    values = attributes.get("00100010", {}).get("Value", [])
    if not values or not isinstance(values[0], dict):
        return ""
    groups = [values[0].get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")[:_COLUMN_CHARACTERS]
