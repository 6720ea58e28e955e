"""Deployments keep their invariants in any order of requests, claims, engine failures and expired leases.

Each planted mutant breaks one rule of the life cycle; the machine must find it within its budget.
"""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import ColumnElement
from sqlmodel import Session, col

from app.deployments import create, lifecycle
from app.settings import Settings
from app.storage.database import database_now
from app.tables import Deployment, DeploymentStatus
from tests.integration.app.deployment_machine import DeploymentMachine
from tests.integration.app.machines import QUICK, THOROUGH, assert_caught, run_machine

Plant = Callable[[pytest.MonkeyPatch], None]


def test_deployments_keep_their_invariants_in_any_order_of_events(settings: Settings) -> None:
    run_machine(DeploymentMachine, settings, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_deployments_keep_their_invariants_in_many_orders_of_events(settings: Settings) -> None:
    run_machine(DeploymentMachine, settings, THOROUGH)


def without_attempt_check(patch: pytest.MonkeyPatch) -> None:
    def guards(attempt: int) -> list[ColumnElement[bool]]:
        return [col(Deployment.status).in_(lifecycle.HELD), col(Deployment.lease_expires_at) > database_now()]

    patch.setattr(lifecycle, "_lease_guards", guards)


def without_lease_check(patch: pytest.MonkeyPatch) -> None:
    def guards(attempt: int) -> list[ColumnElement[bool]]:
        return [col(Deployment.attempt) == attempt, col(Deployment.status).in_(lifecycle.HELD)]

    patch.setattr(lifecycle, "_lease_guards", guards)


def without_release_of_expired_leases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "release_expired", lambda session: 0)


def with_final_statuses_overwritten(patch: pytest.MonkeyPatch) -> None:
    def wake(session: Session, deployment_id: str) -> Deployment | None:
        return lifecycle._update(session, deployment_id, [], **lifecycle._queued_values())

    patch.setattr(lifecycle, "wake", wake)


def with_the_former_owner_left_ready(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "_take_name", lambda session, deployment_id: None)


def with_the_owner_stopped_at_once(patch: pytest.MonkeyPatch) -> None:
    def stop_all(session: Session, deployment: Deployment) -> None:
        rows = session.query(Deployment).where(col(Deployment.name) == deployment.name).all()
        for other in rows:
            lifecycle.stop(session, other.id)

    patch.setattr(create, "_stop_others", stop_all)


def with_a_lease_that_outlives_the_engine(patch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"status": DeploymentStatus.queued}
    patch.setattr(lifecycle, "_queued_values", lambda: values)


MUTANTS: list[Plant] = [
    without_attempt_check,
    without_lease_check,
    without_release_of_expired_leases,
    with_final_statuses_overwritten,
    with_the_former_owner_left_ready,
    with_the_owner_stopped_at_once,
    with_a_lease_that_outlives_the_engine,
]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("plant", MUTANTS)
def test_a_planted_mutant_is_caught(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    plant(monkeypatch)
    assert_caught(DeploymentMachine, settings)
