"""Statements that are put together and compiled once: running a small one costs a tenth of what it does otherwise.

SQLAlchemy spends some 20 to 60 microseconds on each execution, SQLite 2. Receiving runs the same eight statements for
each object. They are written and compiled by SQLAlchemy as everywhere, with its types, and then run on the driver's
own cursor, within the transaction of the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement

__all__ = ["Prepared"]

_Process = Callable[[Any], Any]


class Prepared:
    """A statement with named parameters, for whichever database it is run on.

    Parameters
    ----------
    statement
        Of SQLAlchemy Core, without lists that expand; its parameters and columns have types.
    columns
        Of an INSERT: those that get values.
    """

    def __init__(self, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        self._statement = statement
        self._columns = list(columns) if columns is not None else None
        self._compiled: dict[str, _Compiled] = {}

    def first(self, connection: Connection, **parameters: Any) -> tuple[Any, ...] | None:
        """Run it and return the first row, if there is one."""
        compiled = self._on(connection.dialect)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(compiled.text, compiled.bound(parameters))
            row = cursor.fetchone()
        except connection.dialect.loaded_dbapi.Error as error:
            raise _translated(connection, compiled.text, error) from error
        finally:
            cursor.close()
        return None if row is None else compiled.result(row)

    def run(self, connection: Connection, **parameters: Any) -> None:
        """Run it for what it does."""
        self.run_many(connection, [parameters])

    def run_many(self, connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each set of parameters."""
        compiled = self._on(connection.dialect)
        bound = [compiled.bound(one) for one in parameters]
        cursor = connection.connection.cursor()
        try:
            if len(bound) == 1:
                cursor.execute(compiled.text, bound[0])
            else:
                cursor.executemany(compiled.text, bound)
        except connection.dialect.loaded_dbapi.Error as error:
            raise _translated(connection, compiled.text, error) from error
        finally:
            cursor.close()

    def _on(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, self._columns, dialect)
        return compiled


class _Compiled:
    """A statement's text for one database, and what its values go through on their way."""

    def __init__(self, statement: ClauseElement, columns: list[str] | None, dialect: Dialect) -> None:
        compiler = statement.compile(dialect=dialect, column_keys=columns)
        assert isinstance(compiler, SQLCompiler)
        self.text = str(compiler)
        self._positional = compiler.positional
        names = compiler.positiontup if compiler.positional else list(compiler.binds)
        self._parameters: list[tuple[str, _Process | None, Any]] = []
        for name in names or ():
            bind = compiler.binds[name]
            # What is no parameter of the caller's has its value in the statement.
            given = None if bind.required or columns is not None else bind.value
            self._parameters.append((name, bind.type.dialect_impl(dialect).bind_processor(dialect), given))
        self._results = [
            column.type.dialect_impl(dialect).result_processor(dialect, None) for column in compiler._result_columns
        ]

    def bound(self, parameters: Mapping[str, Any]) -> Any:
        if not self._positional:
            return {
                name: process(parameters.get(name, given)) if process else parameters.get(name, given)
                for name, process, given in self._parameters
            }
        return [
            process(parameters.get(name, given)) if process else parameters.get(name, given)
            for name, process, given in self._parameters
        ]

    def result(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(
            process(value) if process is not None else value for process, value in zip(self._results, row, strict=True)
        )


def _translated(connection: Connection, text: str, error: Any) -> BaseException:
    """Return the driver's error as SQLAlchemy's, without the parameters."""
    kinds = connection.dialect.loaded_dbapi.Error
    lost = connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
    translated: BaseException = DBAPIError.instance(
        text, None, error, kinds, hide_parameters=True, connection_invalidated=lost, dialect=connection.dialect
    )
    return translated
