"""Runs keep their invariants in any order of requests, notifications, attempts and expired leases.

Each planted mutant breaks one rule of the life cycle; the machine must find it within its budget.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Select, literal, select
from sqlmodel import Session, col

from app.runs import claimable, lifecycle
from app.runs.attempt_outcome import NewEvent
from app.scheduling import sweeper
from app.settings import Settings
from app.storage.database import UTCDateTime, database_now
from app.tables import HELD, Run, RunStatus
from tests.integration.app.machines import QUICK, THOROUGH, assert_caught, run_machine
from tests.integration.app.run_machine import RunMachine
from tests.integration.app.run_model import HOST_CLOCK
from trainers.configs import Queue

Plant = Callable[[pytest.MonkeyPatch], None]


def test_runs_keep_their_invariants_in_any_order_of_events(settings: Settings) -> None:
    run_machine(RunMachine, settings, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_runs_keep_their_invariants_in_many_orders_of_events(settings: Settings) -> None:
    run_machine(RunMachine, settings, THOROUGH)


def without_attempt_check(patch: pytest.MonkeyPatch) -> None:
    def guards(attempt: int) -> list[ColumnElement[bool]]:
        return [col(Run.status).in_(HELD), col(Run.lease_expires_at) > database_now()]

    patch.setattr(lifecycle, "lease_guards", guards)


def without_lease_check(patch: pytest.MonkeyPatch) -> None:
    def guards(attempt: int) -> list[ColumnElement[bool]]:
        return [col(Run.attempt) == attempt, col(Run.status).in_(HELD)]

    patch.setattr(lifecycle, "lease_guards", guards)


def without_second_notification(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sweeper, "_claim_notification", lambda *arguments: False)


def without_release_of_expired_leases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "release_expired", lambda session, max_failures: [])


def with_leases_by_the_clock_of_the_host(patch: pytest.MonkeyPatch) -> None:
    def host_now(plus_seconds: float = 0) -> ColumnElement[Any]:
        return literal(HOST_CLOCK.now() + timedelta(seconds=plus_seconds), UTCDateTime())

    patch.setattr(lifecycle, "database_now", host_now)


def with_final_statuses_overwritten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "lease_guards", lambda attempt: [col(Run.attempt) == attempt])
    patch.setattr(lifecycle, "TRANSITIONS", {status: frozenset(RunStatus) for status in RunStatus})


def with_later_stages_claimed_early(patch: pytest.MonkeyPatch) -> None:
    def select_queued(queues: Sequence[Queue], *options: Any) -> Select[str]:
        queued = col(Run.status) == RunStatus.queued
        return select(col(Run.id)).where(queued, col(Run.queue).in_(queues)).order_by(col(Run.id).desc())

    patch.setattr(claimable, "select_claimable", select_queued)


def without_events_of_released_runs(patch: pytest.MonkeyPatch) -> None:
    add_events = lifecycle._add_events

    def add_some(session: Session, run: Run, events: Sequence[NewEvent]) -> None:
        if run.status is not RunStatus.queued or run.attempt == 0:
            add_events(session, run, events)

    patch.setattr(lifecycle, "_add_events", add_some)


def without_the_end_of_later_stages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "_handle_new_status", lambda session, run: None)


MUTANTS: list[Plant] = [
    without_attempt_check,
    without_lease_check,
    without_second_notification,
    without_release_of_expired_leases,
    with_leases_by_the_clock_of_the_host,
    with_final_statuses_overwritten,
    with_later_stages_claimed_early,
    without_events_of_released_runs,
    without_the_end_of_later_stages,
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("plant", MUTANTS)
def test_a_planted_mutant_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    plant(monkeypatch)
    assert_caught(RunMachine, settings)
