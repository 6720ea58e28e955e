"""How the state machines are run: on an empty database, with a fixed seed, and with many examples by hand."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import update
from sqlmodel import SQLModel

from app.settings import Settings
from app.storage.database import database_now, transaction
from app.tables import Worker
from trainers.configs import Queue, StageKind

# Workers of the machine send no heartbeats: they are alive until the example ends.
ALIVE_SECONDS = 3600.0
COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate],
}
# The same examples in each run, so that CI never fails by chance.
QUICK = settings(max_examples=12, stateful_step_count=30, derandomize=True, **COMMON)
# Other examples in each run, for `make slow`.
THOROUGH = settings(max_examples=3000, stateful_step_count=60, derandomize=False, **COMMON)
# A mutant is found or not: its example need not be small. The search ends when it is found.
MUTANT = settings(QUICK, max_examples=100, report_multiple_bugs=False, print_blob=False)


def run_machine(machine: type[RuleBasedStateMachine], service: Settings, profile: settings) -> None:
    """Run a state machine whose examples share the service's database."""
    service.heartbeat_seconds = ALIVE_SECONDS
    bound = type(machine.__name__, (machine,), {"settings": service})
    run_state_machine_as_test(bound, settings=profile)


def reset_database(n_workers: int) -> list[str]:
    """Empty the database, and return the ids of new workers that are alive."""
    with transaction() as session:
        for table in reversed(SQLModel.metadata.sorted_tables):
            session.execute(table.delete())
        values: dict[str, Any] = {"host": "h", "pid": 1, "queues": [Queue.cpu], "stages": list(StageKind)}
        rows = [Worker(name=f"worker-{number}", **values) for number in range(n_workers)]
        session.add_all(rows)
        session.flush()
        session.execute(update(Worker).values(last_seen_at=database_now()))
    return [row.id for row in rows]


def assert_caught(machine: type[RuleBasedStateMachine], service: Settings) -> None:
    """Assert that the machine fails: a mutant of the service was planted."""
    with pytest.raises(BaseException) as caught:
        run_machine(machine, service, MUTANT)
    assert not isinstance(caught.value, KeyboardInterrupt)
