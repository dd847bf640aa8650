"""Urgent work goes first, what it waits for is said, and nothing waits for ever."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from sqlalchemy import event, insert, text

from node.settings import Route
from node.workflow import routing
from node.workflow.status import status
from node.workflow.story import tell
from storage import attempts, lifecycle, schema, studies, worklist
from storage.database import now
from storage.priority import rank_of
from storage.records import Study
from tests.work import Holding


def schedule(holding: Holding, study: Study, urgency: str, model: str = "lung-ct", inputs: str = "") -> int:
    with holding.database.write() as connection:
        revision = studies.revisions(connection, study.id)[-1]
        made, _ = worklist.schedule(
            connection,
            worklist.Key(
                study_id=study.id,
                model=model,
                model_version="1.0",
                model_digest="a" * 64,
                device_uid="2.25.1",
                input_digest=inputs or uuid.uuid4().hex * 2,
            ),
            input_set={"ct": {"series_instance_uid": "1.2", "sop_instance_uids": ["1"]}},
            revision_id=revision.id,
            route="chest-ct",
            reason="one",
            deliver=(),
            notify=(),
            urgency=urgency,
        )
    return made.id


def claim(holding: Holding, **choice: Any) -> int | None:
    with holding.database.write() as connection:
        claimed = attempts.claim(connection, "worker", 30, attempts.Choice(**choice))
    return claimed[0].id if claimed else None


@pytest.fixture
def study(holding: Holding, tmp_path: Path) -> Study:
    one = holding.study(tmp_path)
    holding.judge(one)
    return one


def test_urgent_work_is_taken_first_and_of_equal_urgency_the_oldest(holding: Holding, study: Study) -> None:
    first, low, urgent, second, more_urgent = (
        schedule(holding, study, name) for name in ("MEDIUM", "LOW", "HIGH", "MEDIUM", "HIGH")
    )
    assert [claim(holding) for _ in range(6)] == [urgent, more_urgent, first, second, low, None]


def test_a_worker_that_looks_for_the_oldest_takes_routine_work_from_under_urgent_work(
    holding: Holding, study: Study
) -> None:
    low, urgent = (schedule(holding, study, name) for name in ("LOW", "HIGH"))
    assert claim(holding, oldest=True) == low
    assert claim(holding) == urgent


def test_a_full_model_holds_up_no_other(holding: Holding, study: Study) -> None:
    for _ in range(3):
        schedule(holding, study, "HIGH", model="slow-ct")
    radiograph = schedule(holding, study, "MEDIUM", model="chest-radiograph")
    assert claim(holding, paused_models={"slow-ct"}) == radiograph


def test_another_workers_models_are_taken_only_once_they_have_waited(holding: Holding, study: Study) -> None:
    work = schedule(holding, study, "MEDIUM")
    assert claim(holding, own_models=["other"], others_after_seconds=3600) is None
    assert claim(holding, own_models=["other"], others_after_seconds=0) == work


def test_work_that_is_wanted_more_urgently_goes_to_the_front_and_never_back(holding: Holding, study: Study) -> None:
    schedule(holding, study, "MEDIUM")
    work = schedule(holding, study, "MEDIUM", inputs="b" * 64)
    assert schedule(holding, study, "HIGH", inputs="b" * 64) == work
    assert schedule(holding, study, "LOW", inputs="b" * 64) == work
    assert claim(holding) == work
    with holding.database.read() as connection:
        story = tell(connection, study.study_instance_uid)
        items = status(connection).waiting
    assert [one.priority for one in story.workitems] == ["MEDIUM", "HIGH"]
    assert any(one.reason == "HIGH by route chest-ct" for one in story.events)
    assert any("priority HIGH" in one.what for one in items)


def test_a_retried_workitem_keeps_its_priority(holding: Holding, study: Study) -> None:
    work = schedule(holding, study, "HIGH")
    with holding.database.write() as connection:
        worklist.cancel(connection, worklist.get(connection, work), "operator")
        again = worklist.replace(connection, worklist.get(connection, work), "operator")
    assert again.priority == rank_of("HIGH")


def test_a_long_history_and_a_long_queue_are_looked_through_by_the_index(holding: Holding, study: Study) -> None:
    statements: list[tuple[str, Any]] = []
    with holding.database.write() as connection:
        at = now(connection)
        connection.execute(
            insert(schema.workitem),
            [
                {
                    "uid": f"1.2.{number}",
                    "study_id": study.id,
                    "model": "m",
                    "model_version": "1",
                    "model_digest": "a" * 64,
                    "device_uid": "1.2",
                    "input_digest": f"{number:064d}",
                    "generation": 0,
                    "input_set": {},
                    "state": lifecycle.COMPLETED if number % 20 else lifecycle.SCHEDULED,
                    "created_at": at,
                }
                for number in range(4000)
            ],
        )
    with holding.database.write() as connection:
        connection.execute(text("ANALYZE workitem"))
    with holding.database.read() as connection:

        @event.listens_for(connection, "before_cursor_execute")
        def seen(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
            statements.append((statement, parameters))

        assert attempts.claimable(connection)
        statement, parameters = statements[-1]
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        plan = connection.exec_driver_sql(explain + statement, parameters).all()
    assert "ix_workitem_open" in str(plan)


def test_what_was_requested_decides_unless_the_route_does() -> None:
    def urgency(priority: str | None, attributes: dict[str, Any]) -> str:
        route = Route(name="one", match={"Modality": "CT"}, models=("m",), priority=priority)  # type: ignore[arg-type]
        candidate = routing.Candidate(series=None, instances=(), attributes=attributes)  # type: ignore[arg-type]
        return routing.urgency(route, routing.InputSet({"ct": candidate}, ""))

    item = Dataset()
    item.RequestedProcedurePriority = "STAT"
    asked = item.to_json_dict()
    assert urgency(None, {}) == "MEDIUM"
    assert urgency(None, {"RequestedProcedurePriority": "STAT"}) == "HIGH"
    assert urgency(None, {"RequestedProcedurePriority": "ROUTINE"}) == "MEDIUM"
    assert urgency(None, {"RequestedProcedurePriority": "LOW"}) == "LOW"
    assert urgency(None, {"RequestAttributesSequence": asked}) == "HIGH"
    assert urgency(None, {"RequestAttributesSequence": [{}, asked], "RequestedProcedurePriority": "LOW"}) == "HIGH"
    assert urgency(None, {"RequestedProcedurePriority": "as soon as it can be"}) == "MEDIUM"
    assert urgency("low", {"RequestedProcedurePriority": "STAT"}) == "LOW"
