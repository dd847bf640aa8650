"""What a modality says of its work is kept as it says it, on both databases."""

from __future__ import annotations

import pytest

from storage import changefeed, lifecycle, procedure_steps
from storage.database import Database
from storage.errors import AlreadyThere, IllegalTransition, Unknown
from storage.records import ProcedureStep
from tests.work import Holding

STEP, STUDY = "1.2.840.1", "1.2.840.2"


def _begin(database: Database) -> ProcedureStep:
    with database.write() as connection:
        return procedure_steps.create(
            connection,
            sop_instance_uid=STEP,
            study_instance_uid=STUDY,
            performed_series={},
            attributes={"00400252": {"vr": "CS", "Value": ["IN PROGRESS"]}},
            calling_ae_title="CT1",
        )


def test_a_step_is_begun_and_ended_with_what_it_made_and_its_moves_stand_in_the_feed(holding: Holding) -> None:
    database = holding.database
    begun = _begin(database)
    assert (begun.state, begun.ended_at, begun.study_instance_uid) == ("IN PROGRESS", None, STUDY)
    with database.write() as connection:
        procedure_steps.update(connection, STEP, performed_series={"1.5": ["1.6", "1.7", "1.6"]})
        ended = procedure_steps.update(connection, STEP, state=lifecycle.COMPLETED)
    assert ended.performed_series == {"1.5": ["1.6", "1.7"]}
    assert ended.ended_at is not None
    with database.read() as connection:
        assert procedure_steps.for_study(connection, STUDY) == [ended]
        assert procedure_steps.for_study(connection, "1.9") == []
        moves = [(one.after, one.reason) for one in changefeed.since(connection, 0) if one.kind == "procedure_step"]
    assert moves == [
        ("IN PROGRESS", "CT1 names 0 instances in 0 series"),
        ("COMPLETED", "CT1 names 2 instances in 1 series"),
    ]


def test_a_step_that_has_ended_can_not_be_changed(holding: Holding) -> None:
    _begin(holding.database)
    with holding.database.write() as connection:
        procedure_steps.update(connection, STEP, state=lifecycle.DISCONTINUED)
        with pytest.raises(IllegalTransition, match="no longer"):
            procedure_steps.update(connection, STEP, performed_series={"1.5": ["1.6"]})


def test_a_step_is_made_once_and_what_is_not_there_is_not_changed(holding: Holding) -> None:
    begun = _begin(holding.database)
    with pytest.raises(AlreadyThere, match=STEP):
        _begin(holding.database)
    with holding.database.write() as connection, pytest.raises(Unknown):
        procedure_steps.update(connection, "1.1", state=lifecycle.COMPLETED)
    with holding.database.read() as connection:
        assert procedure_steps.get(connection, STEP) == begun
