"""Rows that are created without the constructor of their table."""

from typing import Any

import pytest

from app.tables import Job, Run
from app.tables.base import new_row
from trainers.configs import Queue, StageKind

RUN = {
    "job_id": "job_1",
    "position": 0,
    "name": "sft",
    "stage": StageKind.sft,
    "queue": Queue.cpu,
    "config": {},
}
GENERATED = {"id", "created_at"}


@pytest.mark.parametrize(("table", "values"), [(Run, RUN), (Job, {"name": "job", "labels": {"team": "a"}})])
def test_a_new_row_equals_a_constructed_one(table: type[Run | Job], values: dict[str, Any]) -> None:
    row, constructed = new_row(table, **values), table(**values)
    assert row.model_dump(exclude=GENERATED) == constructed.model_dump(exclude=GENERATED)
    assert type(row.id) is type(constructed.id)
    assert type(row.created_at) is type(constructed.created_at)


def test_two_new_rows_share_no_default() -> None:
    first, second = new_row(Run, **RUN), new_row(Run, **RUN)
    first.tracking.append({"service": "mlflow"})
    assert (second.tracking, first.id == second.id) == ([], False)


def test_a_value_that_is_not_a_column_is_refused() -> None:
    with pytest.raises(AssertionError, match="not a column"):
        new_row(Job, nmae="job")
