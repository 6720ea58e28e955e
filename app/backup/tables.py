"""Tables as JSON lines, the same for SQLite and PostgreSQL.

Tables are reflected, so that a backup of an older schema can be read. JSON columns are copied as text, which
keeps the difference between SQL's null and that of JSON.
"""

import json
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    DateTime,
    MetaData,
    Table,
    Text,
    bindparam,
    cast,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SAWarning

from app.backup.layout import StoredTable, write_lines

ROWS_PER_READ = 1000
VERSION_TABLE = "alembic_version"


def reflect_tables(connection: Connection) -> list[Table]:
    """Return the tables of the database, each after those that its foreign keys refer to."""
    metadata = MetaData()
    with warnings.catch_warnings():
        # SQLAlchemy reflects no index on an expression, and a copy of rows needs none.
        warnings.simplefilter("ignore", SAWarning)
        metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != VERSION_TABLE]


def count_rows(connection: Connection, table: Table) -> int:
    """Return the number of rows of a table."""
    return connection.scalar(select(func.count()).select_from(table)) or 0


def export_table(connection: Connection, table: Table, path: Path) -> StoredTable:
    """Write the rows of a table, in the order of its primary key."""
    rows, sha256 = write_lines(path, iterate_rows(connection, table))
    return StoredTable(rows=rows, sha256=sha256)


def import_table(connection: Connection, table: Table, path: Path) -> None:
    """Insert the rows of a file; references of rows to other rows of the table are written last."""
    is_sqlite = connection.dialect.name == "sqlite"
    own = [key.parent for key in table.foreign_keys if key.column.table is table]
    inserted = insert(table).values({column.name: _parameter(column, is_sqlite) for column in table.columns})
    keys = list(table.primary_key.columns)
    referring = update(table).where(*(key == bindparam(f"key_{key.name}") for key in keys))
    referring = referring.values({column.name: bindparam(f"p_{column.name}") for column in own})
    references: list[dict[str, Any]] = []
    for batch in _read_batches(path):
        parsed = [_parse_row(table, row, is_sqlite) for row in batch]
        for row in parsed:
            if any(row[f"p_{column.name}"] is not None for column in own):
                values = {f"p_{column.name}": row[f"p_{column.name}"] for column in own}
                references.append({f"key_{key.name}": row[f"p_{key.name}"] for key in keys} | values)
        without = {f"p_{column.name}": None for column in own}
        connection.execute(inserted, [row | without for row in parsed])
    if references:
        connection.execute(referring, references)


def iterate_rows(connection: Connection, table: Table) -> Iterator[dict[str, Any]]:
    """Yield the rows in the order of the primary key; times are text in UTC, and JSON is text."""
    columns = [cast(c, Text).label(c.name) if isinstance(c.type, JSON) else c for c in table.columns]
    statement = select(*columns).order_by(*table.primary_key.columns)
    for row in connection.execute(statement.execution_options(yield_per=ROWS_PER_READ)).mappings():
        yield {name: _format(value) for name, value in row.items()}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    with path.open("rb") as lines:
        return [json.loads(line) for line in lines]


def _read_batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open("rb") as lines:
        while batch := [json.loads(line) for line in islice(lines, ROWS_PER_READ)]:
            yield batch


def _format(value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    # SQLite stores no time zones; all times are UTC.
    return (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)).isoformat()


def _parameter(column: Column[Any], is_sqlite: bool) -> Any:
    if isinstance(column.type, JSON):
        text = bindparam(f"p_{column.name}", type_=Text())
        return text if is_sqlite else cast(text, column.type)
    return bindparam(f"p_{column.name}", type_=column.type)


def _parse_row(table: Table, row: dict[str, Any], is_sqlite: bool) -> dict[str, Any]:
    values = {}
    for column in table.columns:
        value = row.get(column.name)
        if isinstance(column.type, DateTime) and value is not None:
            time = datetime.fromisoformat(value)
            value = time.replace(tzinfo=None) if is_sqlite else time
        values[f"p_{column.name}"] = value
    return values
