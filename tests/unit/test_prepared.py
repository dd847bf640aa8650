"""A prepared statement does what the same statement does when it is executed, on every database."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from storage import schema
from storage.database import Database, Writer, migrate, reserve_ids
from storage.prepared import Prepared

AT = datetime(2026, 11, 21, 12, 30, 15, 250_000, tzinfo=UTC)
COLUMNS = ("at", "kind", "object_id", "study_id", "before", "after", "reason", "detail")
ROW = {
    "at": AT,
    "kind": "instance",
    "object_id": 7,
    "study_id": None,
    "before": None,
    "after": "STORED",
    "reason": "Ä 'quoted' % :name ?",
    "detail": {"made_here": False, "Ж": [1, 2.5, None]},
}

INSERT = Prepared(insert(schema.change).inline(), COLUMNS)
FIND = Prepared(
    select(schema.change.c.at, schema.change.c.study_id, schema.change.c.reason, schema.change.c.detail).where(
        schema.change.c.object_id == bindparam("object_id"), schema.change.c.kind == "instance"
    )
)


def test_values_come_back_with_their_types(database: Database) -> None:
    with database.write() as connection:
        INSERT.run(connection, **ROW)
        INSERT.run_many(connection, [ROW | {"object_id": 8}, ROW | {"object_id": 9, "detail": {}}])
    with database.read() as connection:
        assert FIND.first(connection, object_id=7) == (AT, None, ROW["reason"], ROW["detail"])
        assert FIND.first(connection, object_id=9) == (AT, None, ROW["reason"], {})
        assert FIND.first(connection, object_id=10) is None
        rows = connection.execute(select(schema.change).order_by(schema.change.c.object_id)).mappings().all()
    assert [{name: row[name] for name in COLUMNS} for row in rows] == [
        ROW,
        ROW | {"object_id": 8},
        ROW | {"object_id": 9, "detail": {}},
    ]


def test_an_error_of_the_database_is_sqlalchemys_and_does_not_quote_the_values(database: Database) -> None:
    statement = Prepared(insert(schema.pause).inline(), ("kind", "name", "since"))
    with database.write() as connection:
        statement.run(connection, kind="model", name="Secret^Patient", since=AT)
    with pytest.raises(IntegrityError) as caught, database.write() as connection:
        statement.run(connection, kind="model", name="Secret^Patient", since=AT)
    assert "Secret^Patient" not in str(caught.value).split("DETAIL")[0]


def test_a_writer_goes_on_after_a_transaction_that_failed(database: Database) -> None:
    writer = Writer(database)
    change = Prepared(
        update(schema.pause).where(schema.pause.c.name == bindparam("which")).values(kind=bindparam("other"))
    )
    for name in ("a", "b"):
        with writer.transaction() as connection:
            connection.execute(insert(schema.pause).values(kind="model", name=name, since=AT))

    def fail() -> None:
        with writer.transaction() as connection:
            change.run(connection, which="a", other="lost")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with writer.transaction() as connection:
        change.run(connection, which="b", other="kept")
        kinds = connection.execute(select(schema.pause.c.kind).order_by(schema.pause.c.name)).scalars().all()
    writer.close()
    assert kinds == ["model", "kept"]


def test_reserved_ids_are_nobody_elses(database: Database) -> None:
    with database.write() as connection:
        first = connection.execute(
            insert(schema.quarantine).values(blob="x", size=1, reason="", calling_ae_title="", received_at=AT)
        ).inserted_primary_key
        assert first is not None
        ids = list(reserve_ids(connection, schema.quarantine, 3))
        assert len({*ids, first[0]}) == 4
        assert ids == sorted(ids)


def test_a_writer_that_hangs_in_its_turn_does_not_hold_up_the_others_for_ever(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.sqlite'}"
    migrate(url)
    database = Database(url)
    writer = Writer(database, turn_seconds=0.1)
    try:
        with (tmp_path / "a.sqlite-turn").open("w") as hanging:
            fcntl.flock(hanging, fcntl.LOCK_EX)
            with writer.transaction() as connection:
                INSERT.run(connection, **ROW)
        with database.read() as connection:
            assert FIND.first(connection, object_id=7) is not None
    finally:
        writer.close()
        database.close()
