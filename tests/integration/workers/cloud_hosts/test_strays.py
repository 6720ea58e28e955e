"""Machines that only a person may end: those of other installations, and those newer than the database.

The keeper has the client of Lambda, against a stand-in for its API, on a simulated clock.
"""

from datetime import timedelta

import pytest
from sqlmodel import select

from app.hosts.settlement import CloudNotHeld, take_over
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import CloudState, Host, HostStatus
from app.tables.base import new_id
from tests.clouds.lambda_stand_in import LambdaStandIn
from tests.integration.workers.cloud_hosts.test_keeper import (
    Control,
    control,
    lambda_account,
    lambda_stand_in,
    make_ready,
    open_lambda,
)
from trainers.configs.clouds import CloudName
from workers.cloud_hosts.keeper import CloudSweepFailed
from workers.clouds.protocol import LaunchOrder

__all__ = ["control", "lambda_account", "lambda_stand_in", "open_lambda"]

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def read_state() -> CloudState:
    with read_session() as session:
        return session.scalars(select(CloudState)).one()


def hold(control: Control) -> None:
    """Hold the hosts, as a restoration does."""
    with transaction() as session:
        session.get_one(CloudState, CloudName.lambda_cloud).held_at = control.clock.now


def test_a_machine_of_another_installation_is_reported_and_never_terminated(
    control: Control, lambda_stand_in: LambdaStandIn, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    order = LaunchOrder("lost_installation", "host_1", 1, "gpu_1x_a10", "us-east-1", "#!/bin/sh")
    machine_id = control.context.cloud.launch(order)
    for _ in range(2):
        control.sweep(400)
    (machine,) = read_state().unclaimed
    assert (machine["machine_id"], machine["installation_id"]) == (machine_id, "lost_installation")
    assert lambda_stand_in.billed() == [machine_id]
    assert caplog.text.count("terminate the machine in the console") == 1
    settings.other_installations = ["lost_installation"]
    control.sweep()
    assert read_state().unclaimed == []


def test_a_machine_newer_than_the_database_is_terminated_once_a_person_takes_it_over(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id = new_id("host", created_at=control.clock.now)
    make_ready(control, lambda_stand_in, id=host_id)
    with transaction() as session:
        # As of a backup that is older than the host.
        session.delete(session.get_one(Host, host_id))
        session.scalars(select(CloudState)).one().listed_at = control.clock.now - timedelta(days=7)
    control.add_host()
    control.sweep()
    assert [machine["host_id"] for machine in read_state().unclaimed] == [host_id]
    assert len(lambda_stand_in.billed()) == 2
    with transaction() as session:
        take_over(session, CloudName.lambda_cloud)
    control.sweep()
    control.sweep()
    assert (len(lambda_stand_in.billed()), read_state().unclaimed, read_state().orphan_count) == (1, [], 1)
    with transaction() as session, pytest.raises(CloudNotHeld):
        take_over(session, CloudName.lambda_cloud)


def test_a_restored_database_launches_and_terminates_nothing_until_it_is_taken_over(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id, _ = make_ready(control, lambda_stand_in)
    waiting = control.add_host()
    hold(control)
    for _ in range(2):
        with pytest.raises(CloudSweepFailed, match="are held since the database was restored"):
            control.sweep(1000)
    assert (control.host(host_id).status, control.host(waiting).epoch) == (HostStatus.ready, 0)
    assert len(lambda_stand_in.billed()) == 1
    with transaction() as session:
        take_over(session, CloudName.lambda_cloud)
    control.sweep()
    assert control.host(host_id).status is HostStatus.terminating


def test_no_machine_is_launched_for_a_host_that_has_one_of_a_later_request(
    control: Control, lambda_stand_in: LambdaStandIn
) -> None:
    host_id = control.add_host()
    order = LaunchOrder("installation_1", host_id, 3, "gpu_1x_a10", "us-east-1", "#!/bin/sh")
    machine_id = control.context.cloud.launch(order)
    lambda_stand_in._terminate = lambda instance_id: {"id": instance_id}  # type: ignore[method-assign]
    control.sweep()
    assert (lambda_stand_in.billed(), control.host(host_id).epoch) == ([machine_id], 0)
