"""Runs keep their invariants in any order of requests, notifications, attempts and expired leases.

Each planted mutant breaks one rule of the life cycle; the machine must find it within its budget.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Select, literal, select
from sqlmodel import Session, col

from app.runs import claimable, graph, lifecycle
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


def with_direct_dependents_only(patch: pytest.MonkeyPatch) -> None:
    find_effects = graph.find_effects

    def find_direct(runs: Sequence[Run], needs: graph.Needs, ended: Run) -> Iterator[tuple[Run, RunStatus]]:
        for run, to in find_effects(runs, needs, ended):
            if any(need.needed_id == ended.id for need in needs[run.id]):
                yield run, to

    patch.setattr(graph, "find_effects", find_direct)


def with_the_end_of_independent_branches(patch: pytest.MonkeyPatch) -> None:
    def find_all(runs: Sequence[Run], needs: graph.Needs, ended: Run) -> Iterator[tuple[Run, RunStatus]]:
        if ended.status is not RunStatus.succeeded:
            yield from ((run, RunStatus.cancelled) for run in runs)

    patch.setattr(graph, "find_effects", find_all)


def without_the_count_of_needs(patch: pytest.MonkeyPatch) -> None:
    update = lifecycle._update

    def update_some(session: Session, guards: Any, values: dict[str, Any], n_events: int) -> Run | None:
        return update(session, guards, {n: v for n, v in values.items() if n != "unmet_needs"}, n_events)

    patch.setattr(lifecycle, "_update", update_some)


def with_a_gate_as_a_failure(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graph, "is_gate_not_met", lambda run: False)


def without_handled_gates(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graph, "is_handled", lambda run_id, not_met: literal(False))


def with_skipped_runs_left_out_of_retries(patch: pytest.MonkeyPatch) -> None:
    plan_retry = graph.plan_retry

    def plan_some(runs: Sequence[Run], needs: graph.Needs) -> list[tuple[Run, RunStatus]]:
        return [(run, to) for run, to in plan_retry(runs, needs) if run.status is not RunStatus.skipped]

    patch.setattr(graph, "plan_retry", plan_some)


def with_retries_of_runs_that_a_gate_excludes(patch: pytest.MonkeyPatch) -> None:
    def plan_all(runs: Sequence[Run], needs: graph.Needs) -> list[tuple[Run, RunStatus]]:
        ended = (RunStatus.failed, RunStatus.cancelled, RunStatus.skipped)
        return [(run, RunStatus.queued) for run in runs if run.status in ended and not run.handled]

    patch.setattr(graph, "plan_retry", plan_all)


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
    with_direct_dependents_only,
    with_the_end_of_independent_branches,
    without_the_count_of_needs,
    with_a_gate_as_a_failure,
    without_handled_gates,
    with_skipped_runs_left_out_of_retries,
    with_retries_of_runs_that_a_gate_excludes,
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("plant", MUTANTS)
def test_a_planted_mutant_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    plant(monkeypatch)
    assert_caught(RunMachine, settings)
